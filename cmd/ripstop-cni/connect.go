package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// connect makes an attachment in the kernel, or leaves nothing of it, and fills
// in the bridge's MAC.
func connect(ctx context.Context, h *netlink.Handle, pod *sandbox, w *wiring, n node) error {
	if err := forward(h, n.families()); err != nil {
		return err
	}
	var bridge netlink.Link
	if w.mode == bridged {
		var err error
		if bridge, err = ensureBridge(h, w.bridge, n); err != nil {
			return err
		}
		w.bridgeMAC = bridge.Attrs().HardwareAddr
	}
	if err := addPair(h, pod, *w, bridge); err != nil {
		return err
	}
	err := setUpHost(h, *w)
	if err == nil {
		err = setUpPod(pod, *w)
	}
	if err == nil {
		err = awaitReady(ctx, h, pod, *w)
	}
	if err == nil {
		return nil
	}
	return undone(err, removeHostEnd(h, w.attachment))
}

// addPair makes the veth pair, its other end in the container under its final
// name. MTU and MACs are set at creation, so that nothing changes them later.
func addPair(h *netlink.Handle, pod *sandbox, w wiring, bridge netlink.Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = w.hostName(), w.mtu, w.hostMAC
	if bridge != nil {
		attrs.MasterIndex = bridge.Attrs().Index
	}
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerMTU, veth.PeerHardwareAddr = w.ifName, uint32(w.mtu), w.podMAC
	veth.PeerNamespace = netlink.NsFd(int(pod.netns.Fd()))
	err := h.LinkAdd(veth)
	if errors.Is(err, unix.EEXIST) {
		if there, lerr := linkByName(pod.Handle, w.ifName); lerr != nil || there != nil {
			return errors.Join(lerr, fail(codeAttached, "an ADD for it was made before, or another plugin made it", "container %s has an interface %s already", w.container, w.ifName))
		}
		// The host's end of an earlier ADD that was never finished.
		if err := removeHostEnd(h, w.attachment); err != nil {
			return err
		}
		err = h.LinkAdd(veth)
	}
	if err != nil {
		return fmt.Errorf("add veth %s, %s in the container: %w", w.hostName(), w.ifName, err)
	}
	return nil
}

