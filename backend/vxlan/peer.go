package vxlan

import (
	"crypto/sha256"
	"fmt"
	"net/netip"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/subnet"
)

// Check tells why a lease's holder is on another overlay than this node. A
// record without a VNI is taken to mean ours.
func (s Self) Check(l subnet.Lease) error {
	for _, f := range subnet.Families {
		if vni := l.Endpoints[f].VNI; vni != 0 && vni != s.Options.VNI {
			return fmt.Errorf("VNI is %d, this node's is %d: packets would be lost", vni, s.Options.VNI)
		}
	}
	return nil
}

// Peer returns the entries that a peer's lease owes on this node, per family
// that both have: an FDB entry (the peer's MAC is at its public address), a
// neighbour (the gateway to its subnet has that MAC), a nexthop via the gateway
// and the route to its subnet. With DirectRouting a peer whose public address is
// on the link, and its own, owes a plain route alone. A route bears the peer's MTU where that is
// smaller than the node's own. The lease has passed [subnet.Config.CheckPeer].
func (s Self) Peer(l subnet.Lease) []backend.Entry {
	var out []backend.Entry
	own, err := s.MTU()
	if err != nil {
		own = 0
	}
	mtu := plan.RouteMTU(own, l.MTU)
	for _, f := range subnet.Families {
		if !s.Shares(f, l) {
			continue
		}
		e, u := l.Endpoints[f], s.Underlay[f]
		if s.Options.DirectRouting && u.Reaches(e) {
			out = append(out, u.Direct(l.Subnets[f], e.PublicIP, mtu))
			continue
		}
		dev := s.device(f)
		via := backend.Nexthop{Dev: dev, Gateway: Gateway(l.Subnets[f])}
		out = append(out,
			backend.FDB{Dev: dev, MAC: backend.MAC(e.MAC), Remote: e.PublicIP},
			backend.Neighbour{Dev: dev, IP: via.Gateway, MAC: backend.MAC(e.MAC)},
			via,
			backend.Route{Dst: l.Subnets[f], MTU: mtu, Via: via},
		)
	}
	return out
}

// Gateway is the address by which a peer's subnet is reached through the device.
// No packet bears it: it only has a neighbour entry, so it is each node's own
// affair.
//
// With IPv4 it is the subnet's base address. With IPv6 it is a link-local address
// made of the subnet: the kernel takes a nexthop with another address only as long
// as no route leads to that by another device (ip6_route_check_nh_onlink), as a
// direct route to the subnet does, or an operator's to a wider range.
func Gateway(s netip.Prefix) netip.Addr {
	if s.Addr().Is4() {
		return s.Addr()
	}
	base := s.Addr().As16()
	id := base[:8]
	if s.Bits() > 64 {
		sum := sha256.Sum256(base[:])
		id = sum[:8]
	}
	gateway := [16]byte{0: 0xfe, 1: 0x80}
	copy(gateway[8:], id)
	return netip.AddrFrom16(gateway)
}
