package subnet

import (
	"bytes"
	"cmp"
	"hash/maphash"
	"iter"
	"net/netip"
	"slices"
	"unique"
)

// A [Mirror] keeps tens of thousands of leases, so they are packed: addresses
// as bytes without a pointer that the garbage collector would have to follow,
// and claims by number.

// leaseID is a lease's number in a leaseTable, which another has once it is gone.
type leaseID uint32

// leaseKey is [Subnets] in few bytes.
type leaseKey struct {
	four [4]byte
	six  [16]byte
	// bits are the prefixes' lengths and one more; 0 is no prefix.
	bits PerFamily[uint8]
}

// packedLease is a Lease in few bytes, with what the mirror knows of it.
type packedLease struct {
	key  leaseKey
	four [4]byte
	six  [16]byte
	mac  PerFamily[MAC]
	vni  PerFamily[uint32]
	// public says which of four and six are set, bit f for family f, and which of
	// them are translated, bit f+2.
	public  uint8
	own     bool
	sound   bool // It can be a peer by itself.
	peer    bool
	mtu     uint16
	echo    uint16
	node    string
	backend unique.Handle[string]

	id, created, modified int64
}

// translated is the first of the bits that say so.
const translated = 1 << len(Families)

func (s Subnets) pack() (k leaseKey) {
	if p := s[V4]; p.IsValid() {
		k.four, k.bits[V4] = p.Addr().As4(), uint8(p.Bits()+1)
	}
	if p := s[V6]; p.IsValid() {
		k.six, k.bits[V6] = p.Addr().As16(), uint8(p.Bits()+1)
	}
	return k
}

func (k leaseKey) subnets() (s Subnets) {
	if k.bits[V4] > 0 {
		s[V4] = netip.PrefixFrom(netip.AddrFrom4(k.four), int(k.bits[V4])-1)
	}
	if k.bits[V6] > 0 {
		s[V6] = netip.PrefixFrom(netip.AddrFrom16(k.six), int(k.bits[V6])-1)
	}
	return s
}

// compare puts leases in the order of their IPv4 subnets and then of their IPv6
// ones; those that have none go first.
func (k leaseKey) compare(o leaseKey) int {
	if c := bytes.Compare(k.four[:], o.four[:]); c != 0 && k.bits[V4] > 0 && o.bits[V4] > 0 {
		return c
	}
	if c := cmp.Compare(k.bits[V4], o.bits[V4]); c != 0 {
		return c
	}
	if c := bytes.Compare(k.six[:], o.six[:]); c != 0 && k.bits[V6] > 0 && o.bits[V6] > 0 {
		return c
	}
	return cmp.Compare(k.bits[V6], o.bits[V6])
}

func (p *packedLease) set(l Lease) {
	*p = packedLease{
		key: l.Subnets.pack(), node: l.Node, backend: unique.Make(l.Backend), mtu: uint16(min(l.MTU, MaxMTU)), echo: l.EchoPort,
		id: l.ID, created: l.Created, modified: l.Modified,
	}
	for _, f := range Families {
		e := l.Endpoints[f]
		p.mac[f], p.vni[f] = e.MAC, e.VNI
		if e.Translated {
			p.public |= translated << f
		}
	}
	if a := l.Endpoints[V4].PublicIP; a.IsValid() {
		p.four, p.public = a.As4(), p.public|1<<V4
	}
	if a := l.Endpoints[V6].PublicIP; a.IsValid() {
		p.six, p.public = a.As16(), p.public|1<<V6
	}
}

// is tells whether it is this lease.
func (p *packedLease) is(l Lease) bool {
	var o packedLease
	o.set(l)
	o.own, o.sound, o.peer = p.own, p.sound, p.peer
	return *p == o
}

func (p *packedLease) lease() Lease {
	l := Lease{
		Subnets: p.key.subnets(), Node: p.node, Backend: p.backend.Value(), MTU: int(p.mtu), EchoPort: p.echo, ID: p.id, Created: p.created, Modified: p.modified,
	}
	for _, f := range Families {
		l.Endpoints[f] = Endpoint{PublicIP: p.publicIP(f), MAC: p.mac[f], VNI: p.vni[f], Translated: p.public&(translated<<f) != 0}
	}
	return l
}

