// Package plan has what the planners of all backends share. It is pure.
package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// Planner says what a node's kernel is to hold. It is a value of what the node
// knows of itself: where that changes, another takes its place, and the
// difference of what the two say is what is to be done.
type Planner interface {
	// Own returns the entries that the node owes for itself.
	Own() ([]backend.Entry, error)
	// Peer returns the entries that a peer's lease owes, in the families that
	// both have. The lease has passed [subnet.Config.CheckPeer] and Check.
	Peer(subnet.Lease) []backend.Entry
	// Check tells why the backend cannot reach a lease's holder.
	Check(subnet.Lease) error
	// MTU is what pods may send, in bytes.
	MTU() (int, error)
}

// Options are a backend's, as the network config has them.
type Options interface {
	// Planner returns the planner of a node.
	Planner(Self) Planner
	// Endpoints are what the node publishes of itself. A public address can be
	// another than the underlay's, behind a NAT.
	Endpoints(self Self, public subnet.PerFamily[netip.Addr]) subnet.PerFamily[subnet.Endpoint]
	// Unheeded names the options that are set and have no effect, with what
	// happens instead.
	Unheeded() []string
	// Means are what the backend takes of the host.
	Means() Means
}

// Means are what a backend takes of a host. The zero Means are those of one that
// carries no packets.
type Means struct {
	// VNI and Port are those of its VXLAN devices, 0 where it has none.
	VNI  uint32
	Port uint16
	// Direct tells that pods' packets come over the underlay as they are, too.
	Direct bool
}

// Tunnels tells whether there are VXLAN devices.
func (m Means) Tunnels() bool { return m.VNI != 0 }

// Carries tells whether pods' packets go from node to node by the host's kernel.
func (m Means) Carries() bool { return m.Tunnels() || m.Direct }

// Self is what a node knows of itself.
type Self struct {
	Node string
	// Underlay is set for the families in use.
	Underlay subnet.PerFamily[Underlay]
	// NoTxChecksum is that of the node's VXLAN devices.
	NoTxChecksum bool
	// Devices says which devices the node goes on with that are not of the backend's
	// own making.
	Devices subnet.PerFamily[Device]
	// Subnets are the node's own, once it has leased them. Before that only MTU
	// and Check of a planner are of use.
	Subnets subnet.Subnets
}

// Device is what a node goes on with of a VXLAN device that it had, or that another
// daemon had for it. The zero Device asks for one of the backend's own making.
type Device struct {
	// Name is that of a device which was another's; it may stay bound to the underlay's
	// interface. "" for the backend's own name.
	Name string
	// MAC is what peers know the device by, zero for the one that is the node's own.
	MAC subnet.MAC
}

// Underlay is where a family's packets leave the host.
type Underlay struct {
	Interface string
	// Addr is the interface's address that is used.
	Addr netip.Addr
	// MTU is the interface's, in bytes.
	MTU int
	// OnLink are the prefixes whose addresses are on the interface's link.
	OnLink []netip.Prefix
	// Broadcasts are addresses among them that are nobody's: the kernel takes none for a
	// gateway.
	Broadcasts []netip.Addr
}

// Uses tells whether a family is in use.
func (s Self) Uses(f subnet.Family) bool { return s.Underlay[f].Addr.IsValid() }

// Shares tells whether both the node and a lease's holder have a subnet of a
// family.
func (s Self) Shares(f subnet.Family, l subnet.Lease) bool {
	return s.Subnets[f].IsValid() && l.Subnets[f].IsValid()
}

// LinkMTU is the least MTU of the node's underlays, in bytes.
func (s Self) LinkMTU() (int, error) {
	least := subnet.MaxMTU
	for _, f := range subnet.Families {
		switch u := s.Underlay[f]; {
		case !s.Uses(f):
		case u.MTU < subnet.MinMTU[f]:
			return 0, fmt.Errorf("interface %s: MTU %d is below %s's least of %d", u.Interface, u.MTU, f, subnet.MinMTU[f])
		default:
			least = min(least, u.MTU)
		}
	}
	return least, nil
}

// Reaches tells whether pods' packets can be sent to a peer as they are: it has its
// public address itself, and that is a host's on the underlay's link.
func (u Underlay) Reaches(e subnet.Endpoint) bool {
	return !e.Translated && !slices.Contains(u.Broadcasts, e.PublicIP) && slices.ContainsFunc(u.OnLink, func(p netip.Prefix) bool { return p.Contains(e.PublicIP) })
}

// Direct is the plain route to a peer's subnet by its public address, which is to
// be on the link.
func (u Underlay) Direct(dst netip.Prefix, public netip.Addr, mtu uint16) backend.Route {
	return backend.Route{Dst: dst, Plain: true, MTU: mtu, Via: backend.Nexthop{Dev: u.Interface, Gateway: public}}
}

// RouteMTU is what a route to a peer bears: the MTU that the peer publishes, in
// bytes, where it is smaller than the node's own, and else 0. A peer that
// publishes none, as flannel does not, has 0.
func RouteMTU(own, peer int) uint16 {
	if peer == 0 || peer >= own {
		return 0
	}
	return uint16(min(peer, backend.MaxRouteMTU))
}

// Addresses are the endpoints of a node that publishes its addresses alone.
func Addresses(public subnet.PerFamily[netip.Addr]) (out subnet.PerFamily[subnet.Endpoint]) {
	for f, a := range public {
		out[f].PublicIP = a
	}
	return out
}

// FamilyOf is that of the packets that an entry of a peer's is for. FDB entries are told
// apart by the peer's addresses, which are of the same families; its MAC may be the same
// in both.
func FamilyOf(e backend.Entry) subnet.Family {
	switch e := e.(type) {
	case backend.FDB:
		return subnet.FamilyOf(e.Remote)
	case backend.Neighbour:
		return subnet.FamilyOf(e.IP)
	case backend.Nexthop:
		return subnet.FamilyOf(e.Gateway)
	case backend.Route:
		return subnet.FamilyOf(e.Dst.Addr())
	}
	return subnet.V4
}
