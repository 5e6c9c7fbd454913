// Package hostgw plans the host-gw backend's forwarding state: every peer is on
// the underlay's link and reached by a plain route, without a tunnel. It is pure.
package hostgw

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/subnet"
)

// Type is the backend's name in the network config and in records.
const Type = "host-gw"

// Options are the keys of the config's Backend object: there are none.
type Options struct{}

// Unheeded implements plan.Options.
func (Options) Unheeded() []string { return nil }

// Means implements plan.Options.
func (Options) Means() plan.Means { return plan.Means{Direct: true} }

// Endpoints implements plan.Options.
func (Options) Endpoints(_ plan.Self, public subnet.PerFamily[netip.Addr]) subnet.PerFamily[subnet.Endpoint] {
	return plan.Addresses(public)
}

// Planner implements plan.Options.
func (Options) Planner(s plan.Self) plan.Planner { return Self{s} }

// Self is what the planner knows of the node itself.
type Self struct{ plan.Self }

// Own returns nothing: there is no device.
func (Self) Own() ([]backend.Entry, error) { return nil, nil }

// Peer returns the plain route to the peer's subnet, per family that both have. A
// peer that is not on the link gets none.
func (s Self) Peer(l subnet.Lease) []backend.Entry {
	var out []backend.Entry
	own, err := s.MTU()
	if err != nil {
		own = 0
	}
	for _, f := range subnet.Families {
		u, e := s.Underlay[f], l.Endpoints[f]
		if s.Shares(f, l) && u.Reaches(e) {
			out = append(out, u.Direct(l.Subnets[f], e.PublicIP, plan.RouteMTU(own, l.MTU)))
		}
	}
	return out
}

// Check tells why a lease's holder is not on the underlay's link: in none of the
// families that both have, for the others stand by themselves.
func (s Self) Check(l subnet.Lease) error {
	var off error
	for _, f := range subnet.Families {
		u, e := s.Underlay[f], l.Endpoints[f]
		switch {
		case !s.Uses(f) || !l.Subnets[f].IsValid():
		case u.Reaches(e):
			return nil
		case off != nil:
		case e.Translated:
			off = fmt.Errorf("public address %s is translated to another of its holder's (1:1 NAT), so host-gw has no way to it: a tunnel (Type vxlan) has", e.PublicIP)
		case slices.Contains(u.Broadcasts, e.PublicIP):
			off = fmt.Errorf("public address %s is the broadcast address of the link of %s, so no host has it: its record is wrong", e.PublicIP, u.Interface)
		default:
			off = fmt.Errorf("public address %s is not on the link of %s, so host-gw has no way to it: on that link are %s", e.PublicIP, u.Interface, some(u.OnLink))
		}
	}
	return off
}

// some names the first of a list that can be long.
func some(list []netip.Prefix) string {
	const most = 8
	if len(list) <= most {
		return fmt.Sprint(list)
	}
	return fmt.Sprintf("%v and %d more", list[:most], len(list)-most)
}

// MTU is the interface's, in bytes.
func (s Self) MTU() (int, error) { return s.LinkMTU() }
