package etcd

import (
	"context"
	"errors"
	"iter"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet"
)

// Waits between tries of Watch. A listing is the dearest request there is; what
// is cheap is asked more often.
const (
	watchFirstWait = 200 * time.Millisecond
	watchMostWait  = 15 * time.Second
	cheapMostWait  = time.Second
	// watchSettled is how long a watch must have run for its waits to begin anew.
	watchSettled = 10 * time.Second
)

// errWatchEnded means that the client closed a watch without saying why.
var errWatchEnded = errors.New("watch ended")

// errAudit ends a watch for a listing that nothing asked for.
var errAudit = errors.New("time for an audit")

// Watch lists and follows config and records; see [subnet.Store]. Changes of
// the config and changes of records are each in order; a change's Revision
// never goes back, but with another store. A connection that is lost and comes
// back misses nothing. Where etcd has compacted what happened in between, what is new
// is read if no record has gone; else comes a listing.
//
// A refusal counts as an outage: rights may come back, as they do when a member of
// etcd catches up with the others, and until then the network goes on as it is.
func (s *Store) Watch(ctx context.Context, to func(subnet.Change)) error {
	out := newOutage(s.log, "watch")
	s.watching.Store(out)
	b := pauses(watchFirstWait, watchMostWait)
	var seen seen
	for {
		began := time.Now()
		err := s.follow(ctx, to, &seen, out)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errAnotherStore):
			s.log.Warn("store may not be the one it was, listing again", zap.Error(err))
			seen.doubt()
			s.held.ring()
			continue
		case errors.Is(err, errRecordLost):
			s.log.Info("listing again", zap.Error(err))
			s.held.ring()
			continue
		case errors.Is(err, errAudit):
			continue
		case errors.Is(err, rpctypes.ErrCompacted) && time.Since(began) > watchFirstWait:
			// etcd is there, and nothing but a listing tells what was missed.
			s.log.Info("listing again", zap.Error(err))
			b.Reset()
			continue
		}
		err = s.explain(ctx, err)
		switch {
		case ctx.Err() != nil: // It may have ended while the error was looked into.
			return nil
		case !errors.Is(err, subnet.ErrRefused):
			out.lost(func() error { return err })
		default:
			out.refuse(err)
		}
		if time.Since(began) > watchSettled {
			b.Reset()
		}
		if !s.awaitAnswer(ctx) || !pause(ctx, b) {
			return nil
		}
	}
}

// awaitAnswer asks something cheap until etcd answers, so that its return is
// noticed at once and yet costs no listing after another. It returns false if
// ctx ended first.
func (s *Store) awaitAnswer(ctx context.Context) bool {
	b := pauses(watchFirstWait, cheapMostWait)
	for {
		rctx, cancel := s.limited(ctx)
		_, err := s.client.Get(rctx, s.epochKey(), clientv3.WithCountOnly())
		cancel()
		if err == nil || s.refusal(err) != "" {
			return ctx.Err() == nil
		}
		if !pause(ctx, b) {
			return false
		}
	}
}

