package network

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet"
)

// saveEvery is how often the snapshot is written at most. A large one is written
// more seldom: saving takes one part in a hundred of the time.
const (
	saveEvery = 10 * time.Second
	saveShare = 100
)

// maxSaveMargin bounds how much earlier than the store says a lease is taken to
// end, for clocks that do not run alike; a tenth of its time is enough for a
// short one.
const maxSaveMargin = 5 * time.Minute

// keeper keeps the snapshot on disk up to date.
type keeper struct {
	dir   string
	log   *zap.Logger
	peers func() (epoch string, revision int64, peers []subnet.Saved)
	// dirty has something when there is something to write, urgent when at once.
	dirty, urgent chan struct{}

	mu       sync.Mutex
	snapshot snapshot
	failed   bool
}

func newKeeper(dir string, log *zap.Logger, s snapshot, peers func() (string, int64, []subnet.Saved)) *keeper {
	return &keeper{dir: dir, log: log, snapshot: s, peers: peers, dirty: make(chan struct{}, 1), urgent: make(chan struct{}, 1)}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// changed notes that the peers changed.
func (k *keeper) changed() { signal(k.dirty) }

// settled notes that the store is another than the snapshot's, or that no peer is
// held any more. By the old snapshot, peers would be held after a restart that have
// left since.
func (k *keeper) settled() { signal(k.urgent) }

// claimed notes the lease.
func (k *keeper) claimed(l subnet.Lease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.ID != k.snapshot.Lease.ID { // Nothing is known of how long this one lasts.
		k.snapshot.Expires = time.Time{}
	}
	k.snapshot.Lease = l
	signal(k.urgent)
}

// renewed notes until when the store keeps the lease.
func (k *keeper) renewed(until time.Time) {
	until = until.Add(-min(maxSaveMargin, time.Until(until)/10)).Round(0)
	k.mu.Lock()
	defer k.mu.Unlock()
	first := k.snapshot.Expires.IsZero()
	k.snapshot.Expires = until
	if first {
		signal(k.urgent)
		return
	}
	signal(k.dirty)
}

// run writes what changed until ctx ends, and then for the last time.
func (k *keeper) run(ctx context.Context) error {
	for {
		took := k.write()
		again := time.NewTimer(max(saveEvery, saveShare*took))
		select {
		case <-ctx.Done():
		case <-k.urgent:
		case <-again.C:
			select {
			case <-ctx.Done():
			case <-k.urgent:
			case <-k.dirty:
			}
		}
		again.Stop()
		if ctx.Err() != nil {
			k.write()
			return nil
		}
	}
}

// write saves what is now and returns how long that took. A failure is said
// once: the node works without, until the store is away at a start.
func (k *keeper) write() time.Duration {
	began := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.snapshot.Epoch, k.snapshot.Revision, k.snapshot.Peers = k.peers()
	k.snapshot.Written = began.Round(0)
	switch err := k.snapshot.write(k.dir); {
	case err != nil && !k.failed:
		k.failed = true
		k.log.Warn("snapshot not saved: this node cannot start while the store is away", zap.Error(err))
	case err == nil && k.failed:
		k.failed = false
		k.log.Info("snapshot is saved again")
	}
	return time.Since(began)
}