func setUpHost(h *netlink.Handle, w wiring) error {
	name := w.hostName()
	host, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", name, err)
	}
	if err := h.LinkSetAlias(host, w.alias()); err != nil {
		return fmt.Errorf("set alias of %s: %w", name, err)
	}
	if w.hasIPv6() {
		if err := startIPv6(h, host, w.hostMAC); err != nil {
			return err
		}
	}
	if w.mode == bridged {
		// A pod that calls its own Service gets its packet back where it came from.
		if err := h.LinkSetHairpin(host, true); err != nil {
			return fmt.Errorf("set hairpin mode of %s: %w", name, err)
		}
	}
	if err := h.LinkSetUp(host); err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	if w.mode == bridged {
		return nil
	}
	for _, a := range w.addresses {
		if err := addAddress(h, host, alone(a.gateway)); err != nil {
			return err
		}
		r := podRoute(host, a)
		err := addRoute(h, r)
		if errors.Is(err, unix.EEXIST) {
			return fail(codeOccupied, "was the folder of allocations emptied under living pods? That address is passed over for now: try again",
				"address %s is free, but the host has a route to it: %v", a.pod.Addr(), err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// podRoute leads from the host to a pod.
func podRoute(host netlink.Link, a address) *netlink.Route {
	r := &netlink.Route{Dst: ipNet(alone(a.pod.Addr())), LinkIndex: host.Attrs().Index, Protocol: routeProtocol}
	if a.family == subnet.V4 {
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// podRoutes are the container's: to the gateway, unless the address's own prefix
// holds it, and by it everywhere.
func podRoutes(link netlink.Link, w wiring) []*netlink.Route {
	var out []*netlink.Route
	for _, a := range w.addresses {
		if !a.pod.Contains(a.gateway) {
			r := &netlink.Route{Dst: ipNet(alone(a.gateway)), LinkIndex: link.Attrs().Index}
			if a.family == subnet.V4 {
				r.Scope = netlink.SCOPE_LINK
			}
			out = append(out, r)
		}
		out = append(out, &netlink.Route{Dst: ipNet(anywhere(a.family)), Gw: a.gateway.AsSlice(), LinkIndex: link.Attrs().Index})
	}
	return out
}

func setUpPod(pod *sandbox, w wiring) error {
	link, err := pod.LinkByName(w.ifName)
	if err != nil {
		return fmt.Errorf("find interface %s in the container: %w", w.ifName, err)
	}
	if w.hasIPv6() {
		if err := pod.do(func() error { return startIPv6(pod.Handle, link, w.podMAC) }); err != nil {
			return fmt.Errorf("in the container: %w", err)
		}
	}
	for _, a := range w.addresses {
		if err := addAddress(pod.Handle, link, a.pod); err != nil {
			return fmt.Errorf("in the container: %w", err)
		}
	}
	if err := pod.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s in the container: %w", w.ifName, err)
	}
	for _, r := range podRoutes(link, w) {
		if err := addRoute(pod.Handle, r); err != nil {
			return fmt.Errorf("in the container: %w", err)
		}
	}
	return nil
}

// ensureBridge makes the bridge where it is missing and gives it the gateway's
// addresses. An old subnet's address goes: survey has seen that no pod is left.
func ensureBridge(h *netlink.Handle, name string, n node) (netlink.Link, error) {
	link, err := linkByName(h, name)
	if err != nil {
		return nil, err
	}
	if link == nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = name, n.mtu, bridgeMAC(name, n)
		err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		// Another ADD may be faster.
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("add bridge %s: %w", name, err)
		}
		if link, err = h.LinkByName(name); err != nil {
			return nil, fmt.Errorf("find bridge %s: %w", name, err)
		}
	}
	if _, ok := link.(*netlink.Bridge); !ok {
		return nil, fail(codeOccupied, `"bridge" gives another name`, "interface %s is a %s, not a bridge", name, link.Type())
	}
	if link.Attrs().MTU != n.mtu {
		if err := h.LinkSetMTU(link, n.mtu); err != nil {
			return nil, fmt.Errorf("set MTU of %s to %d: %w", name, n.mtu, err)
		}
	}
	if n.subnets[subnet.V6].IsValid() {
		if err := startIPv6(h, link, link.Attrs().HardwareAddr); err != nil {
			return nil, err
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring up %s: %w", name, err)
	}
	for _, f := range n.families() {
		if err := setGateway(h, link, f, netip.PrefixFrom(n.gateway(f), n.subnets[f].Bits())); err != nil {
			return nil, err
		}
	}
	return link, nil
}

func setGateway(h *netlink.Handle, link netlink.Link, f subnet.Family, gateway netip.Prefix) error {
	addrs, err := addressesOf(h, link, f)
	if err != nil {
		return err
	}
	there := false
	for _, a := range addrs {
		switch p := prefixOf(a); {
		case p == gateway:
			there = true
		case p.Addr().IsLinkLocalUnicast():
		default:
			if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("delete address %s from %s: %w", p, link.Attrs().Name, err)
			}
		}
	}
	if there {
		return nil
	}
	if err := addAddress(h, link, gateway); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// disconnect takes an attachment out of the kernel, whatever there is of it. A
// sandbox that is gone is nil.
func disconnect(h *netlink.Handle, pod *sandbox, a attachment) error {
	if err := removeHostEnd(h, a); err != nil {
		return err
	}
	if pod == nil {
		return nil
	}
	// What another plugin connected before the node came to Ripstop has another
	// host end; both ends of a pair go with either.
	link, err := linkByName(pod.Handle, a.ifName)
	if err != nil || link == nil || link.Type() != "veth" {
		return err
	}
	return deleteLink(pod.Handle, link)
}

// removeHostEnd deletes the host's end of the pair, and so the other, and the
// routes over both.
func removeHostEnd(h *netlink.Handle, a attachment) error {
	link, err := linkByName(h, a.hostName())
	if err != nil || link == nil {
		return err
	}
	if alias := link.Attrs().Alias; link.Type() != "veth" || alias != "" && !strings.HasPrefix(alias, aliasPrefix+" ") {
		return fail(codeOccupied, "give it another name", "interface %s (%s, alias %q) is not the plugin's, and has the name of the one for container %s", a.hostName(), link.Type(), alias, a.container)
	}
	return deleteLink(h, link)
}
