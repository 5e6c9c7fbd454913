package kernel

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// watchGroups are the multicast groups that tell of what Dump shows. FDB
// entries are announced among the neighbours (vxlan_fdb_notify).
var watchGroups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP,
}

// How long a watcher waits before it opens a failed socket again.
const (
	reopenAfter   = 100 * time.Millisecond
	reopenAtMost  = 5 * time.Second
	reopenBackoff = 2
)

// Watch implements backend.Kernel. It returns an error only if it cannot
// subscribe in the first place. It calls changed once for each datagram that
// holds a change of ours, whoever made it, and when the kernel had to drop
// events (ENOBUFS).
//
// The kernel is silent about some changes: of IPv4 routes and of nexthops that
// go with their device, or when it goes down. The device's own event stands
// for them.
func (k *Kernel) Watch(ctx context.Context, changed func()) error {
	return watch(ctx, k.subscribe, changed)
}

// watch is Watch with a given way to subscribe. A socket that cannot be opened
// again is tried for again and again; the first changed after that makes up for
// what was missed.
func watch(ctx context.Context, subscribe func(context.Context) (*watcher, error), changed func()) error {
	w, err := subscribe(ctx)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("watch kernel: %w", err)
	}
	for wait := reopenAfter; ; wait = min(wait*reopenBackoff, reopenAtMost) {
		if w != nil {
			changed()
			w.follow(ctx, changed)
			_ = w.sock.close()
			if w.heard {
				wait = reopenAfter
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		w, _ = subscribe(ctx)
	}
}

// watcher follows the events of one socket. It knows our devices by number.
type watcher struct {
	sock  *socket
	owns  func(string) bool
	ours  map[uint32]struct{}
	heard bool
}

// subscribe opens the socket, and then reads by another which devices are ours
// already; those that come later announce themselves.
func (k *Kernel) subscribe(ctx context.Context) (*watcher, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	sock, err := dial(k.ns, k.listen)
	if err != nil {
		return nil, err
	}
	w := &watcher{sock: sock, owns: k.owns, ours: map[uint32]struct{}{}}
	if err = sock.join(watchGroups...); err == nil {
		err = w.learn(ctx, k)
	}
	if err != nil {
		return nil, errors.Join(err, sock.close())
	}
	return w, nil
}

func (w *watcher) learn(ctx context.Context, k *Kernel) error {
	links, err := k.links(ctx)
	for _, l := range links {
		if w.owns(l.name) {
			w.ours[uint32(l.index)] = struct{}{}
		}
	}
	return err
}

// links reads all links. It waits for its turn.
func (k *Kernel) links(ctx context.Context) ([]linkMessage, error) {
	release, err := k.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	links, err := collect(ctx, k, dumpLinks(""), func(m message) (linkMessage, bool) { return parseLink(m.body) })
	if err != nil {
		return nil, fmt.Errorf("dump devices: %w", err)
	}
	return links, nil
}

// follow reads events until ctx ends or the socket fails.
func (w *watcher) follow(ctx context.Context, changed func()) {
	defer w.sock.until(ctx, 0)()
	for {
		b, err := w.sock.receive(ctx)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			changed()
		case err != nil:
			return
		case w.concerns(b):
			changed()
		}
		w.heard = true
	}
}

// concerns tells whether a datagram holds a change of ours. All its messages
// are read, for a link may be among them that is ours from now on.
func (w *watcher) concerns(b []byte) bool {
	ours := false
	for m := range messages(b) {
		ours = w.ourEvent(m) || ours
	}
	return ours
}

func (w *watcher) ourEvent(m message) bool {
	switch m.typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.ourLink(m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR, unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		// All three kinds of messages have the device in the same place.
		_, ours := w.ours[uint32(linkIndex(m.body))]
		return ours
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.body) >= sizeRouteMessage && m.body[5] == Protocol
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return len(m.body) >= sizeNexthopMessage && m.body[2] == Protocol
	}
	return false
}

// ourLink also follows which devices are ours, as they come, are renamed, and
// go.
func (w *watcher) ourLink(m message) bool {
	l, ok := parseLink(m.body)
	// A bridge port's events (of family AF_BRIDGE) name the device too, and
	// its RTM_DELLINK there does not mean that it goes (br_ifinfo_notify).
	if !ok || m.body[0] != unix.AF_UNSPEC {
		return false
	}
	index := uint32(l.index)
	_, was := w.ours[index]
	is := w.owns(l.name)
	switch {
	case m.typ == unix.RTM_DELLINK || !is:
		delete(w.ours, index)
	default:
		w.ours[index] = struct{}{}
	}
	return was || is
}
