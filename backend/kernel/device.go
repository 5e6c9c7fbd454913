package kernel

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// vxlanKind is IFLA_INFO_KIND of a VXLAN device.
const vxlanKind = "vxlan"

func (k *Kernel) applyDevice(ctx context.Context, v backend.Verb, d backend.Device) error {
	switch v {
	case backend.Add:
		return k.addDevice(ctx, d)
	case backend.Replace:
		return k.changeDevice(ctx, d)
	default:
		return k.deleteDevice(ctx, d)
	}
}

// addDevice makes a device that is down, gives it its settings, keeps it from
// making itself a link-local address, and takes it up. It takes several requests,
// for the kernel pays no heed to IFLA_AF_SPEC at creation (rtnl_create_link), and
// afterwards sets flags before it (do_setlink). What was made goes again if a
// later step fails.
func (k *Kernel) addDevice(ctx context.Context, d backend.Device) error {
	err := k.request(ctx, func(w *builder, seq uint32) {
		w.begin(unix.RTM_NEWLINK, exclusiveFlags, seq, sizeLinkMessage)
		w.text(unix.IFLA_IFNAME, d.Name)
		w.bytes(unix.IFLA_ADDRESS, d.MAC[:])
		w.u32(unix.IFLA_MTU, uint32(d.MTU))
		writeVXLAN(w, d, true)
		w.ask()
	}, nil)
	if errors.Is(err, unix.EEXIST) {
		return k.explainDevice(ctx, d, err)
	}
	if err != nil {
		return fmt.Errorf("create device: %w", err)
	}
	delete(k.index, d.Name)
	index, err := k.indexOf(ctx, d.Name)
	if err == nil && !k.owns(d.Name) { // It takes an adopted one's place.
		err = k.setAlias(ctx, index, mark)
	}
	if err == nil {
		err = k.settle(ctx, d, index)
	}
	if err == nil {
		err = k.takeUp(ctx, index)
	}
	if err == nil {
		return nil
	}
	if index != 0 {
		// A ctx that has ended is no reason to leave half a device behind.
		err = errors.Join(err, k.deleteIndex(context.WithoutCancel(ctx), d.Name, index))
	}
	return err
}

// writeVXLAN writes what kind of device it is; of what identifies a device only
// when it is made, for the kernel refuses some of it later even unchanged
// (vxlan_nl2conf).
func writeVXLAN(w *builder, d backend.Device, create bool) {
	info := w.nest(unix.IFLA_LINKINFO)
	w.text(unix.IFLA_INFO_KIND, vxlanKind)
	data := w.nest(unix.IFLA_INFO_DATA)
	if create {
		w.u32(unix.IFLA_VXLAN_ID, d.VNI)
		w.u16BE(unix.IFLA_VXLAN_PORT, d.Port)
	}
	if d.Local.Is4() {
		w.addr(unix.IFLA_VXLAN_LOCAL, d.Local)
	} else {
		w.addr(unix.IFLA_VXLAN_LOCAL6, d.Local)
	}
	w.u8(unix.IFLA_VXLAN_LEARNING, 0)
	w.close(data)
	w.close(info)
}

// forbidLinkLocal keeps a device from making itself a link-local address.
func (k *Kernel) forbidLinkLocal(ctx context.Context, index int) error {
	err := k.request(ctx, func(w *builder, seq uint32) {
		host.PutUint32(w.begin(unix.RTM_SETLINK, 0, seq, sizeLinkMessage)[4:], uint32(index))
		spec := w.nest(unix.IFLA_AF_SPEC)
		inet6 := w.nest(unix.AF_INET6)
		w.u8(unix.IFLA_INET6_ADDR_GEN_MODE, addrGenModeNone)
		w.close(inet6)
		w.close(spec)
		w.ask()
	}, nil)
	// Without IPv6, in the kernel or on the device, there is nothing to forbid
	// (rtnl_af_lookup, inet6_validate_link_af).
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("forbid link-local addresses: %w", err)
	}
	return nil
}

