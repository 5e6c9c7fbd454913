package kernel

import (
	"context"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// onLink lists what is on the link of each device by its number, given the routes
// of the main table that lead to links themselves. The table is read again for
// what it leads elsewhere inside these, so that of a table with all of the
// Internet's routes little is kept.
func (k *Kernel) onLink(ctx context.Context, routes []routeMessage) (map[int][]netip.Prefix, error) {
	var links []routeMessage
	for _, r := range routes {
		if r.connected() {
			links = append(links, r)
		}
	}
	var aside []routeMessage
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := collect(ctx, k, func(w *builder, seq uint32) {
			h := w.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, seq, sizeRouteMessage)
			h[0], h[4] = family, unix.RT_TABLE_MAIN
		}, func(m message) (routeMessage, bool) {
			r, ok := parseRoute(m.body)
			ok = ok && r.table == unix.RT_TABLE_MAIN && r.protocol != Protocol && r.tos == 0 && r.flags&(unix.RTM_F_CLONED|unix.RTNH_F_DEAD) == 0 &&
				slices.ContainsFunc(links, func(l routeMessage) bool { return l.overruledBy(r) })
			r.multipath = nil // The buffer is used again.
			return r, ok
		})
		if err != nil {
			return nil, err
		}
		aside = append(aside, found...)
	}
	by := map[int][]netip.Prefix{}
	for _, l := range links {
		for _, p := range l.less(aside) {
			if !slices.Contains(by[l.out], p) {
				by[l.out] = append(by[l.out], p)
			}
		}
	}
	return by, nil
}

// overruledBy tells whether another route takes some of the addresses of one that
// leads to a link: it is more specific, or the kernel prefers it by its metric.
// One out of another link to just the same prefix takes none: the link is there
// all the same, as with two interfaces on one network.
func (r routeMessage) overruledBy(other routeMessage) bool {
	elsewhere := !other.connected()
	switch {
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
