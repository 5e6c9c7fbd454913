package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ripstop-net/ripstop/subnet"
)

// readyLimit bounds the wait for what the kernel does by itself a moment later,
// pollEvery is how often it is looked at.
const (
	readyLimit = 30 * time.Second
	pollEvery  = time.Millisecond
)

// await asks until the answer is "", which says what is still missing.
func await(ctx context.Context, missing func() (string, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("not so after %s", readyLimit))
	defer cancel()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		what, err := missing()
		if err != nil || what == "" {
			return err
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		}
	}
}

// awaitUp waits until a link carries packets. The kernel notes a new carrier
// from a work queue (linkwatch_do_dev); until then the link drops what it is to
// send, and a bridge does not forward to it.
func awaitUp(ctx context.Context, h *netlink.Handle, name string) error {
	return await(ctx, func() (string, error) {
		link, err := h.LinkByName(name)
		if err != nil {
			return "", fmt.Errorf("find interface %s: %w", name, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return "", nil
		}
		return fmt.Sprintf("interface %s, which is %s, is up", name, link.Attrs().OperState), nil
	})
}

// awaitHeard waits until a link of the calling thread's namespace listens to the
// solicitations for its IPv6 addresses. The kernel joins their groups from a
// work queue, also without duplicate address detection (addrconf_dad_work);
// until then neighbours ask in vain, and ask again after a second.
func awaitHeard(ctx context.Context, name string, addrs []netip.Addr) error {
	addrs = slices.DeleteFunc(slices.Clone(addrs), netip.Addr.Is4)
	if len(addrs) == 0 {
		return nil
	}
	return await(ctx, func() (string, error) {
		groups, err := os.ReadFile("/proc/thread-self/net/igmp6")
		if err != nil {
			return "", fmt.Errorf("list multicast groups: %w", err)
		}
		for _, a := range addrs {
			if !joined(string(groups), name, solicitedNode(a)) {
				return fmt.Sprintf("interface %s listens for %s", name, a), nil
			}
		}
		return "", nil
	})
}

// joined looks for a link's group in the form of /proc/net/igmp6: number and
// name of the interface, group in hex, and more.
func joined(groups, name string, group netip.Addr) bool {
	for line := range strings.Lines(groups) {
		fields := strings.Fields(line)
		if len(fields) >= 3 && fields[1] == name && fields[2] == hex.EncodeToString(group.AsSlice()) {
			return true
		}
	}
	return false
}

// solicitedNode is the group that is asked for an address's neighbour (RFC 4291,
// section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	group := [16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff}
	copy(group[13:], b[13:])
	return netip.AddrFrom16(group)
}

// awaitReady waits until both ends of a pair, and the bridge, pass packets.
func awaitReady(ctx context.Context, h *netlink.Handle, pod *sandbox, w wiring) error {
	gateways, links := w.hostName(), []string{w.hostName()}
	if w.mode == bridged {
		gateways, links = w.bridge, append(links, w.bridge)
	}
	for _, name := range links {
		if err := awaitUp(ctx, h, name); err != nil {
			return err
		}
	}
	if err := awaitUp(ctx, pod.Handle, w.ifName); err != nil {
		return fmt.Errorf("in the container: %w", err)
	}
	var own, theirs []netip.Addr
	for _, a := range w.addresses {
		own, theirs = append(own, a.gateway), append(theirs, a.pod.Addr())
	}
	if err := awaitHeard(ctx, gateways, own); err != nil {
		return err
	}
	if err := pod.do(func() error { return awaitHeard(ctx, w.ifName, theirs) }); err != nil {
		return fmt.Errorf("in the container: %w", err)
	}
	return nil
}

// hasIPv6 tells whether one of the addresses is.
func (w wiring) hasIPv6() bool {
	return slices.ContainsFunc(w.addresses, func(a address) bool { return a.family == subnet.V6 })
}
