package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// Names of the interfaces that the lab makes.
const (
	hostInterface = "eth0"
	podInterface  = "eth0"
	podBridge     = "cni0"
	underlayName  = "underlay"
	farName       = "far"
)

// underlayMTU is that of the hosts' interfaces, in bytes.
const underlayMTU = 1500

// underlay is the network between the hosts: a bridge in a namespace of its
// own, which is also the hosts' gateway. There may be a second bridge, to which it
// is the router; else it leads nowhere.
type underlay struct {
	ns       *Namespace
	families []subnet.Family
}

// segment is a link of the underlay: a bridge and the addresses on it.
type segment struct {
	bridge  string
	network byte
}

// near is the link of the store and of most hosts, far the one behind the router.
var (
	near = segment{underlayName, 99}
	far  = segment{farName, 98}
)

func newUnderlay(families []subnet.Family, segments ...segment) (*underlay, error) {
	ns, err := NewNamespace(underlayName)
	if err != nil {
		return nil, err
	}
	u := &underlay{ns: ns, families: families}
	err = ns.netlink(func(h *netlink.Handle) error {
		for _, s := range segments {
			bridge, err := addBridge(h, s.bridge, underlayMTU)
			if err != nil {
				return err
			}
			// Unless it is set, a bridge's MAC is the least of its ports', and those
			// who know the router by it lose it with that port.
			if err := h.LinkSetHardwareAddr(bridge, underlayMAC(gatewayNumber)); err != nil {
				return fmt.Errorf("set the MAC of %s: %w", s.bridge, err)
			}
			if err := addAddresses(h, bridge, u.prefixes(s, gatewayNumber)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil && len(segments) > 1 {
		err = ns.forward()
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return u, nil
}

func (u *underlay) prefixes(s segment, n int) []netip.Prefix {
	var out []netip.Prefix
	for _, f := range u.families {
		out = append(out, s.prefix(f, n))
	}
	return out
}

// gateways are the addresses of a segment's bridge, for people.
func (u *underlay) gateways(s segment) string {
	var out []string
	for _, p := range u.prefixes(s, gatewayNumber) {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

// underlayMAC is that of the n-th machine's interface on the underlay.
func underlayMAC(n int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x52, 0x00, 0x00, byte(n >> 8), byte(n)}
}

// acquaint makes the others of the underlay known to a machine for good. The
// kernel's table of neighbours that were learnt is one for all namespaces and
// holds 1,024 (gc_thresh3): hosts that all talk to each other soon fill it.
func (u *underlay) acquaint(ns *Namespace, others []int) error {
	if len(others) == 0 {
		return nil
	}
	return ns.netlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(hostInterface)
		if err != nil {
			return fmt.Errorf("find %s: %w", hostInterface, err)
		}
		for _, n := range others {
			for _, f := range u.families {
				entry := &netlink.Neigh{
					LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT,
					IP: near.prefix(f, n).Addr().AsSlice(), HardwareAddr: underlayMAC(n),
				}
				if err := h.NeighSet(entry); err != nil {
					return fmt.Errorf("add neighbour %s: %w", entry.IP, err)
				}
			}
		}
		return nil
	})
}

// plug connects a namespace to a link of the underlay: eth0 with the addresses of
// the number, an MTU in bytes, and a default route. The bridge's port bears the
// namespace's name.
func (u *underlay) plug(ctx context.Context, at segment, ns *Namespace, number, mtu int) error {
	if err := plug(u.ns, at.bridge, ns.name, ns, hostInterface, underlayMAC(number), mtu); err != nil {
		return err
	}
	err := ns.netlink(func(h *netlink.Handle) error {
		return configure(h, hostInterface, u.prefixes(at, number), u.prefixes(at, gatewayNumber))
	})
	if err != nil {
		return err
	}
	return errors.Join(u.ns.awaitUp(ctx, ns.name, at.bridge), ns.awaitUp(ctx, hostInterface))
}

// upLimit bounds the wait for an interface that is up.
const upLimit = 30 * time.Second

// awaitUp waits until interfaces carry packets. The kernel notes a new carrier
// a moment later, from a work queue (linkwatch_do_dev); until then a bridge
// does not forward to the port, and the interface itself drops what it is to
// send (noop_qdisc). A lost first ARP request costs a second.
func (ns *Namespace) awaitUp(ctx context.Context, names ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, upLimit, fmt.Errorf("not up after %s", upLimit))
	defer cancel()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	return ns.netlink(func(h *netlink.Handle) error {
		for _, name := range names {
			for {
				link, err := h.LinkByName(name)
				if err != nil {
					return fmt.Errorf("find %s: %w", name, err)
				}
				if link.Attrs().OperState == netlink.OperUp {
					break
				}
				select {
				case <-poll.C:
				case <-ctx.Done():
					return fmt.Errorf("wait for interface %s (%s): %w", name, link.Attrs().OperState, context.Cause(ctx))
				}
			}
		}
		return nil
	})
}

// plug joins a namespace to a bridge in another by a veth pair. A nil MAC leaves
// the choice to the kernel.
func plug(at *Namespace, bridge, port string, ns *Namespace, name string, mac net.HardwareAddr, mtu int) error {
	return at.netlink(func(h *netlink.Handle) error {
		master, err := h.LinkByName(bridge)
		if err != nil {
			return fmt.Errorf("find bridge %s: %w", bridge, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.MasterIndex = port, mtu, master.Attrs().Index
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerMTU, veth.PeerNamespace = name, uint32(mtu), netlink.NsFd(ns.FD())
		veth.PeerHardwareAddr = mac
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("add veth %s on %s: %w", port, bridge, err)
		}
		if err := h.LinkSetUp(veth); err != nil {
			return fmt.Errorf("bring up %s: %w", port, err)
		}
		return nil
	})
}

// configure gives an interface its addresses and default routes and brings it up.
func configure(h *netlink.Handle, name string, addrs, gateways []netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	if err := addAddresses(h, link, addrs); err != nil {
		return err
	}
	for _, g := range gateways {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: g.Addr().AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add default route via %s: %w", g.Addr(), err)
		}
	}
	return nil
}

// addBridge makes a bridge that is up. It floods multicast: with snooping on,
// neighbour discovery would wait for the first reports.
func addBridge(h *netlink.Handle, name string, mtu int) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	off := false
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if err := h.LinkAdd(bridge); err != nil {
		return nil, fmt.Errorf("add bridge %s: %w", name, err)
	}
	if err := h.LinkSetUp(bridge); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", name, err)
	}
	// Unless it is set, it becomes the least of the ports' (br_mtu_auto_adjust),
	// and to set what is so already does nothing (netif_set_mtu_ext).
	for _, to := range []int{mtu + 1, mtu} {
		if err := h.LinkSetMTU(bridge, to); err != nil {
			return nil, fmt.Errorf("set the MTU of %s: %w", name, err)
		}
	}
	return bridge, nil
}

func addAddresses(h *netlink.Handle, link netlink.Link, addrs []netip.Prefix) error {
	for _, p := range addrs {
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
		}
	}
	return nil
}