// takeUp forbids link-local addresses and takes the device up.
func (k *Kernel) takeUp(ctx context.Context, index int) error {
	if err := k.forbidLinkLocal(ctx, index); err != nil {
		return err
	}
	err := k.request(ctx, func(w *builder, seq uint32) {
		h := w.begin(unix.RTM_SETLINK, 0, seq, sizeLinkMessage)
		host.PutUint32(h[4:], uint32(index))
		host.PutUint32(h[8:], unix.IFF_UP)
		host.PutUint32(h[12:], unix.IFF_UP)
		w.ask()
	}, nil)
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("take device up: %w: another program has the UDP port; stop it or configure another port: %w", backend.ErrInTheWay, err)
	}
	if err != nil {
		return fmt.Errorf("take device up: %w", err)
	}
	return nil
}

// giveCarrier gives a device back the carrier that a hand took by protodown,
// which the kernel does only when no reason for that is left (do_set_proto_down).
func (k *Kernel) giveCarrier(ctx context.Context, index int) error {
	err := k.request(ctx, func(w *builder, seq uint32) {
		host.PutUint32(w.begin(unix.RTM_SETLINK, 0, seq, sizeLinkMessage)[4:], uint32(index))
		reasons := w.nest(unix.IFLA_PROTO_DOWN_REASON)
		w.u32(unix.IFLA_PROTO_DOWN_REASON_MASK, math.MaxUint32)
		w.u32(unix.IFLA_PROTO_DOWN_REASON_VALUE, 0)
		w.close(reasons)
		w.u8(unix.IFLA_PROTO_DOWN, 0)
		w.ask()
	}, nil)
	if err != nil {
		return fmt.Errorf("give device its carrier back: %w", err)
	}
	return nil
}

// changeDevice changes in place all that can be.
func (k *Kernel) changeDevice(ctx context.Context, d backend.Device) error {
	l, err := k.ourLink(ctx, d.Name)
	if err != nil {
		return err
	}
	if l.vxlan.vni != d.VNI || l.vxlan.port != d.Port {
		return fmt.Errorf("change device: %w: VNI and port cannot be changed in place", unix.EOPNOTSUPP)
	}
	switch {
	case l.vxlan.local != d.Local:
		err = k.renewAround(ctx, l, func() error { return k.changeVXLAN(ctx, d, l.index) })
	case l.vxlan.learning:
		err = k.changeVXLAN(ctx, d, l.index)
	}
	if err != nil {
		return err
	}
	// A request of its own, for vxlan_nl2conf refuses one that names the MTU
	// beside its own data. Even the same address would be announced as a change
	// and so flush neighbours (dev_set_mac_address).
	if l.mac != d.MAC || l.mtu != d.MTU {
		err = k.request(ctx, func(w *builder, seq uint32) {
			host.PutUint32(w.begin(unix.RTM_SETLINK, 0, seq, sizeLinkMessage)[4:], uint32(l.index))
			if l.mac != d.MAC {
				w.bytes(unix.IFLA_ADDRESS, d.MAC[:])
			}
			if l.mtu != d.MTU {
				w.u32(unix.IFLA_MTU, uint32(d.MTU))
			}
			w.ask()
		}, nil)
		if err != nil {
			return fmt.Errorf("change MAC or MTU: %w", err)
		}
	}
	if l.noForwarding || l.pathFilter {
		if err := k.openIPv4(ctx, l.index); err != nil {
			return err
		}
	}
	off, err := k.noTxChecksum(d.Name)
	if err == nil && off != d.NoTxChecksum {
		err = k.setTxChecksum(d.Name, !d.NoTxChecksum)
	}
	if err != nil {
		return err
	}
	if l.protoDown {
		if err := k.giveCarrier(ctx, l.index); err != nil {
			return err
		}
	}
	if l.up {
		// The kernel forgets the mode with its IPv6 state, as when the MTU was
		// below 1280 for a while (addrconf_notify, NETDEV_CHANGEMTU).
		return k.forbidLinkLocal(ctx, l.index)
	}
	return k.takeUp(ctx, l.index)
}

