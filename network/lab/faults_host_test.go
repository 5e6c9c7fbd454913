package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// hostFaults are what another hand does to the kernel of a host.
var hostFaults = []fault{
	{name: "FDB entry deleted", breaks: onePeer, do: drifts(deleteEntries(func(e target) bool { return e.peer && e.kind == "fdb" }))},
	{name: "neighbour deleted", breaks: onePeer, do: drifts(deleteEntries(func(e target) bool { return e.peer && e.kind == "neighbour" }))},
	{name: "route deleted", breaks: onePeer, do: drifts(deleteEntries(func(e target) bool { return e.peer && e.kind == "route" }))},
	{name: "nexthop deleted", breaks: onePeer, do: drifts(deleteEntries(func(e target) bool { return e.peer && e.kind == "nexthop" }))},
	{name: "address deleted", breaks: nobody, do: drifts(deleteEntries(func(e target) bool { return e.kind == "address" }))},
	{name: "all routes of protocol 82 flushed", breaks: allPeers, do: drifts(deleteEntries(func(e target) bool { return e.kind == "route" }))},
	{name: "all FDB entries, neighbours, routes, nexthops deleted", breaks: allPeers, do: drifts(deleteEntries(func(e target) bool { return e.kind != "address" }))},
	{name: "device deleted", breaks: allPeers, do: drifts(toDevices(func(n *netlink.Handle, v *netlink.Vxlan) error { return n.LinkDel(v) }))},
	{name: "device set down", breaks: allPeers, do: drifts(toDevices(func(n *netlink.Handle, v *netlink.Vxlan) error { return n.LinkSetDown(v) }))},
	{name: "device set down and up", breaks: allPeers, do: drifts(toDevices(func(n *netlink.Handle, v *netlink.Vxlan) error {
		return errors.Join(n.LinkSetDown(v), n.LinkSetUp(v))
	}))},
	{name: "device's carrier taken", breaks: allPeers, lingers: true, do: drifts(toDevicesIn(func(v *netlink.Vxlan) error { return protoDown(v.Index, true) }))},
	{name: "device given another MAC", breaks: allPeers, do: drifts(toDevices(func(n *netlink.Handle, v *netlink.Vxlan) error {
		return n.LinkSetHardwareAddr(v, net.HardwareAddr{2, 0, 0, 0, 0, 1})
	}))},
	{name: "device given another MTU", breaks: nobody, do: drifts(toDevices(func(n *netlink.Handle, v *netlink.Vxlan) error { return n.LinkSetMTU(v, 1300) }))},
	{name: "device's forwarding turned off", breaks: allPeers, do: drifts(toDevicesIn(func(v *netlink.Vxlan) error { return setSysctl("ipv4/conf/"+v.Name+"/forwarding", "0") }))},
	{name: "device's rp_filter made strict", breaks: nobody, do: drifts(toDevicesIn(func(v *netlink.Vxlan) error { return setSysctl("ipv4/conf/"+v.Name+"/rp_filter", "1") }))},
	{name: "device made again with another VNI", breaks: allPeers, do: drifts(remade(func(v *netlink.Vxlan, _ int) { v.VxlanId = 77 }))},
	{name: "device made again, learning", breaks: allPeers, do: drifts(remade(func(v *netlink.Vxlan, _ int) { v.Learning = true }))},
	{name: "device made again, bound to eth0", breaks: allPeers, do: drifts(remade(func(v *netlink.Vxlan, lower int) { v.VtepDevIndex = lower }))},
	{name: "device made again, with a TTL", breaks: allPeers, do: drifts(remade(func(v *netlink.Vxlan, _ int) { v.TTL = 1 }))},
	{name: "host's forwarding turned off", breaks: allPeers, mended: forwardsAgain, do: shows(stopForwarding, settingsRestored)},
	{name: "nftables' rules flushed", breaks: nobody, mended: rulesAgain, within: rulesWithin, do: shows(flushRules, rulesHealed)},
	{name: "another's firewall rule in the way for a while", breaks: allPeers, mended: nothingNamed, do: shows(dropForwarded, ruleInTheWay)},
	{name: "subnet file deleted", breaks: nobody, mended: fileAgain, unasked: true, do: shows(deleteSubnetFile, fileRestored)},
	{name: "underlay: carrier lost and back", breaks: allPeers, underlay: true, do: shows(noticed(loseCarrierWhile), failed(status.UnderlayThere))},
	{name: "underlay: interface set down and up", breaks: allPeers, underlay: true, do: shows(noticed(flapUnderlayWhile), failed(status.UnderlayThere))},
	{name: "underlay: interface deleted and made again", breaks: allPeers, underlay: true, do: shows(noticed(remakeUnderlayWhile), failed(status.UnderlayThere))},
}

