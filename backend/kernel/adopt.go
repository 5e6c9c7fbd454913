package kernel

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// A device that was another's is ours from when it bears our mark: its alias
// (IFLA_IFALIAS), which "ip link" shows, which stays as long as the device does, and
// by which nothing is carried otherwise. So a daemon that is started again finds it,
// and so does who cleans up, whatever was saved.
const mark = "taken over by ripstopd"

// Adopt takes a VXLAN device of another's over as it is, with all that hangs on it.
// Routes on it that the other laid over it, each to a subnet by the subnet's own base
// address, count as ours from then on: Dump shows them, with their protocol number.
func (k *Kernel) Adopt(ctx context.Context, device string) error {
	return k.remark(ctx, device, mark)
}

// Release gives an adopted device back: nothing on it is ours but what bears our
// protocol number.
func (k *Kernel) Release(ctx context.Context, device string) error {
	return k.remark(ctx, device, "")
}

func (k *Kernel) remark(ctx context.Context, device, alias string) error {
	release, err := k.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	l, err := k.linkByName(ctx, device)
	if err == nil && l.kind != vxlanKind {
		err = notVXLAN(l)
	}
	if err == nil {
		err = k.setAlias(ctx, l.index, alias)
	}
	if err != nil {
		return fmt.Errorf("mark device %s: %w", device, err)
	}
	return nil
}

// setAlias sets a link's alias; an empty one takes it away (dev_set_alias).
func (k *Kernel) setAlias(ctx context.Context, index int, alias string) error {
	return k.request(ctx, func(w *builder, seq uint32) {
		host.PutUint32(w.begin(unix.RTM_SETLINK, 0, seq, sizeLinkMessage)[4:], uint32(index))
		w.bytes(unix.IFLA_IFALIAS, []byte(alias))
		w.ask()
	}, nil)
}

// ours tells whether a link of that kind is a device of ours, by its name or by our
// mark; adopted whether it is by the mark alone.
func (l linkMessage) ours(owns func(string) bool) bool {
	return l.kind == vxlanKind && (l.marked || owns(l.name))
}

func (l linkMessage) adopted(owns func(string) bool) bool {
	return l.kind == vxlanKind && l.marked && !owns(l.name)
}

// laidOver tells whether a route is as flannel makes them, whose are the devices that
// are adopted: to a subnet via the subnet's base address, which is on the link by
// decree, with the number of what is set by hand or at boot.
func (r routeMessage) laidOver() bool {
	return r.bare() && r.gateway == r.dst.Addr() && r.flags&unix.RTNH_F_ONLINK != 0 &&
		(r.protocol == unix.RTPROT_BOOT || r.protocol == unix.RTPROT_STATIC)
}

// bare tells whether a route of the main table has nothing but a gateway and its device.
func (r routeMessage) bare() bool {
	return r.plain() && r.table == unix.RT_TABLE_MAIN && r.tos == 0 && len(r.multipath) == 0 && !r.odd && r.mtu == 0 && r.locked == 0 &&
		(r.metric == 0 || r.dst.Addr().Is6() && r.metric == defaultMetricV6)
}

// taken is the entry of a bare route of another's over a device of that name.
func (r routeMessage) taken(dev string) backend.Route {
	return backend.Route{Dst: r.dst, Plain: true, Protocol: r.protocol, Via: backend.Nexthop{Dev: dev, Gateway: r.gateway}}
}

// laidOver reads the routes on adopted devices that another made. Where one of ours
// leads to the same subnet, that goes before.
func (d *dumper) laidOver(ctx context.Context, family uint8) error {
	for _, index := range d.adopted {
		routes, err := collect(ctx, d.k, func(w *builder, seq uint32) {
			h := w.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, seq, sizeRouteMessage)
			h[0], h[4] = family, unix.RT_TABLE_MAIN
			w.u32(unix.RTA_OIF, uint32(index)) // The kernel filters by it (ip_valid_fib_dump_req).
		}, func(m message) (routeMessage, bool) {
			r, ok := parseRoute(m.body)
			return r, ok && r.out == index && r.flags&unix.RTM_F_CLONED == 0 && r.laidOver()
		})
		if err != nil {
			return err
		}
		for _, r := range routes {
			if e := r.taken(d.names[index]); !d.has(e) {
				d.state.Put(e)
			}
		}
	}
	return nil
}

// TakeRoutes has routes of another's over the host's own links count as ours, as long as
// they are there as given: to a subnet through a gateway, of the main table. Dump shows them
// with their protocol number.
func (k *Kernel) TakeRoutes(ctx context.Context, routes []backend.HostRoute) error {
	release, err := k.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	k.direct = make(map[backend.Route]struct{}, len(routes))
	for _, r := range routes {
		k.direct[backend.Route{Dst: r.Dst, Plain: true, Protocol: r.Protocol, Via: backend.Nexthop{Dev: r.Dev, Gateway: r.Gateway}}] = struct{}{}
	}
	return nil
}

// direct reads the routes that were taken over and are not ours yet. Those that it does
// not find are forgotten, so that nobody is asked for them again.
func (d *dumper) direct(ctx context.Context) error {
	if len(d.k.direct) == 0 {
		return nil
	}
	left := map[backend.Route]struct{}{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var found []routeMessage
		err := d.k.dumpMain(ctx, family, func() { found = nil }, func(r routeMessage) {
			if r.bare() {
				found = append(found, r)
			}
		})
		if err != nil {
			return err
		}
		for _, r := range found {
			e := r.taken(d.name(ctx, r.out))
			if _, ok := d.k.direct[e]; !ok {
				continue
			}
			left[e] = struct{}{}
			if !d.has(e) {
				d.state.Put(e)
			}
		}
	}
	d.k.direct = left
	return nil
}

func (d *dumper) has(e backend.Entry) bool {
	_, there := d.state.At(e)
	return there
}
