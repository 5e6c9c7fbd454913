package vxlan

import (
	"fmt"

	"github.com/ripstop-net/ripstop/backend"
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
// neighbour (its overlay address has that MAC), a nexthop via that address and
// the route to its subnet. The lease has passed [subnet.Config.CheckPeer].
func (s Self) Peer(l subnet.Lease) []backend.Entry {
	var out []backend.Entry
	for _, f := range subnet.Families {
		if !s.Subnets[f].IsValid() || !l.Subnets[f].IsValid() {
			continue
		}
		dev, base, e := DeviceName(f, s.Options.VNI), l.Subnets[f].Addr(), l.Endpoints[f]
		via := backend.Nexthop{Dev: dev, Gateway: base}
		out = append(out,
			backend.FDB{Dev: dev, MAC: backend.MAC(e.MAC), Remote: e.PublicIP},
			backend.Neighbour{Dev: dev, IP: base, MAC: backend.MAC(e.MAC)},
			via,
			backend.Route{Dst: l.Subnets[f], Via: via},
		)
	}
	return out
}
