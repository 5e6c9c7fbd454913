package backend

import (
	"iter"
	"maps"
	"slices"
	"strings"
)

// State is a set of entries, at most one of each identity. The zero State is
// empty and ready to use. It is for one goroutine.
type State struct {
	devices    map[string]Device
	addresses  map[Address]struct{}
	fdb        map[fdbKey]FDB
	neighbours map[neighbourKey]Neighbour
	nexthops   map[Nexthop]struct{}
	routes     map[routeKey]Route
	// users counts the routes that lead through a nexthop, those through a
	// stray also for its plain form, and macs the neighbours that have a MAC:
	// so that what needs an entry is found without a walk through all.
	users map[Nexthop]int
	macs  map[fdbKey]int
}

// NewState returns the set of the given entries; of two with one identity the
// later stays.
func NewState(entries ...Entry) *State {
	s := &State{}
	for _, e := range entries {
		s.Put(e)
	}
	return s
}

func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

// Put adds an entry in the place of the one with its identity, if any.
func (s *State) Put(e Entry) {
	switch e := e.(type) {
	case Device:
		put(&s.devices, e.Name, e)
	case Address:
		put(&s.addresses, e, struct{}{})
	case FDB:
		put(&s.fdb, e.key(), e)
	case Neighbour:
		s.Drop(e)
		put(&s.neighbours, e.key(), e)
		add(&s.macs, e.fdbKey(), 1)
	case Nexthop:
		put(&s.nexthops, e, struct{}{})
	case Route:
		s.Drop(e)
		put(&s.routes, e.key(), e)
		s.use(e, 1)
	}
}

// add adds n to a count and keeps no zeros.
func add[K comparable](m *map[K]int, k K, n int) {
	if n += (*m)[k]; n == 0 {
		delete(*m, k)
		return
	}
	put(m, k, n)
}

func (s *State) use(r Route, n int) {
	if r.Plain {
		return
	}
	add(&s.users, r.Via, n)
	if r.Via.Stray != 0 {
		add(&s.users, r.Via.plain(), n)
	}
}

// Drop removes the entry with the identity of e, if any.
func (s *State) Drop(e Entry) {
	switch e := e.(type) {
	case Device:
		delete(s.devices, e.Name)
	case Address:
		delete(s.addresses, e)
	case FDB:
		delete(s.fdb, e.key())
	case Neighbour:
		if old, ok := s.neighbours[e.key()]; ok {
			delete(s.neighbours, e.key())
			add(&s.macs, old.fdbKey(), -1)
		}
	case Nexthop:
		delete(s.nexthops, e)
	case Route:
		if old, ok := s.routes[e.key()]; ok {
			delete(s.routes, e.key())
			s.use(old, -1)
		}
	}
}

// At returns the entry with the identity of e.
func (s *State) At(e Entry) (at Entry, ok bool) {
	switch e := e.(type) {
	case Device:
		at, ok = s.devices[e.Name]
	case Address:
		_, ok = s.addresses[e]
		at = e
	case FDB:
		at, ok = s.fdb[e.key()]
	case Neighbour:
		at, ok = s.neighbours[e.key()]
	case Nexthop:
		_, ok = s.nexthops[e]
		at = e
	case Route:
		at, ok = s.routes[e.key()]
	}
	return at, ok
}

// Has tells whether exactly this entry is there.
func (s *State) Has(e Entry) bool {
	at, ok := s.At(e)
	return ok && at == e
}

// Device returns the device of that name.
func (s *State) Device(name string) (Device, bool) {
	d, ok := s.devices[name]
	return d, ok
}

// Len is the number of entries.
func (s *State) Len() int {
	return len(s.devices) + len(s.addresses) + len(s.fdb) + len(s.neighbours) + len(s.nexthops) + len(s.routes)
}

// All visits every entry, kind after kind, in no order within a kind.
func (s *State) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for k := range kinds {
			for e := range s.OfKind(k) {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// OfKind visits the entries of one kind, in no order.
func (s *State) OfKind(k Kind) iter.Seq[Entry] {
	switch k {
	case KindDevice:
		return entries(maps.Values(s.devices))
	case KindAddress:
		return entries(maps.Keys(s.addresses))
	case KindFDB:
		return entries(maps.Values(s.fdb))
	case KindNeighbour:
		return entries(maps.Values(s.neighbours))
	case KindNexthop:
		return entries(maps.Keys(s.nexthops))
	default:
		return entries(maps.Values(s.routes))
	}
}

func entries[E Entry](of iter.Seq[E]) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for e := range of {
			if !yield(e) {
				return
			}
		}
	}
}

// Clone returns a copy.
func (s *State) Clone() *State {
	return &State{
		devices: maps.Clone(s.devices), addresses: maps.Clone(s.addresses), fdb: maps.Clone(s.fdb),
		neighbours: maps.Clone(s.neighbours), nexthops: maps.Clone(s.nexthops), routes: maps.Clone(s.routes),
		users: maps.Clone(s.users), macs: maps.Clone(s.macs),
	}
}

// Pick returns what of s has the identity of one of the given entries.
func (s *State) Pick(of iter.Seq[Entry]) *State {
	out := &State{}
	for e := range of {
		if at, ok := s.At(e); ok {
			out.Put(at)
		}
	}
	return out
}

