package kernel

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// dumpTries is how often a dump that was interrupted by changes is repeated.
const dumpTries = 10

// Dump implements backend.Kernel. It leaves out FDB entries without a
// destination, neighbours that are not permanent, and a link that has a name of
// ours and is not VXLAN: that one is another's.
//
// The parts are read one after another, so what changes meanwhile may be half
// in it; Watch then says that there is reason to dump again.
func (k *Kernel) Dump(ctx context.Context) (*backend.State, error) {
	release, err := k.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	for range dumpTries {
		d := dumper{k: k, state: &backend.State{}, names: map[int]string{}}
		err = d.run(ctx)
		switch {
		case err == nil:
			return d.state, nil
		case !errors.Is(err, unix.ENODEV): // A device went while its entries were read.
			return nil, err
		}
	}
	return nil, err
}

// dumper makes one dump.
type dumper struct {
	k     *Kernel
	state *backend.State
	names map[int]string // Also of others' devices, as they come up.
	// adopted are the numbers of those devices of ours that were another's.
	adopted []int
}

func (d *dumper) run(ctx context.Context) error {
	indexes, err := d.devices(ctx)
	if err != nil {
		return fmt.Errorf("dump devices: %w", err)
	}
	for _, index := range indexes {
		if err := d.hanging(ctx, index); err != nil {
			return err
		}
	}
	if err := d.nexthops(ctx); err != nil {
		return fmt.Errorf("dump nexthops: %w", err)
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if err := d.routes(ctx, family); err != nil {
			return fmt.Errorf("dump routes: %w", err)
		}
		if err := d.laidOver(ctx, family); err != nil {
			return fmt.Errorf("dump routes of adopted devices: %w", err)
		}
	}
	if err := d.direct(ctx); err != nil {
		return fmt.Errorf("dump routes that are taken over: %w", err)
	}
	return nil
}

// collect makes one dump request, again if it was interrupted, and returns what
// parse made of the answers.
func collect[T any](ctx context.Context, k *Kernel, write func(*builder, uint32), parse func(message) (T, bool)) (out []T, err error) {
	for range dumpTries {
		if out, err = gather(ctx, k, write, parse); !errors.Is(err, errInterrupted) {
			break
		}
	}
	return out, err
}

// gather is collect without repetition.
func gather[T any](ctx context.Context, k *Kernel, write func(*builder, uint32), parse func(message) (T, bool)) ([]T, error) {
	var out []T
	err := k.request(ctx, write, func(m message) {
		if v, ok := parse(m); ok {
			out = append(out, v)
		}
	})
	return out, err
}

// dumpLinks asks for links, of one kind if kind is not empty. The kernel pays
// no heed to a kind that it does not know (rtnl_dump_ifinfo).
func dumpLinks(kind string) func(*builder, uint32) {
	return func(w *builder, seq uint32) {
		w.begin(unix.RTM_GETLINK, unix.NLM_F_DUMP, seq, sizeLinkMessage)
		w.u32(unix.IFLA_EXT_MASK, extFilterSkipStats)
		if kind != "" {
			info := w.nest(unix.IFLA_LINKINFO)
			w.text(unix.IFLA_INFO_KIND, kind)
			w.close(info)
		}
	}
}

func (d *dumper) devices(ctx context.Context) (indexes []int, err error) {
	links, err := collect(ctx, d.k, dumpLinks(vxlanKind), func(m message) (linkMessage, bool) {
		l, ok := parseLink(m.body)
		return l, ok && l.ours(d.k.owns)
	})
	if err != nil {
		return nil, err
	}
	clear(d.k.index)
	d.k.carriers.forget()
	clear(d.k.byNexthop)
	if d.k.events != nil { // What it has yet to read goes on from here or before.
		clear(d.k.events.ours)
		clear(d.k.events.adopted)
	}
	for _, l := range links {
		if d.k.events != nil {
			d.k.events.know(l)
		}
		indexes = append(indexes, l.index)
		d.names[l.index] = l.name
		if l.adopted(d.k.owns) {
			d.adopted = append(d.adopted, l.index)
		}
		d.k.index[l.name] = l.index
		dev := l.device()
		if dev.NoTxChecksum, err = d.k.noTxChecksum(l.name); err != nil {
			return nil, err
		}
		if l.vxlan.lower != 0 {
			dev.Lower = d.name(ctx, l.vxlan.lower)
		}
		if dev.Misfit == "" && l.master != 0 {
			dev.Misfit = "is a port of " + d.name(ctx, l.master)
		}
		d.state.Put(dev)
	}
	return indexes, nil
}

