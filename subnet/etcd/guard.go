package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// errLookAgain means that the record must be read again, at once.
var errLookAgain = errors.New("look again")

// guard watches the record and returns once it is another's or gone. It is
// silent about an etcd that is away: renew and Watch speak of that.
func (h *holder) guard(ctx context.Context) error {
	b := pauses(watchFirstWait, cheapMostWait)
	for {
		began := time.Now()
		err := h.guardOnce(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, subnet.ErrLeaseLost):
			return err
		case errors.Is(err, errLookAgain):
			continue
		case time.Since(began) > watchSettled:
			b.Reset()
		}
		if !pause(ctx, b) {
			return nil
		}
	}
}

// guardOnce reads the record and watches it until the connection comes back
// after it was lost, or the bell rings: the watch on a store that was wiped
// hangs in silence.
func (h *holder) guardOnce(ctx context.Context) error {
	bell := h.s.held.rings()
	kv, rev, err := h.getAt(ctx)
	if err != nil {
		return err
	}
	if err := h.judge(kv); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	back := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if h.s.awaitLoss(ctx) && h.s.awaitReturn(ctx, func() {}) {
			close(back)
		}
	})
	events := h.s.client.Watch(ctx, h.key, clientv3.WithRev(rev+1))
	for {
		var resp clientv3.WatchResponse
		var ok bool
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-back:
			return errLookAgain
		case <-bell:
			return errLookAgain
		case resp, ok = <-events:
		}
		switch err := resp.Err(); {
		case err != nil:
			return err
		case !ok:
			return errWatchEnded
		}
		for _, e := range resp.Events {
			if e.Type == mvccpb.DELETE {
				return h.judge(nil)
			}
			if err := h.judge(e.Kv); err != nil {
				return err
			}
		}
	}
}

func (h *holder) get(ctx context.Context) (*mvccpb.KeyValue, error) {
	kv, _, err := h.getAt(ctx)
	return kv, err
}

// getAt reads the record, nil for none, and the store's revision.
func (h *holder) getAt(ctx context.Context) (*mvccpb.KeyValue, int64, error) {
	ctx, cancel := h.s.limited(ctx)
	defer cancel()
	resp, err := h.s.client.Get(ctx, h.key)
	if err != nil {
		return nil, 0, err
	}
	if len(resp.Kvs) == 0 {
		return nil, resp.Header.Revision, nil
	}
	return resp.Kvs[0], resp.Header.Revision, nil
}

// judge tells why a record, nil for none, is not the holder's any more.
func (h *holder) judge(kv *mvccpb.KeyValue) error {
	if kv == nil {
		return fmt.Errorf("%w: its record was deleted", subnet.ErrLeaseLost)
	}
	l, err := subnet.ParseRecord(h.key[len(h.s.recordsKey()):], kv.Value)
	if err != nil {
		return fmt.Errorf("%w: its record was overwritten and cannot be read: %w", subnet.ErrLeaseLost, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if l.Node != h.node || !h.own[clientv3.LeaseID(kv.Lease)] {
		return fmt.Errorf("%w: its record was overwritten by %s", subnet.ErrLeaseLost, l.Holder())
	}
	return nil
}
