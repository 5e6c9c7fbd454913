package backend

import (
	"iter"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
)

// State is a set of entries, at most one of each identity. The zero State is
// empty and ready to use. It is for one goroutine.
type State struct {
	devices   map[string]Device
	addresses map[Address]struct{}
	// four and six have what hangs on the devices of which names has the
	// numbers; rest has what does not fit there, by its identity.
	names names
	four  table[[4]byte]
	six   table[[16]byte]
	rest  map[Entry]Entry
	// bearers counts the neighbours that have a MAC, also those in rest, and
	// users the routes that lead through a nexthop which does not fit the
	// tables: so that what needs an entry is found without a walk through all. A
	// route through a stray counts for its plain form as well.
	bearers map[station]uint32
	users   map[Nexthop]int
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

// family is the table of an address's family.
func (s *State) family(a netip.Addr) tables {
	if a.Is4() {
		return &s.four
	}
	return &s.six
}

// families lists both tables.
func (s *State) families() [2]tables { return [2]tables{&s.four, &s.six} }

// fits tells whether an address can be in a table.
func fits(a netip.Addr) bool { return a.IsValid() && a.Zone() == "" }

// place is the number of the device on which an entry is in the tables, 0 for
// one that does not fit there.
func (s *State) place(fits bool, dev string) link {
	if !fits || dev == "" {
		return 0
	}
	return s.names.add(dev)
}

func (s *State) placeFDB(e FDB) link {
	return s.place(e.Odd == "" && fits(e.Remote) && !e.several(), e.Dev)
}

func (s *State) placeNeighbour(e Neighbour) link { return s.place(fits(e.IP), e.Dev) }

func (s *State) placeNexthop(e Nexthop) link { return s.place(e.Stray == 0 && fits(e.Gateway), e.Dev) }

func (s *State) placeRoute(e Route) link {
	if !e.usual() || e.Plain || e.Protocol != 0 || e.MTU != 0 || e.Via.Gateway.Is4() != e.Dst.Addr().Is4() {
		return 0
	}
	return s.placeNexthop(e.Via)
}

func (s *State) putRest(id, e Entry) { put(&s.rest, id, e) }

// inRest finds an entry of that identity that is not in the tables.
func (s *State) inRest(id Entry) (Entry, bool) {
	if len(s.rest) == 0 {
		return nil, false
	}
	e, ok := s.rest[Identity(id)]
	return e, ok
}

// Put adds an entry in the place of the one with its identity, if any.
func (s *State) Put(e Entry) {
	switch e := e.(type) {
	case Device:
		put(&s.devices, e.Name, e)
	case Address:
		put(&s.addresses, e, struct{}{})
	case FDB:
		s.putFDB(e)
	case Neighbour:
		s.putNeighbour(e)
	case Nexthop:
		if dev := s.placeNexthop(e); dev != 0 {
			s.family(e.Gateway).setNexthop(dev, e.Gateway, true)
		} else {
			s.putRest(e, e)
		}
	case Route:
		s.putRoute(e)
	}
}

func (s *State) putFDB(e FDB) {
	dev := s.placeFDB(e)
	if dev == 0 {
		s.dropFDB(e)
		s.putRest(Identity(e), e)
		return
	}
	at := station{e.MAC, dev}
	s.four.dropRemote(at)
	s.six.dropRemote(at)
	s.family(e.Remote).setRemote(at, e.Remote)
	s.dropRest(e)
}

func (s *State) putNeighbour(e Neighbour) {
	s.dropNeighbour(e)
	if dev := s.placeNeighbour(e); dev != 0 {
		s.family(e.IP).setMAC(dev, e.IP, e.MAC)
	} else {
		s.putRest(Identity(e), e)
	}
	at := s.station(e)
	put(&s.bearers, at, s.bearers[at]+1)
}

// station is what a neighbour counts for among the bearers. Devices that have no
// number share one station for each MAC.
func (s *State) station(e Neighbour) station { return station{e.MAC, s.place(true, e.Dev)} }

func (s *State) putRoute(e Route) {
	s.dropRoute(e)
	if dev := s.placeRoute(e); dev != 0 {
		s.family(e.Dst.Addr()).setRoute(e.Dst, dev, e.Via.Gateway)
	} else {
		s.putRest(Identity(e), e)
	}
	s.useBy(e, 1)
}

// useBy counts a route among those that need its nexthop's neighbour; one that does
// not lean on anything of ours does not.
func (s *State) useBy(r Route, n int) {
	if r.leans() {
		s.use(r.Via, n)
	}
}

// use adds to the number of routes that lead through a nexthop.
func (s *State) use(via Nexthop, n int) {
	if dev := s.placeNexthop(via); dev != 0 {
		s.family(via.Gateway).use(dev, via.Gateway, n)
		return
	}
	put(&s.users, via, s.users[via]+n)
	if s.users[via] == 0 {
		delete(s.users, via)
	}
	if via.Stray != 0 {
		s.use(via.plain(), n)
	}
}

// usersOf counts the routes that lead through a nexthop, those through a stray
// also for its plain form.
func (s *State) usersOf(via Nexthop) int {
	if dev := s.names.number(via.Dev); dev != 0 && via.Stray == 0 && fits(via.Gateway) {
		return s.family(via.Gateway).users(dev, via.Gateway)
	}
	return s.users[via]
}

// Drop removes the entry with the identity of e, if any.
func (s *State) Drop(e Entry) {
	switch e := e.(type) {
	case Device:
		delete(s.devices, e.Name)
	case Address:
		delete(s.addresses, e)
	case FDB:
		s.dropFDB(e)
	case Neighbour:
		s.dropNeighbour(e)
	case Nexthop:
		if dev := s.placeNexthop(e); dev != 0 {
			s.family(e.Gateway).setNexthop(dev, e.Gateway, false)
		} else {
			delete(s.rest, Entry(e))
		}
	case Route:
		s.dropRoute(e)
	}
}

func (s *State) dropRest(id Entry) {
	if len(s.rest) > 0 {
		delete(s.rest, Identity(id))
	}
}

func (s *State) dropFDB(e FDB) {
	if dev := s.names.number(e.Dev); dev != 0 && !e.several() {
		for _, t := range s.families() {
			t.dropRemote(station{e.MAC, dev})
		}
	}
	s.dropRest(e)
}

func (s *State) dropNeighbour(e Neighbour) {
	old, ok := s.neighbourAt(e.Dev, e.IP)
	if !ok {
		return
	}
	if dev := s.placeNeighbour(e); dev != 0 {
		s.family(e.IP).dropMAC(dev, e.IP)
	} else {
		s.dropRest(e)
	}
	at := s.station(old)
	if s.bearers[at]--; s.bearers[at] == 0 {
		delete(s.bearers, at)
	}
}

func (s *State) dropRoute(e Route) {
	old, ok := s.routeAt(e)
	if !ok {
		return
	}
	if e.usual() {
		s.family(e.Dst.Addr()).dropRoute(e.Dst)
	}
	s.dropRest(e)
	s.useBy(old, -1)
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
		at, ok = s.fdbAt(e)
	case Neighbour:
		at, ok = s.neighbourAt(e.Dev, e.IP)
	case Nexthop:
		at, ok = e, s.hasNexthop(e)
	case Route:
		at, ok = s.routeAt(e)
	}
	return at, ok
}

