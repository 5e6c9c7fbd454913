package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// watchGroups are the multicast groups that tell of what Dump shows. FDB
// entries are announced among the neighbours (vxlan_fdb_notify).
var watchGroups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
	unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP,
	unix.RTNLGRP_IPV4_NETCONF,
}

// How long a watcher waits before it opens a socket again that failed, or that
// it could not open.
const (
	reopenAfter   = 100 * time.Millisecond
	reopenAtMost  = 5 * time.Second
	reopenBackoff = 2
)

// Watch implements backend.Kernel. It returns an error only if it cannot
// subscribe in the first place, for a reason that does not pass by itself. It
// wakes for events of others' too, which Changes then passes over.
func (k *Kernel) Watch(ctx context.Context, changed func()) error {
	return k.watch(ctx, k.subscribe, changed)
}

// watch is Watch with a given way to subscribe. A socket that cannot be opened
// is tried for again and again; Changes says doubt until after that.
func (k *Kernel) watch(ctx context.Context, subscribe func(context.Context) (*events, error), changed func()) error {
	e, err := subscribe(ctx)
	if err != nil && !passing(err) && ctx.Err() == nil {
		return fmt.Errorf("watch kernel: %w", err)
	}
	for wait := reopenAfter; ; wait = min(wait*reopenBackoff, reopenAtMost) {
		if e != nil {
			if e.follow(ctx, changed) {
				wait = reopenAfter
			}
			k.unsubscribe(e)
			if ctx.Err() == nil {
				changed()
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		e, _ = subscribe(ctx)
	}
}

// passing tells whether an error comes of the moment: changes on a host that is
// busy starting may interrupt each of a dump's tries, and memory may be short.
func passing(err error) bool {
	for _, e := range []error{errInterrupted, os.ErrDeadlineExceeded, unix.ENOBUFS, unix.ENOMEM, unix.EAGAIN, unix.EINTR, unix.EBUSY} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// subscribe opens the socket, and then reads by another which devices are ours
// already; those that come later announce themselves.
func (k *Kernel) subscribe(ctx context.Context) (*events, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	sock, err := dialListener(k.ns, k.listen)
	if err != nil {
		return nil, err
	}
	e := newEvents(sock, k.owns)
	if err = sock.join(watchGroups...); err == nil {
		err = k.learn(ctx, e)
	}
	if err != nil {
		return nil, errors.Join(err, sock.close())
	}
	return e, nil
}

// learn reads which devices are ours, and hands e to Changes.
func (k *Kernel) learn(ctx context.Context, e *events) error {
	release, err := k.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	links, err := k.dumpLinks(ctx)
	if err != nil {
		return err
	}
	for _, l := range links {
		e.know(l)
	}
	k.events = e
	return nil
}

// links reads all links. It waits for its turn.
func (k *Kernel) links(ctx context.Context) ([]linkMessage, error) {
	release, err := k.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return k.dumpLinks(ctx)
}

// dumpLinks is links for who has the turn.
func (k *Kernel) dumpLinks(ctx context.Context) ([]linkMessage, error) {
	links, err := collect(ctx, k, dumpLinks(""), func(m message) (linkMessage, bool) { return parseLink(m.body) })
	if err != nil {
		return nil, fmt.Errorf("dump devices: %w", err)
	}
	return links, nil
}

// unsubscribe closes the socket, on which no Changes is at work then.
func (k *Kernel) unsubscribe(e *events) {
	<-k.turn
	defer func() { k.turn <- struct{}{} }()
	if k.events == e {
		k.events = nil
	}
	_ = e.sock.close()
}

// Changes implements backend.Kernel. It waits for a Dump or Apply in progress.
func (k *Kernel) Changes() (changes []backend.Change, doubt bool) {
	<-k.turn
	defer func() { k.turn <- struct{}{} }()
	e := k.events
	if e == nil {
		return nil, true
	}
	e.drain(k)
	changes, doubt = e.queue, e.doubt
	e.queue, e.doubt = nil, e.failed
	select {
	case e.drained <- struct{}{}:
	default:
	}
	return changes, doubt
}

// follow calls changed when there is something to read, and then waits until it
// has been read, until ctx ends or the socket fails. It tells whether the socket
// ever had anything to read.
//
// It does not read by itself: events are to be read when those who changed the
// kernel are through, in one go with what they learned by answers.
func (e *events) follow(ctx context.Context, changed func()) (heard bool) {
	defer e.sock.endWith(ctx)()
	changed()
	for {
		if !e.sock.await() || ctx.Err() != nil {
			return heard
		}
		heard = true
		select {
		case <-e.drained: // Of an earlier time.
		default:
		}
		changed()
		select {
		case <-e.drained:
		case <-ctx.Done():
			return heard
		}
	}
}
