package bench

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

var (
	// changeGroups tell of all that a change of peers ends with.
	changeGroups = []int{unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_ROUTE}
	// allGroups tell of all that anything of the daemon's could change.
	allGroups = []int{
		unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP,
	}
)

const (
	// singles is how many single changes of each kind there are.
	singles = 200
	// between is the longest pause between two of them.
	between = 25 * time.Millisecond
	// changeLimit bounds one change, burstLimit one burst.
	changeLimit = 30 * time.Second
	burstLimit  = 5 * time.Minute
)

// sightings remembers when each revision of etcd was seen.
type sightings struct {
	mu   sync.Mutex
	at   map[int64]time.Time
	news chan struct{}
}

func (s *sightings) note(revision int64, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at[revision] = at
	close(s.news)
	s.news = make(chan struct{})
}

func (s *sightings) await(ctx context.Context, revision int64) (time.Time, error) {
	for {
		s.mu.Lock()
		at, ok := s.at[revision]
		news := s.news
		s.mu.Unlock()
		if ok {
			return at, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return at, ctx.Err()
		}
	}
}

// changes lets single peers join, move and leave, one after another.
func (b *run) changes(ctx context.Context, s *Size) (err error) {
	heard, err := listen(b.node.host.Namespace, changeGroups...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, heard.close()) }()
	seen := &sightings{at: map[int64]time.Time{}, news: make(chan struct{})}
	var watching sync.WaitGroup
	wctx, cancel := context.WithCancel(ctx)
	watching.Go(func() { b.store.watch(wctx, seen.note) })
	defer watching.Wait()
	defer cancel()

	count := singles
	if b.opts.Short {
		count = 20
	}
	for i := range count {
		n := s.Peers + i%s.Peers // Beyond those that are there.
		for _, step := range []struct {
			lease subnet.Lease
			op    func(subnet.Lease) clientv3.Op
			last  event
			to    *Changes
		}{
			{b.peers.at(n), b.store.put, routeAdded, &s.Join},
			{b.peers.moved(n), b.store.put, fdbSet, &s.Move},
			{b.peers.at(n), b.store.remove, fdbGone, &s.Leave},
		} {
			if err := pause(ctx, rand.N(between)); err != nil {
				return err
			}
			if err := b.change(ctx, heard, seen, step.op(step.lease), step.last, step.to); err != nil {
				return err
			}
		}
	}
	if err := pause(ctx, b.opts.pauses.settle); err != nil {
		return err
	}
	s.Settled, err = b.node.memory()
	return err
}

// change makes one change and notes how long it took.
func (b *run) change(ctx context.Context, heard *listener, seen *sightings, op clientv3.Op, last event, to *Changes) error {
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	before := heard.count(last)
	began := time.Now()
	resp, err := b.store.client.Do(ctx, op)
	answered := time.Now()
	if err != nil {
		return err
	}
	done, err := heard.await(ctx, last, before+1)
	if err != nil {
		return err
	}
	revision := int64(0)
	if put := resp.Put(); put != nil {
		revision = put.Header.Revision
	} else if del := resp.Del(); del != nil {
		revision = del.Header.Revision
	}
	known, err := seen.await(ctx, revision)
	if err != nil {
		return err
	}
	// The daemon may have been told before this process was.
	if answered.Before(known) {
		known = answered
	}
	to.Kernel = append(to.Kernel, max(0, done.Sub(known)))
	to.Whole = append(to.Whole, done.Sub(began))
	return nil
}

// bursts lets many peers join at once, and leave at once.
func (b *run) bursts(ctx context.Context, s *Size) error {
	if s.Burst == 0 {
		return nil
	}
	leases := b.peers.between(s.Peers, s.Peers+s.Burst)
	for range b.times(3) {
		for _, step := range []struct {
			op            func(subnet.Lease) clientv3.Op
			last          event
			whole, writes *Sample
		}{
			{b.store.put, routeAdded, &s.Joins, &s.JoinWrites},
			{b.store.remove, fdbGone, &s.Leaves, &s.LeaveWrites},
		} {
			if err := pause(ctx, time.Second); err != nil {
				return err
			}
			if err := b.burst(ctx, leases, step.op, step.last, step.whole, step.writes); err != nil {
				return err
			}
		}
	}
	if err := b.node.holds(ctx, b.peers.entries(b.peers.between(0, s.Peers))); err != nil {
		return err
	}
	if err := pause(ctx, b.opts.pauses.settle); err != nil {
		return err
	}
	var err error
	s.Burdened, err = b.node.memory()
	return err
}

func (b *run) burst(ctx context.Context, leases []subnet.Lease, op func(subnet.Lease) clientv3.Op, last event, whole, writes *Sample) error {
	ctx, cancel := context.WithTimeout(ctx, burstLimit)
	defer cancel()
	heard, err := listen(b.node.host.Namespace, changeGroups...)
	if err != nil {
		return err
	}
	began := time.Now()
	err = b.store.each(ctx, leases, op)
	*writes = append(*writes, time.Since(began))
	done := began
	if err == nil {
		done, err = heard.await(ctx, last, len(leases))
	}
	*whole = append(*whole, done.Sub(began))
	return errors.Join(err, heard.close())
}
