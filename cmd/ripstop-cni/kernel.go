package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// routeProtocol marks the plugin's routes on the host: those to pods, and the
// unreachable one. It is not the daemon's 82, which removes what it does not
// want among its own.
const routeProtocol = 83

// unreachableMetric puts the unreachable route behind every other.
const unreachableMetric = 1 << 30

// sandbox is a container's network namespace.
type sandbox struct {
	*netlink.Handle
	netns ns.NetNS
}

// openHost works in the namespace in which the plugin was started.
func openHost() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return h, nil
}

// openSandbox opens a container's namespace, which must not be the host's.
func openSandbox(path string) (*sandbox, error) {
	there, err := ns.GetNS(path)
	if err != nil {
		return nil, fail(types.ErrInvalidNetNS, "", "the container's network namespace cannot be opened: %v", err)
	}
	same, err := isOurs(path)
	if err == nil && same {
		err = fail(types.ErrInvalidNetNS, "", "the container's network namespace %s is the host's own", path)
	}
	if err != nil {
		return nil, errors.Join(err, there.Close())
	}
	h, err := netlink.NewHandleAt(netns.NsHandle(int(there.Fd())), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netlink in %s: %w", path, err), there.Close())
	}
	return &sandbox{h, there}, nil
}

func isOurs(path string) (bool, error) {
	var here, there unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &here); err != nil {
		return false, fmt.Errorf("look at the own network namespace: %w", err)
	}
	if err := unix.Stat(path, &there); err != nil {
		return false, fmt.Errorf("look at network namespace %s: %w", path, err)
	}
	return here.Ino == there.Ino && here.Dev == there.Dev, nil
}

// do calls fn on a thread in the container's namespace.
func (s *sandbox) do(fn func() error) error {
	return s.netns.Do(func(ns.NetNS) error { return fn() })
}

func (s *sandbox) close() {
	s.Close()
	_ = s.netns.Close()
}

// dumpAttempts bounds how often a list is asked for anew because things changed
// while the kernel wrote it (NLM_F_DUMP_INTR): 200 pods that start at once
// change the links all the time.
const dumpAttempts = 50

// whole returns a list that nothing interrupted.
func whole[T any](list func() ([]T, error)) (out []T, err error) {
	for range dumpAttempts {
		if out, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, err
}

// linkByName returns nil for a link that is not there.
func linkByName(h *netlink.Handle, name string) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	return link, nil
}

// deleteLink deletes a link that may be gone already.
func deleteLink(h *netlink.Handle, link netlink.Link) error {
	err := h.LinkDel(link)
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("delete interface %s: %w", link.Attrs().Name, err)
	}
	if err == nil {
		return nil
	}
	// EINVAL is the answer to an index that is no link's any more, and others.
	if there, lerr := linkByName(h, link.Attrs().Name); lerr != nil || there != nil && there.Attrs().Index == link.Attrs().Index {
		return fmt.Errorf("delete interface %s: %w", link.Attrs().Name, errors.Join(err, lerr))
	}
	return nil
}

// addAddress gives a link an address. IPv6 addresses are used at once: that they
// are nobody else's is known, and detection would take a second.
func addAddress(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
		if p.IsSingleIP() {
			addr.Flags |= unix.IFA_F_NOPREFIXROUTE
		}
	}
	if err := h.AddrAdd(link, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

// addressesOf lists all addresses of a family, of one link or, for nil, of all.
func addressesOf(h *netlink.Handle, link netlink.Link, f subnet.Family) ([]netlink.Addr, error) {
	family := subnet.PerFamily[int]{subnet.V4: unix.AF_INET, subnet.V6: unix.AF_INET6}[f]
	out, err := whole(func() ([]netlink.Addr, error) { return h.AddrList(link, family) })
	if err != nil {
		return nil, fmt.Errorf("list %s addresses: %w", f, err)
	}
	return out, nil
}

// prefixOf is an address as this program has it.
func prefixOf(a netlink.Addr) netip.Prefix {
	ip, _ := netip.AddrFromSlice(a.IP)
	bits, _ := a.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), bits)
}

