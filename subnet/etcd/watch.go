package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/ripstop-net/ripstop/subnet"
)

// Waits between tries of Watch. A listing is the dearest request there is.
const (
	watchFirstWait = 200 * time.Millisecond
	watchMostWait  = 15 * time.Second
	// watchSettled is how long a watch must have run for its waits to begin anew.
	watchSettled = 30 * time.Second
	// absence is how long a connection may be gone before that is worth a word.
	absence = 2 * time.Second
)

// errAnotherStore means that what answers cannot be the store that was listed.
var errAnotherStore = errors.New("etcd is not the one it was: its revision went back or its cluster is another")

// errWatchEnded means that the client closed a watch without saying why.
var errWatchEnded = errors.New("watch ended")

// Watch lists and follows config and records; see [subnet.Store]. Changes of
// the config and changes of records are each in order; a change's Revision
// never goes back. A connection that is lost and comes back misses nothing,
// unless etcd has compacted what happened in between: then comes a listing.
func (s *Store) Watch(ctx context.Context, to func(subnet.Change)) error {
	out := newOutage(s.log, "watch")
	b := pauses(watchFirstWait, watchMostWait)
	for {
		began := time.Now()
		err := s.follow(ctx, to, out)
		if ctx.Err() != nil {
			return nil
		}
		if err = s.explain(ctx, err); errors.Is(err, subnet.ErrRefused) {
			return fmt.Errorf("watch %s: %w", s.opts.Prefix, err)
		}
		if ctx.Err() != nil { // It may have ended while the error was looked into.
			return nil
		}
		out.lost(func() error { return err })
		if time.Since(began) > watchSettled {
			b.Reset()
		}
		if !pause(ctx, b) {
			return nil
		}
	}
}

// follow gives one listing and all changes after it, until something ends it.
func (s *Store) follow(ctx context.Context, to func(subnet.Change), out *outage) error {
	l, err := s.List(ctx)
	if err != nil {
		return err
	}
	out.back()
	to(l.Whole())

	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	doubt := make(chan error, 1)
	var seen atomic.Int64
	seen.Store(l.Revision)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.observe(ctx, &seen, out, doubt) })

	from := clientv3.WithRev(l.Revision + 1)
	config := s.client.Watch(ctx, s.configKey(), from)
	records := s.client.Watch(ctx, s.recordsKey(), clientv3.WithPrefix(), from)
	for {
		var resp clientv3.WatchResponse
		ok, read := true, s.recordChange
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-doubt:
			return err
		case resp, ok = <-config:
			read = configChange
		case resp, ok = <-records:
		}
		switch err := resp.Err(); {
		case err != nil:
			return err
		case !ok:
			return errWatchEnded
		case len(resp.Events) == 0:
			continue
		}
		c := read(resp.Events)
		// Two watches: one may lag behind the other.
		c.Revision = max(resp.Events[len(resp.Events)-1].Kv.ModRevision, seen.Load())
		seen.Store(c.Revision)
		to(c)
	}
}

// configChange is the last of the config's changes in one answer.
func configChange(events []*clientv3.Event) subnet.Change {
	last := events[len(events)-1]
	c := subnet.Change{ConfigSet: true}
	if last.Type == mvccpb.PUT {
		c.Config = notNil(last.Kv.Value)
	}
	return c
}

// recordChange is what one answer means for records: the last event of each
// key. etcd does not divide a revision between answers.
func (s *Store) recordChange(events []*clientv3.Event) subnet.Change {
	last := make(map[string]int, len(events))
	for i, e := range events {
		last[string(e.Kv.Key)] = i
	}
	var c subnet.Change
	for i, e := range events {
		switch {
		case last[string(e.Kv.Key)] != i:
		case e.Type == mvccpb.DELETE:
			c.Gone = append(c.Gone, s.lastPart(e.Kv.Key))
		default:
			s.read(e.Kv, &c.Leases, &c.Bad)
		}
	}
	return c
}

// observe tells when the connection goes and comes: the client's watch resumes
// by itself and says nothing. When it is back, what answers is looked at, for
// a store that was wiped would leave the watch waiting without an error.
func (s *Store) observe(ctx context.Context, seen *atomic.Int64, out *outage, doubt chan<- error) {
	conn := s.client.ActiveConnection()
	for {
		// A connection that is ready again by now was away all the same.
		if !conn.WaitForStateChange(ctx, connectivity.Ready) {
			return
		}
		if !s.awaitReturn(ctx, out) {
			return
		}
		if err := s.sameStore(ctx, seen.Load()); err != nil {
			doubt <- err // It has room for the one word that is ever sent.
			return
		}
		out.back()
	}
}

// awaitReturn waits for the connection to be ready, and speaks up if that takes
// its time.
func (s *Store) awaitReturn(ctx context.Context, out *outage) bool {
	conn := s.client.ActiveConnection()
	patience, cancel := context.WithTimeout(ctx, absence)
	defer cancel()
	said := false
	for {
		state := conn.GetState()
		if state == connectivity.Ready {
			return true
		}
		if conn.WaitForStateChange(patience, state) {
			continue
		}
		if ctx.Err() != nil {
			return false
		}
		if !said {
			said = true
			out.lost(func() error { return s.explain(ctx, context.DeadlineExceeded) })
		}
		patience = ctx
	}
}

// sameStore asks until it has an answer whether the store can be the one that
// was at revision seen. A cheap question: it cannot tell a store that was wiped
// and has been written as often since.
func (s *Store) sameStore(ctx context.Context, seen int64) error {
	b := pauses(watchFirstWait, watchMostWait)
	for {
		rctx, cancel := s.limited(ctx)
		resp, err := s.client.Get(rctx, s.configKey(), clientv3.WithCountOnly())
		cancel()
		if err == nil {
			if resp.Header.Revision < seen {
				return errAnotherStore
			}
			return nil
		}
		if s.refusal(err) != "" {
			return err
		}
		if !pause(ctx, b) {
			return nil
		}
	}
}
