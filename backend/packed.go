package backend

import (
	"iter"
	"maps"
	"math"
	"net/netip"
	"slices"
)

// What a planner makes is kept, tens of thousands of times, in few bytes and
// without a pointer that the garbage collector would have to follow: devices by
// number, addresses in four or sixteen bytes. What is of another form, as a
// stranger's entry may be, does not fit the tables; [State] keeps it as it is.

// octets is an address of one family.
type octets interface{ [4]byte | [16]byte }

// link is a device's number among a State's names. 0 is no device.
type link uint16

// hop is a gateway, or a neighbour, on a device.
type hop[A octets] struct {
	ip  A
	dev link
}

// target is the prefix of a route.
type target[A octets] struct {
	base A
	bits uint8
}

// station is a MAC on a device.
type station struct {
	mac MAC
	dev link
}

// through counts the routes that lead through a nexthop; there tells that it
// stands itself.
type through uint32

const there through = math.MaxInt32 + 1

// table has the entries of one family.
type table[A octets] struct {
	fdb        map[station]A
	neighbours map[hop[A]]MAC
	nexthops   map[hop[A]]through
	routes     map[target[A]]hop[A]
	// standing counts the nexthops that stand themselves.
	standing int
}

// tables is a table of either family.
type tables interface {
	// An FDB entry, of a MAC that can have one destination only.
	remote(at station) (netip.Addr, bool)
	setRemote(at station, to netip.Addr)
	dropRemote(at station)
	remotes() iter.Seq2[station, netip.Addr]

	// A neighbour.
	mac(dev link, ip netip.Addr) (MAC, bool)
	setMAC(dev link, ip netip.Addr, mac MAC)
	dropMAC(dev link, ip netip.Addr)
	macs() iter.Seq2[at, MAC]

	// A nexthop; the routes that use one are counted also where it is missing.
	nexthop(dev link, gateway netip.Addr) bool
	setNexthop(dev link, gateway netip.Addr, stands bool)
	users(dev link, gateway netip.Addr) int
	use(dev link, gateway netip.Addr, n int)
	gateways() iter.Seq[at]

	// A route.
	route(to netip.Prefix) (at, bool)
	setRoute(to netip.Prefix, dev link, gateway netip.Addr)
	dropRoute(to netip.Prefix)
	targets() iter.Seq2[netip.Prefix, at]

	// len is the number of entries.
	len() int
}

// at is an address on a device.
type at struct {
	ip  netip.Addr
	dev link
}

// pack takes an address of the right family.
func pack[A octets](a netip.Addr) (out A) {
	all := a.As16()
	for i := range len(out) { // An IPv4 address is at the end.
		out[i] = all[len(all)-len(out)+i]
	}
	return out
}

func unpack[A octets](a A) netip.Addr {
	var all [16]byte
	for i := range len(a) {
		all[i] = a[i]
	}
	if len(a) == 4 {
		return netip.AddrFrom4([4]byte(all[:4]))
	}
	return netip.AddrFrom16(all)
}

func (h hop[A]) at() at { return at{unpack(h.ip), h.dev} }

func (t *table[A]) remote(at station) (netip.Addr, bool) {
	a, ok := t.fdb[at]
	return unpack(a), ok
}

func (t *table[A]) setRemote(at station, to netip.Addr) { put(&t.fdb, at, pack[A](to)) }

func (t *table[A]) dropRemote(at station) { delete(t.fdb, at) }

func (t *table[A]) remotes() iter.Seq2[station, netip.Addr] {
	return func(yield func(station, netip.Addr) bool) {
		for at, to := range t.fdb {
			if !yield(at, unpack(to)) {
				return
			}
		}
	}
}

func (t *table[A]) mac(dev link, ip netip.Addr) (MAC, bool) {
	m, ok := t.neighbours[hop[A]{pack[A](ip), dev}]
	return m, ok
}

func (t *table[A]) setMAC(dev link, ip netip.Addr, mac MAC) {
	put(&t.neighbours, hop[A]{pack[A](ip), dev}, mac)
}

func (t *table[A]) dropMAC(dev link, ip netip.Addr) {
	delete(t.neighbours, hop[A]{pack[A](ip), dev})
}

func (t *table[A]) macs() iter.Seq2[at, MAC] {
	return func(yield func(at, MAC) bool) {
		for h, mac := range t.neighbours {
			if !yield(h.at(), mac) {
				return
			}
		}
	}
}

func (t *table[A]) nexthop(dev link, gateway netip.Addr) bool {
	return t.nexthops[hop[A]{pack[A](gateway), dev}]&there != 0
}

func (t *table[A]) setNexthop(dev link, gateway netip.Addr, stands bool) {
	h := hop[A]{pack[A](gateway), dev}
	was := t.nexthops[h]
	is := was &^ there
	if stands {
		is |= there
	}
	t.note(h, was, is)
}

func (t *table[A]) users(dev link, gateway netip.Addr) int {
	return int(t.nexthops[hop[A]{pack[A](gateway), dev}] &^ there)
}

func (t *table[A]) use(dev link, gateway netip.Addr, n int) {
	h := hop[A]{pack[A](gateway), dev}
	was := t.nexthops[h]
	t.note(h, was, was&there|through(int(was&^there)+n))
}

func (t *table[A]) note(h hop[A], was, is through) {
	t.standing += int(is>>31) - int(was>>31)
	if is == 0 {
		delete(t.nexthops, h)
		return
	}
	put(&t.nexthops, h, is)
}

func (t *table[A]) gateways() iter.Seq[at] {
	return func(yield func(at) bool) {
		for h, n := range t.nexthops {
			if n&there != 0 && !yield(h.at()) {
				return
			}
		}
	}
}

func packPrefix[A octets](p netip.Prefix) target[A] {
	return target[A]{pack[A](p.Addr()), uint8(p.Bits())}
}

func (t *table[A]) route(to netip.Prefix) (at, bool) {
	h, ok := t.routes[packPrefix[A](to)]
	return h.at(), ok
}

func (t *table[A]) setRoute(to netip.Prefix, dev link, gateway netip.Addr) {
	put(&t.routes, packPrefix[A](to), hop[A]{pack[A](gateway), dev})
}

func (t *table[A]) dropRoute(to netip.Prefix) { delete(t.routes, packPrefix[A](to)) }

func (t *table[A]) targets() iter.Seq2[netip.Prefix, at] {
	return func(yield func(netip.Prefix, at) bool) {
		for to, h := range t.routes {
			if !yield(netip.PrefixFrom(unpack(to.base), int(to.bits)), h.at()) {
				return
			}
		}
	}
}

func (t *table[A]) len() int { return len(t.fdb) + len(t.neighbours) + t.standing + len(t.routes) }

func (t *table[A]) clone() table[A] {
	return table[A]{
		fdb: maps.Clone(t.fdb), neighbours: maps.Clone(t.neighbours), nexthops: maps.Clone(t.nexthops),
		routes: maps.Clone(t.routes), standing: t.standing,
	}
}

func put[K comparable, V any](m *map[K]V, k K, v V) {
	if *m == nil {
		*m = map[K]V{}
	}
	(*m)[k] = v
}

// names are the names of devices by number, from 1 on.
type names []string

// number finds a device's number, 0 if it has none.
func (n names) number(name string) link { return link(slices.Index(n, name) + 1) }

// add gives a device a number, 0 if there is none left.
func (n *names) add(name string) link {
	if l := n.number(name); l != 0 || len(*n) == math.MaxUint16 {
		return l
	}
	*n = append(*n, name)
	return link(len(*n))
}

func (n names) name(l link) string { return n[l-1] }