// stopForwarding turns forwarding off in the families that the host has pods of.
func stopForwarding(t *testing.T, l *Lab, h *Host) error {
	for _, f := range l.Families() {
		set(t, h, subnet.PerFamily[string]{"ipv4/ip_forward=0", "ipv6/conf/all/forwarding=0"}[f])
	}
	return nil
}

// target is an entry of the overlay.
type target struct {
	kind string
	// peer tells whether it is the second host's.
	peer bool
}

// gone leaves out the error of a thing that is not there (any more): the daemon
// may have been faster.
func gone(err error) error {
	for _, e := range []error{unix.ESRCH, unix.ENOENT, unix.EADDRNOTAVAIL, unix.ENODEV} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

// vxlans calls fn for each VXLAN device of a host.
func vxlans(h *Host, fn func(*netlink.Handle, *netlink.Vxlan) error) error {
	return h.Namespace.netlink(func(n *netlink.Handle) error {
		links, err := n.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			if v, ok := link.(*netlink.Vxlan); ok {
				if err := fn(n, v); err != nil {
					return fmt.Errorf("%s: %w", v.Name, err)
				}
			}
		}
		return nil
	})
}

func toDevices(fn func(*netlink.Handle, *netlink.Vxlan) error) func(*testing.T, *Lab, *Host) error {
	return func(_ *testing.T, _ *Lab, h *Host) error { return vxlans(h, fn) }
}

// toDevicesIn is toDevices on a thread in the host's namespace.
func toDevicesIn(fn func(*netlink.Vxlan) error) func(*testing.T, *Lab, *Host) error {
	return func(_ *testing.T, _ *Lab, h *Host) error {
		return vxlans(h, func(_ *netlink.Handle, v *netlink.Vxlan) error { return h.Namespace.Do(func() error { return fn(v) }) })
	}
}

// remade deletes the devices and makes them again with another setting, before
// the daemon can.
func remade(change func(v *netlink.Vxlan, lower int)) func(*testing.T, *Lab, *Host) error {
	return func(_ *testing.T, _ *Lab, h *Host) error {
		if err := standStill(h.DaemonPID()); err != nil {
			return err
		}
		err := vxlans(h, func(n *netlink.Handle, v *netlink.Vxlan) error {
			lower, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = v.Name
			again := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: v.VxlanId, Port: v.Port, SrcAddr: v.SrcAddr}
			change(again, lower.Attrs().Index)
			if err := n.LinkDel(v); err != nil {
				return err
			}
			if err := n.LinkAdd(again); err != nil {
				return err
			}
			return n.LinkSetUp(again)
		})
		return errors.Join(err, goOn(h.DaemonPID()))
	}
}

// deleteEntries deletes those of the overlay's entries that match.
func deleteEntries(match func(target) bool) func(*testing.T, *Lab, *Host) error {
	return func(_ *testing.T, l *Lab, h *Host) error {
		peer := l.Hosts[1]
		env, err := peer.Env()
		if err != nil {
			return err
		}
		of := belongs(peer, env)
		err = vxlans(h, func(n *netlink.Handle, v *netlink.Vxlan) error { return deleteOn(n, v, match, of) })
		if err != nil {
			return err
		}
		err = deleteNexthops(h.Namespace, func(p hop) bool { return match(target{"nexthop", of(p.gateway)}) })
		return gone(err)
	}
}

