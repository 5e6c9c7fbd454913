package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// Interfaces lists the host's interfaces but for our own devices, in the
// kernel's order. Of their addresses it gives those of global scope, without
// IPv6 addresses that another host has (IFA_F_DADFAILED) or that change for
// privacy's sake (IFA_F_TEMPORARY); those that are to be given up (IFA_F_DEPRECATED) are
// there only where the interface has no other of the family. An interface has the default if a default
// route of the main table leads by it, alone or among others, and none has a
// lower metric. On its link are the prefixes to which the main table has a route
// out of it without a gateway, less those inside them that another route of it
// leads elsewhere: through a gateway, out of another link, or nowhere.
func (k *Kernel) Interfaces(ctx context.Context) ([]backend.Interface, error) {
	links, err := k.links(ctx)
	if err != nil {
		return nil, err
	}
	release, err := k.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	addresses, err := k.globalAddresses(ctx)
	if err != nil {
		return nil, fmt.Errorf("dump addresses: %w", err)
	}
	broadcasts, err := k.broadcasts(ctx)
	if err != nil {
		return nil, fmt.Errorf("dump routes: %w", err)
	}
	v4, err := k.mainTable(ctx, unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("dump routes: %w", err)
	}
	v6, err := k.mainTable(ctx, unix.AF_INET6)
	if err != nil {
		return nil, fmt.Errorf("dump routes: %w", err)
	}
	defaultV4, defaultV6 := k.defaults(ctx, v4.defaults), k.defaults(ctx, v6.defaults)
	onLink := map[int][]netip.Prefix{}
	for _, table := range []mainTable{v4, v6} {
		table.onLink(onLink)
	}
	var out []backend.Interface
	for _, l := range links {
		if k.owns(l.name) || l.ours(k.owns) {
			continue
		}
		out = append(out, backend.Interface{
			Name: l.name, Up: l.up && l.running, MTU: l.mtu, OnLink: onLink[l.index],
			Addresses: addresses[l.index].own, Tentative: addresses[l.index].tentative, Broadcasts: broadcasts[l.index],
			DefaultV4: defaultV4[l.index], DefaultV6: defaultV6[l.index],
		})
	}
	return out, nil
}

// addressesOf are the global addresses of a link, and what follows from them; see
// [backend.Interface].
type addressesOf struct {
	own       []netip.Addr
	tentative bool
}

// globalAddresses reads them by the numbers of the links.
func (k *Kernel) globalAddresses(ctx context.Context) (map[int]addressesOf, error) {
	all, err := collect(ctx, k, func(w *builder, seq uint32) {
		w.begin(unix.RTM_GETADDR, unix.NLM_F_DUMP, seq, sizeAddressMessage)
	}, func(m message) (addressMessage, bool) {
		a, ok := parseAddress(m.body)
		ok = ok && a.scope == unix.RT_SCOPE_UNIVERSE
		about := uint32(unix.IFA_F_DADFAILED)
		if a.prefix.Addr().Is6() {
			about |= unix.IFA_F_TEMPORARY // IPv4 has IFA_F_SECONDARY in the same place.
		}
		return a, ok && a.flags&about == 0
	})
	by := map[int]addressesOf{}
	for _, a := range lasting(all) {
		addr, l := a.prefix.Addr(), by[a.index]
		if addr.Is6() {
			l.tentative = l.tentative || a.flags&unix.IFA_F_TENTATIVE != 0 && a.flags&unix.IFA_F_OPTIMISTIC == 0
			// The kernel puts a new one before those of its scope
			// (ipv6_link_dev_addr); an address that comes for a time, as a
			// failover's does, must not go before the host's own.
			l.own = slices.Insert(l.own, firstV6(l.own), addr)
		} else {
			l.own = append(l.own, addr)
		}
		by[a.index] = l
	}
	return by, err
}

// broadcasts are by the numbers of the links the IPv4 addresses that the kernel takes for
// everybody's there: the last of a prefix, before Linux 5.14 the first too, and what an
// address was given to be so (fib_add_ifaddr). Those of a link in a VRF are in its table, as
// its prefixes are, of which OnLink has none either.
func (k *Kernel) broadcasts(ctx context.Context) (map[int][]netip.Addr, error) {
	by := map[int][]netip.Addr{}
	err := k.dumpTable(ctx, unix.AF_INET, unix.RT_TABLE_LOCAL, func() { clear(by) }, func(r routeMessage) {
		if r.typ == unix.RTN_BROADCAST && r.dst.IsSingleIP() {
			by[r.out] = append(by[r.out], r.dst.Addr())
		}
	})
	for link, list := range by {
		slices.SortFunc(list, netip.Addr.Compare)
		by[link] = slices.Compact(list) // Prefixes of two sizes may end alike.
	}
	return by, err
}

// lasting leaves out addresses that are to be given up, where their link has another of
// the family: nothing new is to begin with them (RFC 4862 section 5.5.4), but what has no
// other is reached by them still.
func lasting(all []addressMessage) []addressMessage {
	type of struct {
		index int
		six   bool
	}
	good := map[of]bool{}
	key := func(a addressMessage) of { return of{a.index, a.prefix.Addr().Is6()} }
	for _, a := range all {
		if a.flags&unix.IFA_F_DEPRECATED == 0 {
			good[key(a)] = true
		}
	}
	return slices.DeleteFunc(all, func(a addressMessage) bool { return a.flags&unix.IFA_F_DEPRECATED != 0 && good[key(a)] })
}

// firstV6 is where the IPv6 addresses begin in a list that has IPv4's first.
func firstV6(list []netip.Addr) int {
	if i := slices.IndexFunc(list, netip.Addr.Is6); i >= 0 {
		return i
	}
	return len(list)
}

// connected tells whether a route leads to a link itself.
func (r routeMessage) connected() bool {
	return r.typ == unix.RTN_UNICAST && r.dst.Bits() > 0 && r.out != 0 && r.nexthop == 0 && !r.gateway.IsValid() && len(r.multipath) == 0 &&
		!r.dst.Addr().IsLinkLocalUnicast() && !r.dst.Addr().IsMulticast()
}

// defaults tells by which devices a family's default route leaves.
func (k *Kernel) defaults(ctx context.Context, routes []routeMessage) map[int]bool {
	lowest := []routeMessage(nil)
	for _, r := range routes {
		switch {
		case len(lowest) == 0 || r.metric == lowest[0].metric:
			lowest = append(lowest, r)
		case r.metric < lowest[0].metric:
			lowest = []routeMessage{r}
		}
	}
	by := map[int]bool{}
	for _, r := range lowest {
		out := r.devices()
		if len(out) == 0 && r.nexthop != 0 {
			// With nexthop_compat_mode off a route does not repeat what its object says.
			if n, err := k.nexthopByID(ctx, r.nexthop); err == nil {
				out = append(out, n.index)
			}
		}
		for _, index := range out {
			by[index] = true
		}
	}
	return by
}

// devices are the numbers of those by which a route leaves.
func (r routeMessage) devices() (out []int) {
	if r.out != 0 {
		out = append(out, r.out)
	}
	// struct rtnexthop: length, flags, hops, device; attributes follow.
	for b := r.multipath; len(b) >= sizeRouteNexthopItem; {
		n := int(host.Uint16(b))
		if n < sizeRouteNexthopItem || n > len(b) {
			break
		}
		out = append(out, linkIndex(b))
		b = b[min(align(n), len(b)):]
	}
	return out
}