func (s *State) fdbAt(e FDB) (FDB, bool) {
	if dev := s.names.number(e.Dev); dev != 0 && !e.several() {
		for _, t := range s.families() {
			if to, ok := t.remote(station{e.MAC, dev}); ok {
				return FDB{Dev: s.names.name(dev), MAC: e.MAC, Remote: to}, true
			}
		}
	}
	if at, ok := s.inRest(e); ok {
		return at.(FDB), true
	}
	return FDB{}, false
}

func (s *State) neighbourAt(dev string, ip netip.Addr) (Neighbour, bool) {
	if l := s.names.number(dev); l != 0 && fits(ip) {
		mac, ok := s.family(ip).mac(l, ip)
		return Neighbour{Dev: dev, IP: ip, MAC: mac}, ok
	}
	if at, ok := s.inRest(Neighbour{Dev: dev, IP: ip}); ok {
		return at.(Neighbour), true
	}
	return Neighbour{}, false
}

func (s *State) hasNexthop(e Nexthop) bool {
	if dev := s.names.number(e.Dev); dev != 0 && e.Stray == 0 && fits(e.Gateway) {
		return s.family(e.Gateway).nexthop(dev, e.Gateway)
	}
	_, ok := s.inRest(e)
	return ok
}

func (s *State) routeAt(e Route) (Route, bool) {
	if e.usual() {
		if via, ok := s.family(e.Dst.Addr()).route(e.Dst); ok {
			return Route{Dst: e.Dst, Via: Nexthop{Dev: s.names.name(via.dev), Gateway: via.ip}}, true
		}
	}
	if at, ok := s.inRest(e); ok {
		return at.(Route), true
	}
	return Route{}, false
}

// Has tells whether exactly this entry is there; a device also where it bears a
// binding less, see [Device].
func (s *State) Has(e Entry) bool {
	switch e := e.(type) {
	case Device:
		at, ok := s.devices[e.Name]
		return ok && at.meets(e)
	case Address:
		_, ok := s.addresses[e]
		return ok
	case FDB:
		at, ok := s.fdbAt(e)
		return ok && at == e
	case Neighbour:
		at, ok := s.neighbourAt(e.Dev, e.IP)
		return ok && at == e
	case Nexthop:
		return s.hasNexthop(e)
	case Route:
		at, ok := s.routeAt(e)
		return ok && at == e
	}
	return false
}

