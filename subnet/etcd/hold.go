package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ripstop-net/ripstop/subnet"
)

// maxRenewInterval bounds the time between renewals of a long lease, so that
// its rest is always near the whole when etcd goes away.
const maxRenewInterval = time.Hour

// holder keeps one lease.
type holder struct {
	s    *Store
	of   subnet.Subnets
	key  string
	node string

	mu sync.Mutex
	// id is the etcd lease that the record is on. next is the one that it is
	// being moved to, 0 for none: until etcd's answer is known it may be on either.
	id, next clientv3.LeaseID
	// own are all that the record was ever on: an event may tell of one late.
	own map[clientv3.LeaseID]bool

	// least is the time, in seconds, that etcd grants whatever it is asked for,
	// 0 as long as it has not shown one. It is renew's alone.
	least int64
}

// Hold keeps the lease alive and watches over its record; see [subnet.Store].
// A record of the same node on the same etcd lease is its own, whatever else
// it says, so the holder may rewrite it meanwhile.
//
// Where the etcd lease has another time to live than the store's, the record is
// moved to a new one, which is a write; the record then has another ID.
func (s *Store) Hold(ctx context.Context, l subnet.Lease, alive func(until time.Time)) error {
	if alive == nil {
		alive = func(time.Time) {}
	}
	id := clientv3.LeaseID(l.ID)
	defer s.held.add(heldRecord{s.recordKey(l.Subnets), l.Created})()
	h := &holder{s: s, of: l.Subnets, key: s.recordKey(l.Subnets), node: l.Node, id: id, own: map[clientv3.LeaseID]bool{id: true}}
	g, ctx := errgroup.WithContext(ctx)
	if !l.Reservation() {
		g.Go(func() error { return h.renew(ctx, alive) })
	}
	g.Go(func() error { return h.guard(ctx) })
	if err := g.Wait(); err != nil {
		return fmt.Errorf("hold %s: %w", l.Subnets.Key(), err)
	}
	return nil
}

// Pauses between tries to renew; those of a short lease are shorter.
const (
	holdFirstWait = 100 * time.Millisecond
	holdMostWait  = 10 * time.Second
)

// renew keeps the etcd lease alive, and says until when it is. It returns nil when ctx ends.
func (h *holder) renew(ctx context.Context, alive func(until time.Time)) error {
	out := newOutage(h.s.log, "hold")
	// Until etcd says what was granted, what this store grants is the best guess.
	ttl := time.Duration(h.s.opts.ttlSeconds()) * time.Second
	renewed := time.Now()
	b := pauses(holdFirstWait, holdMostWait)
	for {
		sent := time.Now()
		granted, err := h.renewOnce(ctx, renewed.Add(ttl))
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			var moved int64
			if moved, err = h.move(ctx, 0); err == nil && moved == 0 {
				return fmt.Errorf("%w: its etcd lease %x has ended", subnet.ErrLeaseLost, h.current())
			}
			if err == nil { // The record was there without it.
				ttl, renewed = time.Duration(moved)*time.Second, time.Now()
				continue
			}
		case err == nil:
			out.back()
			b.Reset()
			ttl, renewed = time.Duration(granted)*time.Second, sent
			if granted != h.s.opts.ttlSeconds() && granted != h.least {
				moved, err := h.move(ctx, granted)
				if err != nil && ctx.Err() == nil {
					out.lost(func() error { return fmt.Errorf("change the time to live: %w", h.s.explain(ctx, err)) })
				}
				if moved > 0 {
					ttl = time.Duration(moved) * time.Second
				}
			}
			alive(renewed.Add(ttl))
			interval := min(ttl/3, maxRenewInterval)
			if !sleep(ctx, interval-rand.N(interval/8+1)) {
				return nil
			}
			continue
		case time.Since(renewed) >= ttl:
			return fmt.Errorf("%w: etcd was away for the lease's whole time of %s: %w", subnet.ErrLeaseLost, ttl, err)
		}
		out.lost(func() error { return h.s.explain(ctx, err) })
		b.MaxInterval = min(max(ttl/8, holdFirstWait), holdMostWait)
		if !pause(ctx, b) {
			return nil
		}
	}
}

// renewOnce asks etcd once to renew, and returns the lease's time to live in
// seconds.
func (h *holder) renewOnce(ctx context.Context, expiry time.Time) (int64, error) {
	ctx, cancel := h.s.limited(ctx)
	defer cancel()
	// A try must not outlast the lease, nor be cut so short that it cannot succeed.
	ctx, cancelLate := context.WithDeadline(ctx, laterOf(expiry, time.Now().Add(time.Second)))
	defer cancelLate()
	return h.s.keepAlive(ctx, h.current())
}

// keepAlive renews an etcd lease once and returns its time to live in seconds.
// The client's KeepAliveOnce repeats without a pause while a server has no leader.
func (s *Store) keepAlive(ctx context.Context, id clientv3.LeaseID) (int64, error) {
	stream, err := s.leases.LeaseKeepAlive(ctx, grpc.WaitForReady(true))
	if err != nil {
		return 0, clientv3.ContextError(ctx, err)
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(id)}); err != nil {
		return 0, clientv3.ContextError(ctx, err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return 0, clientv3.ContextError(ctx, err)
	}
	if resp.TTL <= 0 {
		return 0, rpctypes.ErrLeaseNotFound
	}
	return resp.TTL, nil
}

func laterOf(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func (h *holder) current() clientv3.LeaseID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.id
}

func (h *holder) setNext(id clientv3.LeaseID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next, h.own[id] = id, true
}

func (h *holder) dropNext() {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.own, h.next)
	h.next = 0
}

// moveDone makes next the lease that is held and returns the one before.
func (h *holder) moveDone() (old clientv3.LeaseID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	old, h.id, h.next = h.id, h.next, 0
	return old
}

// move puts the record, unchanged, on an etcd lease of this store's time to
// live. It returns that time in seconds, 0 if the record stays where it is: the
// next renewal tries again, and finds out what became of this try.
func (h *holder) move(ctx context.Context, granted int64) (int64, error) {
	kv, err := h.get(ctx)
	if err != nil || kv == nil { // No record: guard finds that too.
		return 0, err
	}
	h.mu.Lock()
	id, next := h.id, h.next
	h.mu.Unlock()
	ttl := h.s.opts.ttlSeconds()
	switch clientv3.LeaseID(kv.Lease) {
	case id:
	case next: // An earlier try went through after all.
		h.s.revoke(ctx, h.moveDone())
		return ttl, nil
	default:
		return 0, nil
	}
	if next == 0 {
		if next, ttl, err = h.s.grant(ctx, h.s.opts.LeaseTTL); err != nil {
			return 0, err
		}
		if ttl == granted { // etcd's least time depends on its election timeout.
			h.least = granted
			h.s.revoke(ctx, next)
			return 0, nil
		}
		h.setNext(next)
	}
	rctx, cancel := h.s.limited(ctx)
	defer cancel()
	resp, err := h.s.client.Txn(rctx).If(
		clientv3.Compare(clientv3.ModRevision(h.key), "=", kv.ModRevision),
		clientv3.Compare(clientv3.LeaseValue(h.key), "=", int64(id)),
	).Then(h.s.recordPuts(h.of, string(kv.Value), next)...).Commit()
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound): // The new one ran out before it was used.
		h.dropNext()
		return 0, err
	case err != nil || !resp.Succeeded:
		return 0, err
	}
	h.s.revoke(ctx, h.moveDone())
	return ttl, nil
}
