package network

import (
	"bytes"
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

// lastWrite bounds the write at the end: a disk that does not answer must not
// keep the daemon from ending.
const lastWrite = 2 * time.Second

// keeper keeps the snapshot on disk up to date. Nobody waits for the disk but run:
// a lease is renewed, and peers change, while it does not answer.
type keeper struct {
	// write puts a snapshot on disk.
	write func(*snapshot) error
	log   *zap.Logger
	peers func() (epoch string, revision int64, peers subnet.SavedPeers)
	// dirty has something when there is something to write, urgent when at once.
	dirty, urgent chan struct{}
	failed        bool // The last write, as far as is known.

	mu       sync.Mutex
	snapshot snapshot
}

// newKeeper returns one for a node that begins with s, where saved, nil for
// nothing, is on disk. What is there already is not written again: the first
// write is then that of what the store tells first.
func newKeeper(dir string, log *zap.Logger, saved *snapshot, s snapshot, peers func() (string, int64, subnet.SavedPeers)) *keeper {
	k := &keeper{
		write: func(s *snapshot) error { return s.write(dir) },
		log:   log, snapshot: s, peers: peers, dirty: make(chan struct{}, 1), urgent: make(chan struct{}, 1),
	}
	if saved != nil && saved.Lease.ID == s.Lease.ID {
		k.snapshot.Expires = saved.Expires
	}
	if saved == nil || saved.Lease != s.Lease || !bytes.Equal(saved.Config, s.Config) {
		signal(k.urgent)
	}
	return k
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

// run writes what changed until ctx ends, and then for the last time, if there is
// anything to write.
func (k *keeper) run(ctx context.Context) {
	var pause time.Duration
	for {
		again := time.NewTimer(pause)
		owed := true
		select {
		case <-ctx.Done():
			owed = false
		case <-k.urgent:
		case <-again.C:
			select {
			case <-ctx.Done():
				owed = false
			case <-k.urgent:
			case <-k.dirty:
			}
		}
		again.Stop()
		if ctx.Err() != nil {
			if owed || len(k.dirty)+len(k.urgent) > 0 {
				k.save(ctx)
			}
			return
		}
		took, ok := k.save(ctx)
		if !ok {
			return
		}
		pause = max(saveEvery, saveShare*took)
	}
}

// save writes what is now and returns how long that took. A failure is said
// once, and tried again: the node works without, until the store is away at a
// start. Once ctx has ended it waits for the disk for lastWrite, and returns false
// if that was not enough.
//
// The write is then left behind, and ends with the process: the kernel lets nobody
// out of a write or a sync that the disk does not answer (a sleep that no signal
// interrupts), and closing the file from here would wait for it too.
func (k *keeper) save(ctx context.Context) (took time.Duration, ok bool) {
	began := time.Now()
	for _, c := range []chan struct{}{k.dirty, k.urgent} { // What comes from here on may not be in it.
		select {
		case <-c:
		default:
		}
	}
	now := k.now(began)
	done := make(chan error, 1)
	go func() { done <- k.write(now) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		limit := time.NewTimer(lastWrite)
		defer limit.Stop()
		select {
		case err = <-done:
		case <-limit.C:
			k.log.Warn("snapshot not saved: the disk under --state-dir does not answer", zap.Duration("waited", lastWrite))
			return time.Since(began), false
		}
	}
	switch {
	case err != nil && !k.failed:
		k.log.Warn("snapshot not saved: this node cannot start while the store is away", zap.Error(err))
	case err == nil && k.failed:
		k.log.Info("snapshot is saved again")
	}
	if k.failed = err != nil; k.failed {
		signal(k.dirty)
	}
	return time.Since(began), true
}

// now is what there is to save.
func (k *keeper) now(at time.Time) *snapshot {
	epoch, revision, peers := k.peers()
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.snapshot
	s.Epoch, s.Revision, s.Peers, s.Written = epoch, revision, peers, at.Round(0)
	return &s
}