// changeEntries has the second host's FDB entries, its neighbours, or both say something
// else, and adds as many that nobody wants.
func changeEntries(kinds ...backend.Kind) func(*testing.T, *Lab, *Host) error {
	return func(t *testing.T, l *Lab, h *Host) error {
		peer := l.Hosts[1]
		env, err := peer.Env()
		if err != nil {
			return err
		}
		k, err := kernel.OpenAt(h.Namespace.file, vxlan.OwnsDevice)
		if err != nil {
			return err
		}
		defer k.Close()
		have, err := k.Dump(t.Context())
		if err != nil {
			return err
		}
		of := belongs(peer, env)
		var ops []backend.Op
		for _, kind := range kinds {
			for e := range have.OfKind(kind) {
				f := subnet.V4
				if e.On() == vxlan.DeviceName(subnet.V6, vxlanVNI) {
					f = subnet.V6
				}
				switch e := e.(type) {
				case backend.FDB:
					if of(e.Remote) {
						strange := e
						strange.MAC = strangers
						ops = append(ops, backend.Op{Verb: backend.Replace, Entry: fdbElsewhere(e, f)}, backend.Op{Verb: backend.Add, Entry: strange})
					}
				case backend.Neighbour:
					if of(e.IP) {
						strange := e
						strange.IP = another[f].Addr()
						ops = append(ops, backend.Op{Verb: backend.Replace, Entry: neighbourElsewhere(e, f)}, backend.Op{Verb: backend.Add, Entry: strange})
					}
				}
			}
		}
		if want := 2 * len(kinds) * len(l.Families()); len(ops) != want {
			return fmt.Errorf("%d changes to make, want %d: %v", len(ops), want, ops)
		}
		return errors.Join(k.Apply(t.Context(), ops)...)
	}
}

// belongs tells whether an address is a host's on the underlay or the base of
// its subnet.
func belongs(h *Host, env envfile.Env) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		for _, f := range subnet.Families {
			// The subnet file has the gateway's address, the base is before it.
			if s := env.Subnets[f]; s.IsValid() && (a == h.Address(f) || a == s.Masked().Addr() || a == vxlan.Gateway(s.Masked())) {
				return true
			}
		}
		return false
	}
}

func deleteOn(n *netlink.Handle, v *netlink.Vxlan, match func(target) bool, of func(netip.Addr) bool) error {
	addrOf := func(ip net.IP) netip.Addr {
		a, _ := netip.AddrFromSlice(ip)
		return a.Unmap()
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := n.RouteListFiltered(family, &netlink.Route{Protocol: ourProtocol, LinkIndex: v.Index},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if match(target{"route", of(addrOf(r.Dst.IP))}) {
				if err := gone(n.RouteDel(&netlink.Route{Dst: r.Dst, Protocol: ourProtocol, Table: r.Table, Priority: r.Priority})); err != nil {
					return fmt.Errorf("delete route %s: %w", r.Dst, err)
				}
			}
		}
	}
	for kind, families := range map[string][]int{"neighbour": {unix.AF_INET, unix.AF_INET6}, "fdb": {unix.AF_BRIDGE}} {
		for _, family := range families {
			list, err := n.NeighList(v.Index, family)
			if err != nil {
				return err
			}
			for _, e := range list {
				if e.State&netlink.NUD_PERMANENT == 0 || !match(target{kind, of(addrOf(e.IP))}) {
					continue
				}
				if err := gone(n.NeighDel(&e)); err != nil {
					return fmt.Errorf("delete %s %s: %w", kind, e.IP, err)
				}
			}
		}
	}
	addrs, err := n.AddrList(v, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if match(target{"address", false}) {
			if err := gone(n.AddrDel(v, &a)); err != nil {
				return fmt.Errorf("delete address %s: %w", a.IPNet, err)
			}
		}
	}
	return nil
}

// downFor is how long the underlay is away.
const downFor = 200 * time.Millisecond

func loseCarrier(t *testing.T, l *Lab, h *Host) error { return loseCarrierWhile(t, l, h, briefly) }

func flapUnderlay(t *testing.T, l *Lab, h *Host) error { return flapUnderlayWhile(t, l, h, briefly) }