// publicIP is the zero Addr where there is none.
func (p *packedLease) publicIP(f Family) netip.Addr {
	switch {
	case p.public&(1<<f) == 0:
		return netip.Addr{}
	case f == V4:
		return netip.AddrFrom4(p.four)
	}
	return netip.AddrFrom16(p.six)
}

// chunk is the number of leases that are kept together, so that a table grows
// without being copied.
const chunk = 256

// leaseTable keeps leases by their subnets.
type leaseTable struct {
	ids index
	// publics has each public address, as a number of a lease times the number of
	// families and which of them it is of.
	publics index
	kept    []*[chunk]packedLease
	// next is the first number that was never used, free are those that are
	// unused again.
	next leaseID
	free []leaseID
}

// seed is that of all hashes.
var seed = maphash.MakeSeed()

func newLeaseTable() *leaseTable {
	t := &leaseTable{}
	t.ids.hash = func(n uint32) uint64 { return maphash.Comparable(seed, t.at(leaseID(n)).key) }
	t.publics.hash = func(n uint32) uint64 { return hashAddr(t.public(n)) }
	return t
}

func publicOf(id leaseID, f Family) uint32 { return uint32(id)*uint32(len(Families)) + uint32(f) }

// public is what a number in publics stands for.
func (t *leaseTable) public(n uint32) netip.Addr {
	families := uint32(len(Families))
	return t.at(leaseID(n / families)).publicIP(Family(n % families))
}

// hashAddr is by the bytes: an address has a pointer, by which hashing costs more.
func hashAddr(a netip.Addr) uint64 { return maphash.Comparable(seed, a.As16()) }

func (t *leaseTable) len() int { return t.ids.used }

// id is the number of the lease with those subnets.
func (t *leaseTable) id(s Subnets) (leaseID, bool) { return t.idOf(s.pack()) }

func (t *leaseTable) idOf(key leaseKey) (leaseID, bool) {
	n, ok := t.ids.find(maphash.Comparable(seed, key), func(n uint32) bool { return t.at(leaseID(n)).key == key })
	return leaseID(n), ok
}

// at is the lease of a number that is in use. It is good until the lease goes.
func (t *leaseTable) at(id leaseID) *packedLease { return &t.kept[id/chunk][id%chunk] }

// get returns the lease with those subnets.
func (t *leaseTable) get(s Subnets) (Lease, bool) {
	id, ok := t.id(s)
	if !ok {
		return Lease{}, false
	}
	return t.at(id).lease(), true
}

// put adds a lease that is not there, and returns its number.
func (t *leaseTable) put(l Lease) leaseID {
	id := t.next
	if n := len(t.free); n > 0 {
		id, t.free = t.free[n-1], t.free[:n-1]
	} else {
		if t.next++; int(id/chunk) == len(t.kept) {
			t.kept = append(t.kept, new([chunk]packedLease))
		}
	}
	at := t.at(id)
	at.set(l)
	t.ids.add(maphash.Comparable(seed, at.key), uint32(id))
	for _, f := range Families {
		if a := at.publicIP(f); a.IsValid() {
			t.publics.add(hashAddr(a), publicOf(id, f))
		}
	}
	return id
}

// drop removes a lease.
func (t *leaseTable) drop(id leaseID) {
	for _, f := range Families {
		if a := t.at(id).publicIP(f); a.IsValid() {
			t.publics.remove(hashAddr(a), func(n uint32) bool { return n == publicOf(id, f) })
		}
	}
	t.ids.remove(maphash.Comparable(seed, t.at(id).key), func(n uint32) bool { return leaseID(n) == id })
	*t.at(id) = packedLease{} // Its name is nobody's any more.
	t.free = append(t.free, id)
	if t.len() == 0 {
		t.kept, t.next, t.free = nil, 0, nil
	}
}

