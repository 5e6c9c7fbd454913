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
