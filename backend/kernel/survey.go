package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// mostSurveyed bounds the routes that a survey lists.
const mostSurveyed = 1 << 16

// Survey reads what of the host's own may be in the way of a network of the given
// address spaces. It changes nothing.
func (k *Kernel) Survey(ctx context.Context, networks []netip.Prefix) (backend.Survey, error) {
	links, err := k.links(ctx)
	if err != nil {
		return backend.Survey{}, err
	}
	release, err := k.take(ctx)
	if err != nil {
		return backend.Survey{}, err
	}
	defer release()
	var s backend.Survey
	names := map[int]string{}
	for _, l := range links {
		names[l.index] = l.name
		if l.kind == vxlanKind && !k.owns(l.name) {
			s.Tunnels = append(s.Tunnels, l.tunnel())
		}
	}
	ours := func(index int) bool {
		return slices.ContainsFunc(links, func(l linkMessage) bool { return l.index == index && l.ours(k.owns) })
	}
	within := func(p netip.Prefix) bool { return slices.ContainsFunc(networks, p.Overlaps) }

	addresses, err := collect(ctx, k, func(w *builder, seq uint32) {
		w.begin(unix.RTM_GETADDR, unix.NLM_F_DUMP, seq, sizeAddressMessage)
	}, func(m message) (addressMessage, bool) {
		a, ok := parseAddress(m.body)
		return a, ok && within(netip.PrefixFrom(a.prefix.Addr(), a.prefix.Addr().BitLen()))
	})
	if err != nil {
		return s, fmt.Errorf("dump addresses: %w", err)
	}
	for _, a := range addresses {
		s.Addresses = append(s.Addresses, backend.HostAddress{Prefix: a.prefix, Dev: names[a.index], Ours: ours(a.index)})
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var routes []routeMessage
		err := k.dumpMain(ctx, family, func() { routes = nil }, func(r routeMessage) {
			if r.dst.Bits() > 0 && within(r.dst) && len(routes) < mostSurveyed && !slices.ContainsFunc(r.devices(), ours) {
				routes = append(routes, r)
			}
		})
		if err != nil {
			return s, fmt.Errorf("dump routes: %w", err)
		}
		for _, r := range routes {
			s.Routes = append(s.Routes, k.hostRoute(ctx, r, names))
		}
	}
	s.Flanneld, err = flanneld(k.ns)
	return s, err
}

// tunnel describes a VXLAN device as a survey does.
func (l linkMessage) tunnel() backend.Tunnel {
	t := backend.Tunnel{
		Name: l.name, VNI: l.vxlan.vni, Port: l.vxlan.port, MAC: l.mac, Adopted: l.marked,
		Odd: l.device().Misfit, V6: !l.vxlan.is4(), Exclusive: l.vxlan.exclusive,
	}
	if t.Odd == "" && l.master != 0 {
		t.Odd = "is a port of another device"
	}
	return t
}

// hostRoute finds by what a route leads on. That serves its description alone.
func (k *Kernel) hostRoute(ctx context.Context, r routeMessage, names map[int]string) backend.HostRoute {
	out := backend.HostRoute{Dst: r.dst, Gateway: r.gateway, Protocol: r.protocol, Nowhere: r.typ != unix.RTN_UNICAST}
	via := r.devices()
	if len(via) == 0 && r.nexthop != 0 {
		if n, err := k.nexthopByID(ctx, r.nexthop); err == nil {
			via, out.Gateway = append(via, n.index), n.gateway
		}
	}
	if len(via) > 0 {
		out.Dev = names[via[0]]
	}
	return out
}