// follow gives one listing and all changes after it, until something ends it.
func (s *Store) follow(ctx context.Context, to func(subnet.Change), seen *seen, out *outage) error {
	l, fresh := s.recent.take()
	if seen.get().epoch != "" { // A listing alone does not tell of another history.
		fresh = false
		switch err := s.checkStore(ctx, seen); {
		case errors.Is(err, errAnotherStore):
			seen.doubt()
		case err != nil && !errors.Is(err, errRecordLost):
			return err
		}
	}
	if !fresh {
		var err error
		if l, err = s.listEpoch(ctx); err != nil {
			return err
		}
	}
	out.back()
	whole := l.Whole()
	whole.Different = seen.list(l)
	to(whole)

	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	doubt, alive := make(chan error, 1), make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.observe(ctx, seen, out, alive, doubt) })
	audit := time.NewTimer(jittered(s.auditEvery))
	defer audit.Stop()

	known := l.Config // As it was told last.
	config := s.client.Watch(ctx, s.ConfigKey(), clientv3.WithRev(l.Revision+1))
	records := s.client.Watch(ctx, s.recordsKey(), clientv3.WithPrefix(), clientv3.WithRev(l.Revision+1))
	for {
		var resp clientv3.WatchResponse
		ok, changes := true, s.recordChanges
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-doubt:
			return err
		case <-audit.C:
			return errAudit
		case <-alive:
			to(subnet.Change{Revision: seen.get().told})
			continue
		case resp, ok = <-config:
			changes = configChange
			if errors.Is(resp.Err(), rpctypes.ErrCompacted) {
				now, revision, err := s.readConfig(ctx, seen)
				if err != nil {
					return err
				}
				config = s.client.Watch(ctx, s.ConfigKey(), clientv3.WithRev(revision+1))
				if !sameConfig(now, known) {
					known = now
					to(subnet.Change{ConfigSet: true, Config: now, Revision: seen.get().told})
				}
				continue
			}
		case resp, ok = <-records:
			if errors.Is(resp.Err(), rpctypes.ErrCompacted) {
				c, err := s.readMissed(ctx, seen)
				if err != nil {
					return err
				}
				records = s.client.Watch(ctx, s.recordsKey(), clientv3.WithPrefix(), clientv3.WithRev(c.Revision+1))
				seen.tell(c)
				to(c)
				continue
			}
			seen.count(resp.Events)
		}
		switch err := resp.Err(); {
		case err != nil:
			return err
		case !ok:
			return errWatchEnded
		}
		seen.hear(resp.Header)
		for c := range changes(resp.Events) {
			if c.ConfigSet {
				// Either watch may lag behind the other, so this one says nothing of records.
				c.Revision, known = seen.get().told, c.Config
			} else {
				seen.tell(c)
			}
			to(c)
		}
	}
}

// configChange is the last of the config's changes in one answer.
func configChange(events []*clientv3.Event) iter.Seq[subnet.Change] {
	return func(yield func(subnet.Change) bool) {
		if len(events) == 0 {
			return
		}
		last := events[len(events)-1]
		c := subnet.Change{ConfigSet: true}
		if last.Type == mvccpb.PUT {
			c.Config = notNil(last.Kv.Value)
		}
		yield(c)
	}
}

// recordChanges are the changes of records in one answer, one for each revision.
// An answer to a watch that comes back has up to a thousand of them, and none is
// divided between two (mvcc.eventBatch).
func (s *Store) recordChanges(events []*clientv3.Event) iter.Seq[subnet.Change] {
	return func(yield func(subnet.Change) bool) {
		for at := 0; at < len(events); {
			c := subnet.Change{Revision: events[at].Kv.ModRevision}
			for ; at < len(events) && events[at].Kv.ModRevision == c.Revision; at++ {
				if e := events[at]; e.Type == mvccpb.DELETE {
					c.Gone = append(c.Gone, s.lastPart(e.Kv.Key))
				} else {
					s.read(e.Kv, &c.Leases, &c.Bad)
				}
			}
			c.More = at < len(events)
			if !yield(c) {
				return
			}
		}
	}
}

// observe tells when the connection goes and comes: the client's watch resumes
// by itself and says nothing. When it is back, and now and then, what answers is
// looked at.
func (s *Store) observe(ctx context.Context, seen *seen, out *outage, alive chan<- struct{}, doubt chan<- error) {
	for {
		tick, cancel := context.WithTimeout(ctx, jittered(s.checkEvery))
		lost := s.awaitLoss(tick)
		cancel()
		if lost && !s.awaitReturn(ctx, func() {
			out.lost(func() error { return s.explain(ctx, context.DeadlineExceeded) })
		}) || ctx.Err() != nil {
			return
		}
		if err := s.sameStore(ctx, seen, out); err != nil {
			doubt <- err // It has room for the one word that is ever sent.
			return
		}
		if ctx.Err() != nil {
			return
		}
		out.back()
		select {
		case alive <- struct{}{}:
		default:
		}
	}
}
