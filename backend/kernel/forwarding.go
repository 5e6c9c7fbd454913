package kernel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// Links lists the links but our own and the loopback. Of their forwarding each link's
// own setting is what counts (ip_route_input_slow), and ip_forward sets it for all.
func (k *Kernel) Links(ctx context.Context) ([]backend.Link, error) {
	release, err := k.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	links, err := k.dumpLinks(ctx)
	if err != nil {
		return nil, err
	}
	addresses, err := collect(ctx, k, func(w *builder, seq uint32) {
		w.begin(unix.RTM_GETADDR, unix.NLM_F_DUMP, seq, sizeAddressMessage)
	}, func(m message) (addressMessage, bool) {
		a, ok := parseAddress(m.body)
		return a, ok && a.scope == unix.RT_SCOPE_UNIVERSE
	})
	if err != nil {
		return nil, fmt.Errorf("dump addresses: %w", err)
	}
	by := map[int][]netip.Addr{}
	for _, a := range addresses {
		by[a.index] = append(by[a.index], a.prefix.Addr())
	}
	var out []backend.Link
	for _, l := range links {
		if l.flags&unix.IFF_LOOPBACK == 0 && !k.owns(l.name) && !l.ours(k.owns) {
			out = append(out, backend.Link{Name: l.name, Kind: l.kind, Port: l.master != 0, Addresses: by[l.index], NoForwarding: l.noForwarding})
		}
	}
	return out, nil
}

// Forward lets a link's IPv4 packets be forwarded, without /proc/sys. A link that
// has gone meanwhile is no error.
func (k *Kernel) Forward(ctx context.Context, link string) error {
	release, err := k.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	l, err := k.linkByName(ctx, link)
	if err == nil {
		err = k.setIPv4(ctx, l.index, map[uint16]uint32{confForwarding: 1})
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("set forwarding of %s: %w", link, err)
	}
	return nil
}

// Advertised lists the links by which an IPv6 default route leaves that a router's
// advertisement made (RTPROT_RA).
func (k *Kernel) Advertised(ctx context.Context) ([]string, error) {
	release, err := k.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	table, err := k.mainTable(ctx, unix.AF_INET6)
	if err != nil {
		return nil, fmt.Errorf("dump routes: %w", err)
	}
	var out []string
	for _, r := range table.defaults {
		if r.protocol != unix.RTPROT_RA {
			continue
		}
		for _, index := range r.devices() {
			if l, err := k.linkByIndex(ctx, index); err == nil && !slices.Contains(out, l.name) {
				out = append(out, l.name)
			}
		}
	}
	return out, nil
}

// WatchSettings calls changed, at once and then when a setting of the network is
// changed by a hand in /proc/sys, or a link comes with settings of its own, is changed
// or gets or loses an address, until ctx ends; then it returns nil. changed must not wait. What is lost of the
// announcements is made good by a call.
func (k *Kernel) WatchSettings(ctx context.Context, changed func()) error {
	for wait := reopenAfter; ; wait = min(wait*reopenBackoff, reopenAtMost) {
		sock, err := dial(k.ns, settingsBuffer)
		if err == nil {
			if err = sock.join(settingsGroups...); err == nil {
				wait = reopenAfter
				sock.announced(ctx, changed)
			}
			_ = sock.close()
		}
		if err != nil && !passing(err) && ctx.Err() == nil {
			return fmt.Errorf("watch settings: %w", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// settingsGroups are the multicast groups that tell of settings and of what Links
// lists.
var settingsGroups = []int{
	unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_IPV6_NETCONF, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
}

// settingsBuffer is the receive buffer of WatchSettings in bytes. Its messages
// tell only that there is something to look at.
const settingsBuffer = 256 << 10

// announced calls changed for whatever comes, until ctx ends or the socket fails.
func (s *socket) announced(ctx context.Context, changed func()) {
	defer s.until(ctx, 0)()
	changed()
	for {
		_, err := s.receive(ctx)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		changed()
	}
}