// all visits every lease, in no order. The table is not to be changed meanwhile.
func (t *leaseTable) all() iter.Seq2[leaseID, *packedLease] {
	return func(yield func(leaseID, *packedLease) bool) {
		for _, value := range t.ids.slots {
			if value != 0 && !yield(leaseID(value-1), t.at(leaseID(value-1))) {
				return
			}
		}
	}
}

// claim is a thing that only one node can have: a subnet of a family, or the
// MAC of a family's device.
type claim struct {
	value  [16]byte
	family Family
	// bits is a prefix's length; macClaim says that it is a MAC.
	bits uint8
}

const macClaim = 255

func claimSubnet(f Family, p netip.Prefix) claim {
	return claim{value: p.Addr().As16(), family: f, bits: uint8(p.Bits())}
}

func claimMAC(f Family, mac MAC) claim {
	c := claim{family: f, bits: macClaim}
	copy(c.value[:], mac[:])
	return c
}

// maxClaims is the most that one lease claims: a subnet and a MAC per family.
const maxClaims = 4

// claims holds who claims what. Of several claimants of one thing the order is
// the caller's.
type claims struct {
	table *leaseTable
	// first has the first claimant of each thing, as a number of a lease times
	// maxClaims and which of its claims it is.
	first index
	// several has all claimants of what more than one claims.
	several map[claim][]leaseID
}

func newClaims(table *leaseTable) *claims {
	c := &claims{table: table, several: map[claim][]leaseID{}}
	c.first.hash = func(n uint32) uint64 { return maphash.Comparable(seed, c.claim(n)) }
	return c
}

// claim is what a number in first stands for.
func (c *claims) claim(n uint32) claim {
	return c.table.at(leaseID(n / maxClaims)).claim(n % maxClaims)
}

// claim is one of the lease's.
func (p *packedLease) claim(which uint32) claim {
	f := Family(which / 2)
	if which%2 == 1 {
		return claimMAC(f, p.mac[f])
	}
	return claimSubnet(f, p.key.subnets()[f])
}

// which is the number of a claim among those of a lease.
func (of claim) which() uint32 {
	if of.bits == macClaim {
		return 2*uint32(of.family) + 1
	}
	return 2 * uint32(of.family)
}

func (of claim) by(id leaseID) uint32 { return uint32(id)*maxClaims + of.which() }

// of returns the first claimant.
func (c *claims) of(what claim) (leaseID, bool) {
	n, ok := c.first.find(maphash.Comparable(seed, what), func(n uint32) bool { return c.claim(n) == what })
	return leaseID(n / maxClaims), ok
}

// all lists the claimants. It does not allocate where there is one.
func (c *claims) all(of claim, room *[1]leaseID) []leaseID {
	if len(c.several) > 0 {
		if ids, ok := c.several[of]; ok {
			return ids
		}
	}
	id, ok := c.of(of)
	if !ok {
		return nil
	}
	room[0] = id
	return room[:]
}

// add makes a lease one of the claimants, in the order that compare gives them.
func (c *claims) add(of claim, id leaseID, compare func(a, b leaseID) int) {
	first, ok := c.of(of)
	if !ok {
		c.first.add(maphash.Comparable(seed, of), of.by(id))
		return
	}
	by := c.several[of]
	if by == nil {
		by = []leaseID{first}
	}
	by = append(by, id)
	slices.SortFunc(by, compare)
	c.several[of] = by
	c.lead(of, by[0])
}

// lead makes a lease the first claimant of what has one.
func (c *claims) lead(of claim, id leaseID) {
	c.first.replace(maphash.Comparable(seed, of), func(n uint32) bool { return c.claim(n) == of }, of.by(id))
}

// remove takes a claimant away, before its lease goes.
func (c *claims) remove(of claim, id leaseID) {
	by := slices.DeleteFunc(c.several[of], func(o leaseID) bool { return o == id })
	switch len(by) {
	case 0:
		c.first.remove(maphash.Comparable(seed, of), func(n uint32) bool { return n == of.by(id) })
	case 1:
		delete(c.several, of)
		c.lead(of, by[0])
	default:
		c.several[of] = by
		c.lead(of, by[0])
	}
}
