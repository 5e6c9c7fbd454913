package backend

import "net/netip"

// Supply lists what packets to a subnet go by, as far as it is there: the route
// to just that subnet, its nexthop, the gateway's neighbour entry and the FDB
// entry of its MAC.
func (s *State) Supply(dst netip.Prefix) []Entry {
	r, ok := s.routeAt(Route{Dst: dst})
	if !ok {
		return nil
	}
	out := []Entry{r}
	if r.Via == (Nexthop{}) {
		return out
	}
	if s.Has(r.Via) {
		out = append(out, r.Via)
	}
	n, ok := s.neighbourAt(r.Via.Dev, r.Via.Gateway)
	if !ok {
		return out
	}
	out = append(out, n)
	if f, ok := s.fdbAt(FDB{Dev: n.Dev, MAC: n.MAC}); ok {
		out = append(out, f)
	}
	return out
}

// carries tells whether a route stands that sends its packets by an FDB entry.
func (s *State) carries(f FDB) bool {
	if s.bearers[station{f.MAC, s.names.number(f.Dev)}] == 0 {
		return false // As nearly always: a neighbour goes before the FDB entry of its MAC.
	}
	for n := range s.allNeighbours() {
		if n.Dev == f.Dev && n.MAC == f.MAC && s.usersOf(Nexthop{Dev: n.Dev, Gateway: n.IP}) > 0 {
			return true
		}
	}
	return false
}

// forwardsOn tells whether a route stands on a device and finds all it needs.
func (s *State) forwardsOn(dev string) bool {
	for r := range s.allRoutes() {
		if r.Via.Dev == dev && s.Forwards(r) {
			return true
		}
	}
	return false
}

// Forwards tells whether a packet that takes the route finds all it needs: the
// device, the nexthop, the gateway's neighbour entry and the FDB entry of its MAC.
// A plain route needs no nexthop, and one over a link of the host's nothing of ours.
func (s *State) Forwards(r Route) bool {
	if !r.leans() {
		return true
	}
	if _, ok := s.devices[r.Via.Dev]; !ok || !r.Plain && !s.hasNexthop(r.Via) {
		return false
	}
	n, ok := s.neighbourAt(r.Via.Dev, r.Via.Gateway)
	return ok && s.leads(n)
}

// leads tells whether there is an FDB entry for a neighbour's MAC.
func (s *State) leads(n Neighbour) bool {
	_, ok := s.fdbAt(FDB{Dev: n.Dev, MAC: n.MAC})
	return ok
}