// Device returns the device of that name.
func (s *State) Device(name string) (Device, bool) {
	d, ok := s.devices[name]
	return d, ok
}

// Len is the number of entries.
func (s *State) Len() int {
	return len(s.devices) + len(s.addresses) + s.four.len() + s.six.len() + len(s.rest)
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
		return entries(s.allFDB())
	case KindNeighbour:
		return entries(s.allNeighbours())
	case KindNexthop:
		return entries(s.allNexthops())
	default:
		return entries(s.allRoutes())
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

// restOf visits what is of one kind and not in the tables.
func restOf[E Entry](s *State, yield func(E) bool) {
	for _, e := range s.rest {
		if e, ok := e.(E); ok && !yield(e) {
			return
		}
	}
}

func (s *State) allFDB() iter.Seq[FDB] {
	return func(yield func(FDB) bool) {
		for _, t := range s.families() {
			for at, to := range t.remotes() {
				if !yield(FDB{Dev: s.names.name(at.dev), MAC: at.mac, Remote: to}) {
					return
				}
			}
		}
		restOf(s, yield)
	}
}

func (s *State) allNeighbours() iter.Seq[Neighbour] {
	return func(yield func(Neighbour) bool) {
		for _, t := range s.families() {
			for at, mac := range t.macs() {
				if !yield(Neighbour{Dev: s.names.name(at.dev), IP: at.ip, MAC: mac}) {
					return
				}
			}
		}
		restOf(s, yield)
	}
}

func (s *State) allNexthops() iter.Seq[Nexthop] {
	return func(yield func(Nexthop) bool) {
		for _, t := range s.families() {
			for at := range t.gateways() {
				if !yield(Nexthop{Dev: s.names.name(at.dev), Gateway: at.ip}) {
					return
				}
			}
		}
		restOf(s, yield)
	}
}

func (s *State) allRoutes() iter.Seq[Route] {
	return func(yield func(Route) bool) {
		for _, t := range s.families() {
			for to, via := range t.targets() {
				if !yield(Route{Dst: to, Via: Nexthop{Dev: s.names.name(via.dev), Gateway: via.ip}}) {
					return
				}
			}
		}
		restOf(s, yield)
	}
}

// Clone returns a copy.
func (s *State) Clone() *State {
	return &State{
		devices: maps.Clone(s.devices), addresses: maps.Clone(s.addresses), names: slices.Clone(s.names),
		four: s.four.clone(), six: s.six.clone(), rest: maps.Clone(s.rest),
		bearers: maps.Clone(s.bearers), users: maps.Clone(s.users),
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

// Equal tells whether both hold the same entries, devices bound alike.
func (s *State) Equal(o *State) bool {
	if s.Len() != o.Len() {
		return false
	}
	for e := range s.All() {
		if at, ok := o.At(e); !ok || at != e {
			return false
		}
	}
	return true
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
		old, ok := s.devices[e.Name]
		if ok && old.MAC != e.MAC {
			s.dropNeighbours(func(n Neighbour) bool { return n.Dev == e.Name })
		}
		e.Lower = old.Lower // Neither is one made that is bound, nor one unbound.
		op.Entry = e
	case Address:
		if op.Verb == Delete && s.lastIPv4(e) {
			s.dropNeighbours(func(n Neighbour) bool { return n.Dev == e.Dev && n.IP.Is4() })
		}
	case Nexthop:
		if op.Verb == Delete {
			s.dropRoutes(s.usersOf(e), func(r Route) bool { return r.through(e) })
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
	for n := range s.allNeighbours() {
		if n.Dev == a.Dev && n.IP.Is4() == a.Prefix.Addr().Is4() {
			return true
		}
	}
	return false
}

func (s *State) dropDevice(name string) {
	delete(s.devices, name)
	maps.DeleteFunc(s.addresses, func(a Address, _ struct{}) bool { return a.Dev == name })
	for e := range s.OfKind(KindFDB) {
		if e.On() == name {
			s.Drop(e)
		}
	}
	s.dropNeighbours(func(n Neighbour) bool { return n.Dev == name })
	for e := range s.OfKind(KindNexthop) {
		if e.On() == name {
			s.Drop(e)
		}
	}
	s.dropRoutes(math.MaxInt, func(r Route) bool { return r.Via.Dev == name })
}

func (s *State) dropNeighbours(match func(Neighbour) bool) {
	for n := range s.allNeighbours() {
		if match(n) {
			s.dropNeighbour(n)
		}
	}
}

// dropRoutes drops the at most n routes that match, and returns them.
func (s *State) dropRoutes(n int, match func(Route) bool) (dropped []Route) {
	if n == 0 {
		return nil
	}
	for r := range s.allRoutes() {
		if !match(r) {
			continue
		}
		s.dropRoute(r)
		if dropped = append(dropped, r); len(dropped) == n {
			break
		}
	}
	return dropped
}