// changeVXLAN changes what writeVXLAN writes.
func (k *Kernel) changeVXLAN(ctx context.Context, d backend.Device, index int) error {
	err := k.request(ctx, func(w *builder, seq uint32) {
		host.PutUint32(w.begin(unix.RTM_NEWLINK, 0, seq, sizeLinkMessage)[4:], uint32(index))
		writeVXLAN(w, d, false)
		w.ask()
	}, nil)
	if err != nil {
		return fmt.Errorf("change device: %w", err)
	}
	return nil
}

func (k *Kernel) deleteDevice(ctx context.Context, d backend.Device) error {
	l, err := k.ourLink(ctx, d.Name)
	if errors.Is(err, unix.ENODEV) {
		k.forgetDevice(d.Name)
		return nil
	}
	if err != nil {
		return err
	}
	return k.deleteIndex(ctx, d.Name, l.index)
}

func (k *Kernel) deleteIndex(ctx context.Context, name string, index int) error {
	err := k.request(ctx, func(w *builder, seq uint32) {
		host.PutUint32(w.begin(unix.RTM_DELLINK, 0, seq, sizeLinkMessage)[4:], uint32(index))
		w.ask()
	}, nil)
	if err != nil && !gone(err) {
		return fmt.Errorf("delete device: %w", err)
	}
	k.forgetDevice(name)
	return nil
}

func (k *Kernel) forgetDevice(name string) {
	delete(k.index, name)
	k.hops.removeOn(name)
}

// ourLink looks a device up and refuses one that is not VXLAN: it has our name
// and is another's.
func (k *Kernel) ourLink(ctx context.Context, name string) (linkMessage, error) {
	l, err := k.linkByName(ctx, name)
	if err != nil {
		return l, fmt.Errorf("look up device: %w", err)
	}
	switch {
	case l.kind != vxlanKind:
		return l, notVXLAN(l)
	case !l.ours(k.owns):
		return l, fmt.Errorf("%w: VXLAN device %s is another's", backend.ErrInTheWay, name)
	}
	k.index[name] = l.index
	return l, nil
}

func notVXLAN(l linkMessage) error {
	kind := l.kind
	if kind == "" {
		kind = "hardware"
	}
	return fmt.Errorf("%w: %s is a %s device, not VXLAN; rename or remove it", backend.ErrInTheWay, l.name, kind)
}

// explainDevice says what a new device has met: one of its name, or one of its
// VNI, port and family (vxlan_vni_in_use).
func (k *Kernel) explainDevice(ctx context.Context, d backend.Device, cause error) error {
	switch l, err := k.linkByName(ctx, d.Name); {
	case err == nil && l.kind != vxlanKind:
		return fmt.Errorf("%w: %w", notVXLAN(l), cause)
	case err == nil:
		return fmt.Errorf("%w: %s is there already: %w", backend.ErrInTheWay, d.Name, cause)
	}
	links, err := collect(ctx, k, dumpLinks(vxlanKind), func(m message) (linkMessage, bool) {
		l, ok := parseLink(m.body)
		return l, ok && l.kind == vxlanKind && l.vxlan.vni == d.VNI && l.vxlan.port == d.Port && l.vxlan.is4() == d.Local.Is4()
	})
	if err == nil && len(links) > 0 {
		return fmt.Errorf("%w: VXLAN device %s has VNI %d on UDP port %d; remove it or configure another VNI or port: %w",
			backend.ErrInTheWay, links[0].name, d.VNI, d.Port, cause)
	}
	return fmt.Errorf("%w: %w", backend.ErrInTheWay, cause)
}

// is4 tells the family of a tunnel as vxlan_nl2conf does: IPv4 unless an address
// says otherwise.
func (x vxlanData) is4() bool {
	return !isV6(x.local) && !isV6(x.remote)
}

func isV6(a netip.Addr) bool { return a.IsValid() && a.Is6() }
