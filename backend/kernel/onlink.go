package kernel

import (
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
		err = k.dumpMain(ctx, family, func() { t.aside = nil }, func(r routeMessage) {
			if slices.ContainsFunc(t.links, func(l routeMessage) bool { return l.overruledBy(r) }) {
				t.aside = append(t.aside, r)
			}
		})
	}
	return t, err
}

// dumpMain reads the routes of a family's main table but ours, by which packets may
// go. The kernel filters by table only. begin is called at each try.
func (k *Kernel) dumpMain(ctx context.Context, family uint8, begin func(), each func(routeMessage)) error {
	_, err := collect(ctx, k, func(w *builder, seq uint32) {
		begin()
		h := w.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, seq, sizeRouteMessage)
		h[0], h[4] = family, unix.RT_TABLE_MAIN
	}, func(m message) (none struct{}, keep bool) {
		if len(m.body) < sizeRouteMessage || m.body[5] == Protocol { // Of ours there may be many.
			return none, false
		}
		r, ok := parseRoute(m.body)
		if ok && r.table == unix.RT_TABLE_MAIN && r.flags&(unix.RTM_F_CLONED|unix.RTNH_F_DEAD) == 0 {
			r.multipath = slices.Clone(r.multipath) // The buffer is used again.
			each(r)
		}
		return none, false
	})
	return err
}

// onLink adds what is on the link of each device, by its number.
func (t mainTable) onLink(by map[int][]netip.Prefix) {
	for _, l := range t.links {
		for _, p := range l.less(slices.Concat(t.aside, t.links)) {
			if !slices.Contains(by[l.out], p) {
				by[l.out] = append(by[l.out], p)
			}
		}
	}
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

// less gives the prefix of a route to a link without what others take of it.
func (r routeMessage) less(aside []routeMessage) []netip.Prefix {
	left := []netip.Prefix{r.dst}
	for _, other := range aside {
		if !r.overruledBy(other) {
			continue
		}
		var rest []netip.Prefix
		for _, p := range left {
			rest = append(rest, subtract(p, other.dst)...)
		}
		left = rest
	}
	return left
}

// subtract gives the fewest prefixes that hold the addresses of p that are not in
// hole.
func subtract(p, hole netip.Prefix) []netip.Prefix {
	switch {
	case !p.Overlaps(hole):
		return []netip.Prefix{p}
	case hole.Bits() <= p.Bits():
		return nil
	}
	out := make([]netip.Prefix, 0, hole.Bits()-p.Bits())
	for bits := p.Bits() + 1; bits <= hole.Bits(); bits++ {
		// The half of the prefix of one bit less in which the hole is not.
		half := hole.Addr().AsSlice()
		half[(bits-1)/8] ^= 0x80 >> ((bits - 1) % 8)
		a, _ := netip.AddrFromSlice(half)
		out = append(out, netip.PrefixFrom(a, bits).Masked())
	}
	return out
}
