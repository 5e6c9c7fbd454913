package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// check is the verb CHECK: it compares what is there with what ADD made, and
// names every difference.
func check(ctx context.Context, args *skel.CmdArgs) error {
	c, err := load(args.StdinData)
	if err != nil {
		return err
	}
	n, err := readNode(ctx, c)
	if err != nil {
		return err
	}
	w, err := expected(ctx, attachment{c.Name, args.ContainerID, args.IfName}, &c, n)
	if err != nil {
		return err
	}
	pod, err := openSandbox(args.Netns)
	if err != nil {
		return err
	}
	defer pod.close()
	h, err := openHost()
	if err != nil {
		return err
	}
	defer h.Close()
	wrong, err := differences(h, pod, w)
	if err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fail(codeDiffers, "end the container and start it anew", "container %s is not connected as it was: %s", args.ContainerID, strings.Join(wrong, "; "))
	}
	return nil
}

// expected is how an attachment was made, by what is allocated to it and what
// the runtime has kept of ADD's result.
func expected(ctx context.Context, at attachment, c *config, n node) (w wiring, err error) {
	previous, err := previousResult(c)
	if err != nil {
		return w, err
	}
	if previous == nil {
		return w, fail(types.ErrInvalidNetworkConfig, "", "CHECK needs prevResult, the result of ADD")
	}
	a, err := openAllocations(*c)
	if err != nil {
		return w, err
	}
	defer func() { _ = a.Close() }()
	var held map[netip.Addr]holder
	if err := a.hold(ctx, func() (err error) { held, err = a.list(); return err }); err != nil {
		return w, err
	}
	var pods subnet.PerFamily[netip.Addr]
	for _, addr := range ofHolder(held, holder{at.container, at.ifName}) {
		pods[subnet.FamilyOf(addr)] = addr
	}
	for _, f := range n.families() {
		if !pods[f].IsValid() || !n.holds(pods[f]) {
			return w, fail(codeDiffers, "end the container and start it anew", "container %s has no %s address of the node's subnet %s allocated", at.container, f, n.subnets[f])
		}
	}
	var mac net.HardwareAddr
	for _, i := range previous.Interfaces {
		if i.Name == at.ifName && i.Sandbox != "" && i.Mac != "" {
			// Plugins behind this one may have changed it, tuning for one.
			if mac, err = net.ParseMAC(i.Mac); err != nil {
				return w, fail(types.ErrDecodingFailure, "", "prevResult has a MAC that cannot be read: %v", err)
			}
		}
	}
	return wire(at, *c, n, pods, mac), nil
}

// differences lists what is not as planned, the host's side first.
func differences(h *netlink.Handle, pod *sandbox, w wiring) ([]string, error) {
	var wrong []string
	report := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }

	host, err := linkByName(h, w.hostName())
	if err != nil {
		return nil, err
	}
	switch {
	case host == nil:
		report("its host end %s is gone", w.hostName())
	case host.Attrs().OperState != netlink.OperUp:
		report("its host end %s is %s", w.hostName(), host.Attrs().OperState)
	}
	gateways := host
	if w.mode == bridged {
		if gateways, err = linkByName(h, w.bridge); err != nil {
			return nil, err
		}
		if gateways == nil {
			report("bridge %s is gone", w.bridge)
		} else if host != nil && host.Attrs().MasterIndex != gateways.Attrs().Index {
			report("its host end %s is no port of %s", w.hostName(), w.bridge)
		}
	}
	for _, a := range w.addresses {
		if gateways == nil {
			break
		}
		gateway := alone(a.gateway)
		if w.mode == bridged {
			gateway = netip.PrefixFrom(a.gateway, a.subnet.Bits())
		}
		if err := checkAddress(h, gateways, a.family, gateway, report); err != nil {
			return nil, err
		}
		if w.mode == ptp {
			if err := checkRoute(h, "the host", podRoute(host, a), report); err != nil {
				return nil, err
			}
		}
	}

	link, err := linkByName(pod.Handle, w.ifName)
	if err != nil {
		return nil, err
	}
	if link == nil {
		report("the container has no %s", w.ifName)
		return wrong, nil
	}
	switch at := link.Attrs(); {
	case at.OperState != netlink.OperUp:
		report("%s is %s", w.ifName, at.OperState)
	case at.MTU > w.mtu:
		report("%s has an MTU of %d, the way to other nodes takes %d bytes", w.ifName, at.MTU, w.mtu)
	case !bytes.Equal(at.HardwareAddr, w.podMAC):
		report("%s has MAC %s, not %s", w.ifName, at.HardwareAddr, w.podMAC)
	}
	for _, a := range w.addresses {
		if err := checkAddress(pod.Handle, link, a.family, a.pod, report); err != nil {
			return nil, err
		}
	}
	for _, r := range podRoutes(link, w) {
		if err := checkRoute(pod.Handle, "the container", r, report); err != nil {
			return nil, err
		}
	}
	return wrong, nil
}

func checkAddress(h *netlink.Handle, link netlink.Link, f subnet.Family, want netip.Prefix, report func(string, ...any)) error {
	addrs, err := addressesOf(h, link, f)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return prefixOf(a) == want }) {
		report("%s has no address %s", link.Attrs().Name, want)
	}
	return nil
}

// checkRoute looks for a route by destination, device and gateway.
func checkRoute(h *netlink.Handle, where string, want *netlink.Route, report func(string, ...any)) error {
	family := unix.AF_INET
	if want.Dst.IP.To4() == nil {
		family = unix.AF_INET6
	}
	routes, err := whole(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, &netlink.Route{LinkIndex: want.LinkIndex}, netlink.RT_FILTER_OIF)
	})
	if err != nil {
		return fmt.Errorf("list routes of %s: %w", where, err)
	}
	for _, r := range routes {
		if r.Dst != nil && r.Dst.String() == want.Dst.String() && r.Gw.Equal(want.Gw) {
			return nil
		}
	}
	report("%s has no route to %s", where, want.Dst)
	return nil
}