func remakeUnderlay(t *testing.T, l *Lab, h *Host) error {
	return remakeUnderlayWhile(t, l, h, briefly)
}

func briefly() { time.Sleep(downFor) }

// noticed has the underlay away until the daemon says so, which a busy machine may
// take longer for than the underlay is away otherwise.
func noticed(act func(*testing.T, *Lab, *Host, func()) error) func(*testing.T, *Lab, *Host) error {
	return func(t *testing.T, l *Lab, h *Host) error {
		p := probeOf(t, h)
		return act(t, l, h, func() {
			briefly()
			timeUntil(usualLimits.heal, func() bool {
				_, body, err := p.client.Get(t.Context(), status.PathReady)
				return err == nil && strings.Contains(body, "[-]"+status.UnderlayThere)
			})
		})
	}
}

// loseCarrierWhile pulls the plug of the underlay and puts it in again.
func loseCarrierWhile(t *testing.T, l *Lab, h *Host, meanwhile func()) error {
	port := func(change func(*netlink.Handle, netlink.Link) error) error {
		return l.Underlay().netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(h.Name)
			if err != nil {
				return err
			}
			return change(n, link)
		})
	}
	if err := port((*netlink.Handle).LinkSetDown); err != nil {
		return err
	}
	meanwhile()
	if err := port((*netlink.Handle).LinkSetUp); err != nil {
		return err
	}
	return errors.Join(l.Underlay().awaitUp(t.Context(), h.Name), h.Namespace.awaitUp(t.Context(), hostInterface))
}

// flapUnderlayWhile takes the interface down and up again as ifdown and ifup do: the
// kernel forgets its default route and its IPv6 addresses meanwhile.
func flapUnderlayWhile(t *testing.T, l *Lab, h *Host, meanwhile func()) error {
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		if err := n.LinkSetDown(link); err != nil {
			return err
		}
		meanwhile()
		addrs, err := n.AddrList(link, unix.AF_INET)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := n.AddrDel(link, &a); err != nil {
				return err
			}
		}
		return configure(n, hostInterface, l.underlay.prefixes(h.at, h.number), l.underlay.prefixes(h.at, gatewayNumber))
	})
	return errors.Join(err, h.Namespace.awaitUp(t.Context(), hostInterface))
}

// remakeUnderlayWhile makes the interface anew under its name and address, as a
// bond or a VLAN that is configured again.
func remakeUnderlayWhile(t *testing.T, l *Lab, h *Host, meanwhile func()) error {
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		return n.LinkDel(link)
	})
	if err != nil {
		return err
	}
	meanwhile()
	return h.plug(t.Context())
}

func flushRules(t *testing.T, _ *Lab, h *Host) error {
	c := nft(t, h.Namespace)
	c.FlushRuleset()
	return c.Flush()
}

// addStrict makes a table that drops all that is forwarded.
func addStrict(c *nftables.Conn) (*nftables.Table, error) {
	drop := nftables.ChainPolicyDrop
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "strict"})
	c.AddChain(&nftables.Chain{
		Table: table, Name: "forward", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	return table, c.Flush()
}

// dropForwarded drops all that is forwarded until a while after the daemon has said
// so.
func dropForwarded(t *testing.T, _ *Lab, h *Host) error {
	c := nft(t, h.Namespace)
	table, err := addStrict(c)
	if err != nil {
		return err
	}
	p := probeOf(t, h)
	_, in := timeUntil(10*time.Second, func() bool {
		s, err := p.client.Status(t.Context())
		return err == nil && len(s.Firewall.Findings) == 1 && s.Firewall.Findings[0].Table == "ip strict" && s.Firewall.Findings[0].Rule == "policy drop" && s.Firewall.Findings[0].Mend != ""
	})
	time.Sleep(downFor)
	c.DelTable(table)
	if err := c.Flush(); err != nil || !in {
		return errors.Join(err, fmt.Errorf("the rule was named: %t", in))
	}
	return nil
}

func deleteSubnetFile(_ *testing.T, _ *Lab, h *Host) error { return os.Remove(h.SubnetFile()) }
