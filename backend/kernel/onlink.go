package kernel

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// mainTable is what of a family's main table says where interfaces lead. What is
// ours is left out.
type mainTable struct {
	// defaults are the unicast default routes, links those that lead to links
	// themselves, and aside others that may take some of their addresses.
	defaults, links, aside []routeMessage
}

// mostAside is how many routes are kept before it is known whether they matter.
const mostAside = 4096

// mainTable reads it. What matters aside is known when all links are: of a table
// with all of the Internet's routes little is kept, and it is read twice.
func (k *Kernel) mainTable(ctx context.Context, family uint8) (t mainTable, err error) {
	whole := true
	err = k.dumpMain(ctx, family, func() { t, whole = mainTable{}, true }, func(r routeMessage) {
		switch {
		case r.dst.Bits() == 0 && r.typ == unix.RTN_UNICAST:
			t.defaults = append(t.defaults, r)
		case r.connected():
			t.links = append(t.links, r)
		case r.dst.Bits() == 0:
		case len(t.aside) < mostAside:
			t.aside = append(t.aside, r)
		default:
			whole = false
		}
	})
	if err == nil && !whole {
		inside := insideOf(t.links)
		err = k.dumpMain(ctx, family, func() { t.aside = nil }, func(r routeMessage) {
			if inside(r.dst) {
				t.aside = append(t.aside, r)
			}
		})
	}
	return t, err
}

// dumpMain reads the routes of a family's main table but ours, by which packets may
// go. begin is called at each try.
func (k *Kernel) dumpMain(ctx context.Context, family uint8, begin func(), each func(routeMessage)) error {
	return k.dumpTable(ctx, family, unix.RT_TABLE_MAIN, begin, each)
}

// dumpTable is dumpMain of any table. The kernel filters by table only.
func (k *Kernel) dumpTable(ctx context.Context, family, table uint8, begin func(), each func(routeMessage)) error {
	_, err := collect(ctx, k, func(w *builder, seq uint32) {
		begin()
		h := w.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, seq, sizeRouteMessage)
		h[0], h[4] = family, table
	}, func(m message) (none struct{}, keep bool) {
		if len(m.body) < sizeRouteMessage || m.body[5] == Protocol { // Of ours there may be many.
			return none, false
		}
		r, ok := parseRoute(m.body)
		if ok && r.table == uint32(table) && r.flags&(unix.RTM_F_CLONED|unix.RTNH_F_DEAD) == 0 {
			r.multipath = slices.Clone(r.multipath) // The buffer is used again.
			each(r)
		}
		return none, false
	})
	return err
}

// insideOf returns what tells whether a prefix is that of one of the links, or inside
// it. It costs a look-up for each length that these have.
func insideOf(links []routeMessage) func(netip.Prefix) bool {
	have, lengths := map[netip.Prefix]bool{}, []int(nil)
	for _, l := range links {
		have[l.dst] = true
		lengths = append(lengths, l.dst.Bits())
	}
	slices.Sort(lengths)
	lengths = slices.Compact(lengths)
	return func(p netip.Prefix) bool {
		for _, bits := range lengths {
			if bits > p.Bits() {
				return false
			}
			if have[netip.PrefixFrom(p.Addr(), bits).Masked()] {
				return true
			}
		}
		return false
	}
}

// onLink adds what is on the link of each device, by its number: the fewest prefixes,
// sorted. It takes time n log n for n routes, unless many links lead to prefixes that
// hold others' at once.
func (t mainTable) onLink(by map[int][]netip.Prefix) {
	all := make([]*routeMessage, 0, len(t.aside)+len(t.links)) // They are large to move about.
	for _, routes := range [][]routeMessage{t.aside, t.links} {
		for i := range routes {
			all = append(all, &routes[i])
		}
	}
	slices.SortFunc(all, compareRoutes)
	for _, l := range t.links {
		by[l.out] = l.less(by[l.out], all)
	}
	for out, list := range by {
		slices.SortFunc(list, comparePrefixes)
		by[out] = outermost(list)
	}
}

// comparePrefixes orders prefixes by their first address, and what holds others before
// them. What is inside one follows it without a gap.
func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// compareRoutes orders routes by prefix, those of one so that none overrules another's
// if the first does not.
func compareRoutes(a, b *routeMessage) int {
	rank := func(r *routeMessage) int {
		if r.tos != 0 || r.connected() {
			return 1
		}
		return 0
	}
	return cmp.Or(comparePrefixes(a.dst, b.dst), cmp.Compare(rank(a), rank(b)), cmp.Compare(a.metric, b.metric))
}

// outermost leaves out of sorted prefixes those inside others.
func outermost(sorted []netip.Prefix) []netip.Prefix {
	out := sorted[:0]
	for _, p := range sorted {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

// overruledBy tells whether another route takes some of the addresses of one that
// leads to a link: it is more specific, or the kernel prefers it by its metric.
// One out of another link to just the same prefix takes none: the link is there
// all the same, as with two interfaces on one network.
func (r routeMessage) overruledBy(other routeMessage) bool {
	elsewhere := !other.connected()
	switch {
	case other.tos != 0: // It is for some packets only.
		return false
	case other.dst == r.dst:
		return elsewhere && other.metric < r.metric
	case other.dst.Bits() <= r.dst.Bits() || !r.dst.Contains(other.dst.Addr()):
		return false
	}
	return elsewhere || other.out != r.out
}

// less adds the prefix of a route to a link without what others take of it, which are
// sorted by compareRoutes.
func (r routeMessage) less(to []netip.Prefix, all []*routeMessage) []netip.Prefix {
	first, _ := slices.BinarySearchFunc(all, r.dst, func(o *routeMessage, p netip.Prefix) int { return comparePrefixes(o.dst, p) })
	if r.overruledBy(*all[first]) { // It is of just the same prefix, if only r itself.
		return to
	}
	rest := all[first:] // There may be many of the same prefix, as where each pod's link has the address of one gateway.
	beyond, _ := slices.BinarySearchFunc(rest, r.dst, func(o *routeMessage, p netip.Prefix) int { return cmp.Or(comparePrefixes(o.dst, p), -1) })
	var holes []netip.Prefix
	for _, other := range rest[beyond:] {
		switch {
		case !r.dst.Contains(other.dst.Addr()):
			return without(to, r.dst, holes)
		case len(holes) > 0 && holes[len(holes)-1].Contains(other.dst.Addr()): // All of it is taken.
		case r.overruledBy(*other):
			holes = append(holes, other.dst)
		}
	}
	return without(to, r.dst, holes)
}

// without adds the fewest prefixes that hold the addresses of p that are in none of the
// holes, which are inside p, apart from each other, and sorted.
func without(to []netip.Prefix, p netip.Prefix, holes []netip.Prefix) []netip.Prefix {
	switch {
	case len(holes) == 0:
		return append(to, p)
	case holes[0] == p:
		return to
	}
	low := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	upper := p.Addr().AsSlice()
	upper[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(upper)
	high := netip.PrefixFrom(a, p.Bits()+1)
	split, _ := slices.BinarySearchFunc(holes, a, func(h netip.Prefix, a netip.Addr) int { return h.Addr().Compare(a) })
	return without(without(to, low, holes[:split]), high, holes[split:])
}