func addRoute(h *netlink.Handle, r *netlink.Route) error {
	if err := h.RouteAdd(r); err != nil {
		return fmt.Errorf("add route to %s: %w", r.Dst, err)
	}
	return nil
}

// unreachableRoute answers for the subnet's addresses that no pod has: without
// it packets to them would take the default route, leave the cluster or come
// back from the router in circles.
func unreachableRoute(s netip.Prefix) *netlink.Route {
	return &netlink.Route{Dst: ipNet(s), Type: unix.RTN_UNREACHABLE, Protocol: routeProtocol, Priority: unreachableMetric}
}

// setUnreachable makes exactly these subnets unreachable, and keeps a note of
// them in the network's folder.
func setUnreachable(h *netlink.Handle, a *allocations, subnets []netip.Prefix) error {
	old, err := a.unreachable()
	if err != nil {
		return err
	}
	if len(subnets) > 0 && !slices.Equal(old, subnets) {
		if err := a.setUnreachable(append(slices.Clone(old), subnets...)); err != nil {
			return err
		}
	}
	for _, s := range old {
		if slices.Contains(subnets, s) {
			continue
		}
		if err := h.RouteDel(unreachableRoute(s)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete unreachable route to %s: %w", s, err)
		}
	}
	for _, s := range subnets {
		if err := h.RouteAdd(unreachableRoute(s)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make %s unreachable: %w", s, err)
		}
	}
	if slices.Equal(old, subnets) {
		return nil
	}
	return a.setUnreachable(subnets)
}

// setSysctl writes a setting below net of the calling thread's namespace, unless
// it has that value.
func setSysctl(key, value string) error {
	path := filepath.Join("/proc/sys/net", key)
	if old, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(old)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set net/%s to %s: %w", key, value, err)
	}
	return nil
}

// startIPv6 makes a link of the calling thread's namespace usable at once, and
// deaf to routers. Where IPv6 was turned off for new links it is turned on.
//
// The link-local address is the one that the kernel would make: that of its own
// making comes from a work queue when the link is up, and until then a router
// does not ask for the neighbours that it forwards to (ndisc_send_ns).
func startIPv6(h *netlink.Handle, link netlink.Link, mac net.HardwareAddr) error {
	for _, s := range [][2]string{{"disable_ipv6", "0"}, {"accept_dad", "0"}, {"accept_ra", "0"}} {
		if err := setSysctl("ipv6/conf/"+link.Attrs().Name+"/"+s[0], s[1]); err != nil {
			return err
		}
	}
	err := addAddress(h, link, netip.PrefixFrom(linkLocal(mac), 64))
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// linkLocal is a link's address by its MAC (RFC 4291, appendix A).
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}

// forward lets the host forward packets of the families.
func forward(h *netlink.Handle, families []subnet.Family) error {
	for _, f := range families {
		key := subnet.PerFamily[string]{subnet.V4: "ipv4/ip_forward", subnet.V6: "ipv6/conf/all/forwarding"}[f]
		if on, err := os.ReadFile(filepath.Join("/proc/sys/net", key)); err == nil && strings.TrimSpace(string(on)) == "1" {
			continue
		}
		if f == subnet.V6 {
			if err := keepAdvertisements(h); err != nil {
				return err
			}
		}
		if err := setSysctl(key, "1"); err != nil {
			return fail(codeNotReady, "set it on the host: sysctl -w net."+strings.ReplaceAll(key, "/", ".")+"=1", "the host does not forward %s, and that cannot be changed: %v", f, err)
		}
	}
	return nil
}

// keepAdvertisements lets the host go on to hear the routers that it has a
// default route from: one that forwards IPv6 does not hear them unless accept_ra
// is 2 (ipv6_accept_ra), and forgets their routes.
func keepAdvertisements(h *netlink.Handle) error {
	routes, err := whole(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(unix.AF_INET6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("list routes by router advertisement: %w", err)
	}
	for _, r := range routes {
		link, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // Gone, and its routes with it, or a route of several ways.
		}
		if err := setSysctl("ipv6/conf/"+link.Attrs().Name+"/accept_ra", "2"); err != nil {
			return err
		}
	}
	return nil
}