// device gives the entry of a VXLAN link, without what names another device.
func (l linkMessage) device() backend.Device {
	dev := backend.Device{
		Name: l.name, VNI: l.vxlan.vni, Port: l.vxlan.port, Local: l.vxlan.local, MAC: l.mac, MTU: l.mtu,
		Down: !l.up || l.protoDown, Learning: l.vxlan.learning, LinkLocal: l.linkLocal,
		NoForwarding: l.noForwarding, PathFilter: l.pathFilter, Misfit: l.vxlan.odd,
	}
	switch {
	case dev.Misfit != "":
	case l.vxlan.remote.IsValid():
		dev.Misfit = "sends to the group or remote " + l.vxlan.remote.String()
	case !dev.Local.IsValid():
		dev.Misfit = "has no local address"
	}
	return dev
}

// name finds the name of any device, or its number where it is not to be found,
// for it may be in another namespace.
func (d *dumper) name(ctx context.Context, index int) string {
	if name, ok := d.names[index]; ok {
		return name
	}
	name := "number " + strconv.Itoa(index)
	if l, err := d.k.linkByIndex(ctx, index); err == nil {
		name = l.name
	}
	d.names[index] = name
	return name
}

// hanging reads what hangs on one device.
func (d *dumper) hanging(ctx context.Context, index int) error {
	dev := d.names[index]
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		addresses, err := collect(ctx, d.k, func(w *builder, seq uint32) {
			h := w.begin(unix.RTM_GETADDR, unix.NLM_F_DUMP, seq, sizeAddressMessage)
			h[0] = family
			host.PutUint32(h[4:], uint32(index))
		}, func(m message) (addressMessage, bool) {
			a, ok := parseAddress(m.body)
			return a, ok && a.index == index
		})
		if err != nil {
			return fmt.Errorf("dump addresses of %s: %w", dev, err)
		}
		for _, a := range addresses {
			d.state.Put(backend.Address{Dev: dev, Prefix: a.prefix})
		}
	}
	fdb, err := d.k.dumpFDB(ctx, index)
	if err != nil {
		return fmt.Errorf("dump FDB of %s: %w", dev, err)
	}
	for _, n := range fdb {
		d.state.Put(n.fdb(dev))
		if n.nexthop != 0 {
			d.k.byNexthop[fdbKey{dev, n.mac}] = struct{}{}
		}
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		neighbours, err := collect(ctx, d.k, func(w *builder, seq uint32) {
			w.begin(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, seq, sizeNeighMessage)[0] = family
			w.u32(unix.NDA_IFINDEX, uint32(index))
		}, func(m message) (neighbourMessage, bool) {
			n, ok := parseNeighbour(m.body)
			return n, ok && n.family == family && n.index == index && n.shownNeighbour()
		})
		if err != nil {
			return fmt.Errorf("dump neighbours of %s: %w", dev, err)
		}
		for _, n := range neighbours {
			d.state.Put(backend.Neighbour{Dev: dev, IP: n.dst, MAC: n.mac})
		}
	}
	return nil
}

// dumpFDB reads a device's FDB entries that lead anywhere.
func (k *Kernel) dumpFDB(ctx context.Context, index int) ([]neighbourMessage, error) {
	return collect(ctx, k, func(w *builder, seq uint32) {
		h := w.begin(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, seq, sizeNeighMessage)
		h[0] = unix.AF_BRIDGE
		host.PutUint32(h[4:], uint32(index)) // valid_fdb_dump_strict takes the device here, neigh_valid_dump_req by an attribute.
	}, func(m message) (neighbourMessage, bool) {
		n, ok := parseNeighbour(m.body)
		return n, ok && n.index == index && n.shownFDB()
	})
}

