package backend

import "net/netip"

// Supply lists what packets to a subnet go by, as far as it is there: the route
// to just that subnet, its nexthop, the gateway's neighbour entry and the FDB
// entry of its MAC.
func (s *State) Supply(dst netip.Prefix) []Entry {
	r, ok := s.routes[routeKey{dst: dst}]
	if !ok {
		return nil
	}
	out := []Entry{r}
	if _, ok := s.nexthops[r.Via]; ok {
		out = append(out, r.Via)
	}
	n, ok := s.neighbours[neighbourKey{r.Via.Dev, r.Via.Gateway}]
	if !ok {
		return out
	}
	out = append(out, n)
	if f, ok := s.fdb[fdbKey{dev: n.Dev, mac: n.MAC}]; ok {
		out = append(out, f)
	}
	return out
}
