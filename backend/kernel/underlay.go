package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/sockfilter"
)

// Way looks up how the host sends to an address, the zero Way where it cannot.
func (k *Kernel) Way(ctx context.Context, to netip.Addr) (backend.Way, error) {
	release, err := k.take(ctx)
	if err != nil {
		return backend.Way{}, err
	}
	defer release()
	var r routeMessage
	err = k.request(ctx, func(w *builder, seq uint32) {
		h := w.begin(unix.RTM_GETROUTE, 0, seq, sizeRouteMessage)
		h[0], h[1] = family(to), uint8(to.BitLen())
		w.addr(unix.RTA_DST, to)
		w.ask()
	}, func(m message) { r, _ = parseRoute(m.body) })
	for _, none := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL} { // The last two are of prohibit and blackhole (fib_props).
		if errors.Is(err, none) {
			return backend.Way{}, nil
		}
	}
	if err != nil {
		return backend.Way{}, fmt.Errorf("look up the route to %s: %w", to, err)
	}
	if r.out == 0 || r.typ != unix.RTN_UNICAST && r.typ != unix.RTN_LOCAL {
		return backend.Way{}, nil
	}
	l, err := k.linkByIndex(ctx, r.out)
	if errors.Is(err, unix.ENODEV) {
		return backend.Way{}, nil
	}
	if err != nil {
		return backend.Way{}, fmt.Errorf("look up the interface towards %s: %w", to, err)
	}
	return backend.Way{Interface: l.name, Source: r.source}, nil
}

// interfaceGroups are the multicast groups that tell of what Interfaces and Way
// answer.
var interfaceGroups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE,
	unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE,
}

// interfaceBuffer is the receive buffer of such a watch in bytes. What it cannot
// hold counts as a change, no more.
const interfaceBuffer = 1 << 20

// WatchInterfaces calls changed, at once and then whenever what Interfaces and Way
// answer may be another, until ctx ends; then it returns nil. Of routes it heeds
// those by default and those without a gateway, and others where leads tells that
// they matter; leads may be called from another goroutine. changed must not wait.
// It returns an error only if it cannot subscribe in the first place, for a reason
// that does not pass by itself.
func (k *Kernel) WatchInterfaces(ctx context.Context, leads func(netip.Prefix) bool, changed func()) error {
	for wait, first := reopenAfter, true; ; wait, first = min(wait*reopenBackoff, reopenAtMost), false {
		sock, err := dial(k.ns, interfaceBuffer)
		if err == nil {
			if err = errors.Join(sock.passOverRoutes(), sock.join(interfaceGroups...)); err == nil {
				changed()
				if k.hearInterfaces(ctx, sock, leads, changed) {
					wait = reopenAfter
				}
			}
			_ = sock.close()
		}
		if err != nil && first && !passing(err) && ctx.Err() == nil {
			return fmt.Errorf("watch interfaces: %w", err)
		}
		again := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-again.C:
		}
	}
}

// hearInterfaces reads until ctx ends or the socket fails. It tells whether it
// ever had anything to read.
func (k *Kernel) hearInterfaces(ctx context.Context, sock *socket, leads func(netip.Prefix) bool, changed func()) (heard bool) {
	defer sock.until(ctx, 0)()
	for {
		b, err := sock.receive(ctx)
		switch {
		case ctx.Err() != nil:
			return heard
		case errors.Is(err, unix.ENOBUFS):
			changed()
			continue
		case err != nil:
			return heard
		}
		heard = true
		news := false
		for m := range messages(b) {
			news = news || k.ofInterfaces(m, leads)
		}
		if news {
			changed()
		}
	}
}

// passOverRoutes keeps announcements of our own routes from the socket: there may be tens
// of thousands at once, and none of them changes what Interfaces and Way answer.
func (s *socket) passOverRoutes() error {
	var failed error
	err := s.raw.Control(func(fd uintptr) { failed = sockfilter.Attach(int(fd), notOurRoutes()) })
	return errors.Join(err, failed)
}

// notOurRoutes sees a message from its header on (do_one_broadcast; netlink(7): struct
// nlmsghdr; rtnetlink(7): struct rtmsg).
func notOurRoutes() []bpf.Instruction {
	const typeAt, protocolAt = 4, unix.SizeofNlMsghdr + 5
	is := func(typ uint16) uint32 { // As it stands there, read as the filter does.
		return uint32(binary.BigEndian.Uint16(host.AppendUint16(nil, typ)))
	}
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: typeAt, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: is(unix.RTM_NEWROUTE), SkipTrue: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: is(unix.RTM_DELROUTE), SkipTrue: 2},
		bpf.LoadAbsolute{Off: protocolAt, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: Protocol, SkipTrue: 1},
		bpf.RetConstant{Val: math.MaxUint32},
		bpf.RetConstant{Val: 0},
	}
}

// ofInterfaces tells whether an event may change what Interfaces and Way answer.
// Our devices do not. Our routes, which do not either, are not told of.
func (k *Kernel) ofInterfaces(m message, leads func(netip.Prefix) bool) bool {
	switch m.typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		l, ok := parseLink(m.body)
		return ok && m.body[0] == unix.AF_UNSPEC && !k.owns(l.name) && !l.ours(k.owns)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		a, ok := parseAddress(m.body)
		return ok && a.scope == unix.RT_SCOPE_UNIVERSE
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, ok := parseRoute(m.body)
		return ok && r.flags&unix.RTM_F_CLONED == 0 && (r.dst.Bits() == 0 || r.connected() || leads(r.dst))
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return true
	}
	return false
}