// nexthops reads all objects: the kernel does not filter by protocol
// (rtm_dump_nexthop), and the numbers of others' are to be known. An
// interruption is no harm: the dump goes in the order of the numbers and on
// from the one where it was (rtm_dump_walk_nexthops), and another's constant
// changes must not keep us from ever reading it.
func (d *dumper) nexthops(ctx context.Context) error {
	all, err := gather(ctx, d.k, func(w *builder, seq uint32) {
		w.begin(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP, seq, sizeNexthopMessage)
	}, func(m message) (nexthopMessage, bool) {
		return parseNexthop(m.body)
	})
	if err != nil && !errors.Is(err, errInterrupted) {
		return err
	}
	d.k.hops.reset()
	for _, n := range all { // In the order of their numbers.
		if n.protocol != Protocol {
			d.k.hops.takenByAnother(n.id)
			continue
		}
		hop := backend.Nexthop{Gateway: n.gateway}
		if n.index != 0 {
			hop.Dev = d.name(ctx, n.index)
		}
		d.state.Put(d.k.hops.add(hop, n.plain, n.id))
	}
	return nil
}

func (d *dumper) routes(ctx context.Context, family uint8) error {
	routes, err := collect(ctx, d.k, func(w *builder, seq uint32) {
		h := w.begin(unix.RTM_GETROUTE, unix.NLM_F_DUMP, seq, sizeRouteMessage)
		h[0], h[5] = family, Protocol // The kernel filters by protocol (ip_valid_fib_dump_req).
	}, func(m message) (routeMessage, bool) {
		r, ok := parseRoute(m.body)
		return r, ok && r.protocol == Protocol && r.flags&unix.RTM_F_CLONED == 0
	})
	if err != nil {
		return err
	}
	for _, r := range routes {
		dev := ""
		if r.plain() {
			dev = d.carrier(ctx, r.out)
		}
		via, _ := d.k.hops.hop(r.nexthop)
		e := r.route(via, dev)
		d.k.hops.met(e, r.nexthop)
		d.state.Put(e)
	}
	return nil
}

// carrier finds the name of the device of a plain route, whoever's it is.
func (d *dumper) carrier(ctx context.Context, index int) string {
	if name, met := d.k.carriers.names[index]; met {
		return name
	}
	l, err := d.k.linkByIndex(ctx, index)
	if err != nil {
		return "" // It is gone, and the route with it.
	}
	d.k.carriers.know(l)
	return l.name
}

// linkByIndex and linkByName look one link up. A link that is not there is
// ENODEV.
func (k *Kernel) linkByIndex(ctx context.Context, index int) (linkMessage, error) {
	return k.link(ctx, func(w *builder, seq uint32) {
		host.PutUint32(w.begin(unix.RTM_GETLINK, 0, seq, sizeLinkMessage)[4:], uint32(index))
		w.u32(unix.IFLA_EXT_MASK, extFilterSkipStats)
		w.ask()
	})
}

func (k *Kernel) linkByName(ctx context.Context, name string) (linkMessage, error) {
	return k.link(ctx, func(w *builder, seq uint32) {
		w.begin(unix.RTM_GETLINK, 0, seq, sizeLinkMessage)
		w.u32(unix.IFLA_EXT_MASK, extFilterSkipStats)
		w.text(unix.IFLA_IFNAME, name)
		w.ask()
	})
}

func (k *Kernel) link(ctx context.Context, write func(*builder, uint32)) (l linkMessage, err error) {
	ok := false
	err = k.request(ctx, write, func(m message) { l, ok = parseLink(m.body) })
	if err == nil && !ok {
		err = unix.ENODEV
	}
	return l, err
}

// indexOf finds a device's number, from the last dump if it was there.
func (k *Kernel) indexOf(ctx context.Context, dev string) (int, error) {
	if index, ok := k.index[dev]; ok {
		return index, nil
	}
	l, err := k.linkByName(ctx, dev)
	if err != nil {
		return 0, fmt.Errorf("look up device %s: %w", dev, err)
	}
	k.index[dev] = l.index
	return l.index, nil
}
