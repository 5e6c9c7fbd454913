package subnet

import (
	"net/netip"
)

// The mirror finds peers one by one, at the same cost however many there are, for
// who hears from one of them and for who goes through all of them in steps.

// ByPublic returns a peer with a public address.
func (m *Mirror) ByPublic(a netip.Addr) (Lease, bool) {
	n, ok := m.leases.publics.find(hashAddr(a), func(n uint32) bool {
		return m.leases.at(leaseID(n/uint32(len(Families)))).peer && m.leases.public(n) == a
	})
	if !ok {
		return Lease{}, false
	}
	return m.leases.at(leaseID(n / uint32(len(Families)))).lease(), true
}

// ByBase returns the peer whose subnet of the network's usual length begins with an
// address.
func (m *Mirror) ByBase(a netip.Addr) (Lease, bool) {
	f := FamilyOf(a)
	if !m.cfg.Ranges[f].Network.IsValid() {
		return Lease{}, false
	}
	id, ok := m.claims.of(claimSubnet(f, netip.PrefixFrom(a, m.cfg.Ranges[f].SubnetLen)))
	if !ok || !m.leases.at(id).peer {
		return Lease{}, false
	}
	return m.leases.at(id).lease(), true
}

// Bound is more than the number of any lease; At returns the peer of a number, if it
// is one's. A peer keeps its number while its record says the same.
func (m *Mirror) Bound() int { return int(m.leases.next) }

// At returns the peer of a number below Bound.
func (m *Mirror) At(n int) (Lease, bool) {
	if n < 0 || n >= m.Bound() || !m.leases.at(leaseID(n)).peer {
		return Lease{}, false
	}
	return m.leases.at(leaseID(n)).lease(), true
}