// Equal tells whether both hold the same entries.
func (s *State) Equal(o *State) bool {
	return maps.Equal(s.devices, o.devices) && maps.Equal(s.addresses, o.addresses) && maps.Equal(s.fdb, o.fdb) &&
		maps.Equal(s.neighbours, o.neighbours) && maps.Equal(s.nexthops, o.nexthops) && maps.Equal(s.routes, o.routes)
}

// String lists the entries, a line each, by kind and within it by text: the
// same text for equal states.
func (s *State) String() string {
	var b strings.Builder
	for k := range kinds {
		var lines []string
		for e := range s.OfKind(k) {
			lines = append(lines, e.String())
		}
		slices.Sort(lines)
		for _, l := range lines {
			b.WriteString(l)
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// Apply does to s what the kernel does to its own state on an op, side effects
// included: what hangs on a device or a nexthop goes with it, a device's own
// neighbours go when its MAC changes, those of IPv4 also with its last address
// (fib_disable_ip calls arp_ifdown).
func (s *State) Apply(op Op) {
	switch e := op.Entry.(type) {
	case Device:
		if op.Verb == Delete {
			s.dropDevice(e.Name)
			return
		}
		if old, ok := s.devices[e.Name]; ok && old.MAC != e.MAC {
			s.dropNeighbours(func(k neighbourKey) bool { return k.dev == e.Name })
		}
	case Address:
		if op.Verb == Delete && s.lastIPv4(e) {
			s.dropNeighbours(func(k neighbourKey) bool { return k.dev == e.Dev && k.ip.Is4() })
		}
	case Nexthop:
		if op.Verb == Delete {
			s.dropRoutes(s.users[e], func(r Route) bool { return r.through(e) })
		}
	}
	if op.Verb == Delete {
		s.Drop(op.Entry)
	} else {
		s.Put(op.Entry)
	}
}

// lastIPv4 tells whether an address is there and the only one of IPv4 on its
// device.
func (s *State) lastIPv4(a Address) bool {
	if _, ok := s.addresses[a]; !ok || !a.Prefix.Addr().Is4() {
		return false
	}
	for o := range s.addresses {
		if o != a && o.Dev == a.Dev && o.Prefix.Addr().Is4() {
			return false
		}
	}
	return true
}

// neighboursOf tells whether there are neighbours of the address's family on its
// device.
func (s *State) neighboursOf(a Address) bool {
	for k := range s.neighbours {
		if k.dev == a.Dev && k.ip.Is4() == a.Prefix.Addr().Is4() {
			return true
		}
	}
	return false
}

func (s *State) dropDevice(name string) {
	delete(s.devices, name)
	maps.DeleteFunc(s.addresses, func(a Address, _ struct{}) bool { return a.Dev == name })
	maps.DeleteFunc(s.fdb, func(k fdbKey, _ FDB) bool { return k.dev == name })
	s.dropNeighbours(func(k neighbourKey) bool { return k.dev == name })
	maps.DeleteFunc(s.nexthops, func(n Nexthop, _ struct{}) bool { return n.Dev == name })
	s.dropRoutes(len(s.routes), func(r Route) bool { return r.Via.Dev == name })
}

func (s *State) dropNeighbours(match func(neighbourKey) bool) {
	for k, n := range s.neighbours {
		if match(k) {
			s.Drop(n)
		}
	}
}

// dropRoutes drops the at most n routes that match, and returns them.
func (s *State) dropRoutes(n int, match func(Route) bool) (dropped []Route) {
	if n == 0 {
		return nil
	}
	for _, r := range s.routes {
		if !match(r) {
			continue
		}
		s.Drop(r)
		if dropped = append(dropped, r); len(dropped) == n {
			break
		}
	}
	return dropped
}

// carries tells whether a route stands that sends its packets by an FDB entry.
func (s *State) carries(f FDB) bool {
	if s.macs[fdbKey{dev: f.Dev, mac: f.MAC}] == 0 {
		return false
	}
	for _, n := range s.neighbours {
		if n.Dev == f.Dev && n.MAC == f.MAC && s.users[Nexthop{Dev: n.Dev, Gateway: n.IP}] > 0 {
			return true
		}
	}
	return false
}

// forwardsOn tells whether a route stands on a device and finds all it needs.
func (s *State) forwardsOn(dev string) bool {
	for _, r := range s.routes {
		if r.Via.Dev == dev && s.Forwards(r) {
			return true
		}
	}
	return false
}

// Forwards tells whether a packet that takes the route finds all it needs: the
// device, the nexthop, the gateway's neighbour entry and the FDB entry of its MAC.
// A plain route needs nothing of ours.
func (s *State) Forwards(r Route) bool {
	if r.Plain {
		return true
	}
	if _, ok := s.devices[r.Via.Dev]; !ok {
		return false
	}
	if _, ok := s.nexthops[r.Via]; !ok {
		return false
	}
	n, ok := s.neighbours[neighbourKey{r.Via.Dev, r.Via.Gateway}]
	if !ok {
		return false
	}
	_, ok = s.fdb[fdbKey{dev: r.Via.Dev, mac: n.MAC}]
	return ok
}
