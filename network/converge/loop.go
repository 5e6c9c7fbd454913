// Package converge makes the kernel's forwarding state equal to the wanted one
// and keeps it so. It does not know why the two differ.
package converge

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/backend"
)

// Pauses between passes. A pass is held back so that a burst of events costs
// one dump and not one each, and the longer the more often in a row something
// had to be mended: neither an outside hand that fights nor a kernel that keeps
// another value than it was given may make a busy loop.
const (
	shortestPause = 5 * time.Millisecond
	longestPause  = 5 * time.Second
	firstRetry    = 100 * time.Millisecond
	longestRetry  = 30 * time.Second
)

// Loop is the loop. Update may be called from any goroutine; Run once.
type Loop struct {
	kernel backend.Kernel
	log    *zap.Logger
	// kick wakes Run; it carries no data.
	kick      chan struct{}
	converged chan struct{}

	mu     sync.Mutex
	ledger backend.Ledger
	// told is set by the first Update: before it nothing is known to be
	// wanted, and an empty want would empty the kernel.
	told bool
	// dirty are entries that may differ from the kernel's.
	dirty map[backend.Entry]struct{}
	// doubt says that the kernel must be read again.
	doubt bool

	// The rest is Run's own.
	have    *backend.State
	streak  int // Passes in a row that mended what a dump showed.
	retry   backoff.ExponentialBackOff
	failing reporter
}

// New returns a loop that has been told of nothing yet.
func New(kernel backend.Kernel, log *zap.Logger) *Loop {
	return &Loop{
		kernel: kernel, log: log,
		kick: make(chan struct{}, 1), converged: make(chan struct{}),
		dirty: map[backend.Entry]struct{}{}, doubt: true,
		retry:   backoff.ExponentialBackOff{InitialInterval: firstRetry, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: longestRetry},
		failing: reporter{log: log, said: map[backend.Entry]string{}},
	}
}

// Update changes what is wanted: first it takes back, then it adds. The first
// Update must bring all that is wanted at that time; until it comes, the loop
// touches nothing.
func (l *Loop) Update(release, owe []backend.Entry) {
	l.mu.Lock()
	l.ledger.Release(release...)
	l.ledger.Owe(owe...)
	for _, entries := range [][]backend.Entry{release, owe} {
		for _, e := range entries {
			l.dirty[e] = struct{}{}
		}
	}
	l.told = true
	l.mu.Unlock()
	l.wake()
}

// Converged is closed after the first pass that left the node's devices and
// addresses right. A peer's entry that fails is said and tried again, and keeps
// the node from nothing else.
func (l *Loop) Converged() <-chan struct{} { return l.converged }

func (l *Loop) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// doubtful notes that the kernel may have changed by another hand or our own.
func (l *Loop) doubtful() {
	l.mu.Lock()
	l.doubt = true
	l.mu.Unlock()
	l.wake()
}

// Run converges until ctx ends, which returns nil.
func (l *Loop) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return l.kernel.Watch(ctx, l.doubtful) })
	group.Go(func() error { return l.converge(ctx) })
	return group.Wait()
}

func (l *Loop) converge(ctx context.Context) error {
	again := time.NewTimer(0) // What failed is tried again when it fires.
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.kick:
		case <-again.C:
		}
		clean := l.pass(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if clean {
			l.retry.Reset()
		} else {
			l.doubtLater()
			again.Reset(l.retry.NextBackOff())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(min(shortestPause<<min(l.streak, 10), longestPause)):
		}
	}
}

// doubtLater has the next pass read the kernel, without waking it.
func (l *Loop) doubtLater() {
	l.mu.Lock()
	l.doubt = true
	l.mu.Unlock()
}

// pass compares once and mends what differs. It tells whether all is as it
// should be afterwards.
func (l *Loop) pass(ctx context.Context) bool {
	start := time.Now()
	whole, told := l.takeDoubt()
	if !told {
		return true
	}
	if whole {
		have, err := l.kernel.Dump(ctx)
		if err != nil {
			l.failing.dump(ctx, err)
			return false
		}
		l.have = have
	}
	ops := l.plan(whole)
	if len(ops) == 0 {
		if whole {
			l.streak = 0
			l.failing.keep(nil)
		}
		l.markConverged()
		return true
	}
	failures := backend.Execute(ctx, l.kernel, l.have, ops)
	if whole && len(failures) < len(ops) {
		l.streak++ // Our own echoes come next, and find nothing unless somebody fights.
	}
	if ctx.Err() != nil {
		return false
	}
	l.report(ops, failures, time.Since(start))
	if !slices.ContainsFunc(failures, func(f backend.Failure) bool { return f.Op.Entry.Kind() <= backend.KindAddress }) {
		l.markConverged()
	}
	return len(failures) == 0
}

func (l *Loop) takeDoubt() (doubt, told bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	doubt, told = l.doubt, l.told
	if told {
		l.doubt = false
	}
	return doubt, told
}

// plan returns what is to be done: all of the difference after a doubt, else
// that of what was touched. A device that changes takes the whole difference,
// for all that hangs on it may change too.
func (l *Loop) plan(whole bool) []backend.Op {
	l.mu.Lock()
	defer l.mu.Unlock()
	dirty := l.dirty
	l.dirty = map[backend.Entry]struct{}{}
	want := l.ledger.Want()
	for e := range dirty {
		whole = whole || e.Kind() == backend.KindDevice
	}
	if whole {
		return backend.Diff(l.have, want)
	}
	return backend.Diff(l.have.Pick(maps.Keys(dirty)), want.Pick(maps.Keys(dirty)))
}

func (l *Loop) markConverged() {
	select {
	case <-l.converged:
	default:
		close(l.converged)
	}
}

// report logs what changed and what did not.
func (l *Loop) report(ops []backend.Op, failures []backend.Failure, took time.Duration) {
	var count [3]int
	for _, op := range ops {
		count[op.Verb]++
		l.log.Debug("op", zap.Stringer("op", op))
	}
	for _, f := range failures {
		count[f.Op.Verb]--
	}
	if len(ops) > len(failures) {
		l.log.Info("forwarding state changed", zap.Int("added", count[backend.Add]), zap.Int("replaced", count[backend.Replace]),
			zap.Int("deleted", count[backend.Delete]), zap.Int("failed", len(failures)), zap.Duration("took", took))
	}
	l.failing.keep(failures)
}

// reporter says each failure once, and once that it is over.
type reporter struct {
	log  *zap.Logger
	said map[backend.Entry]string
	// noDump is what the last dump failed with, "" if it did not.
	noDump string
}

// mostSaid bounds the lines of one pass; the rest is counted.
const mostSaid = 10

// keep replaces what is failing.
func (r *reporter) keep(failures []backend.Failure) {
	now := make(map[backend.Entry]string, len(failures))
	lines, more, left := 0, 0, 0
	for _, f := range failures {
		now[f.Op.Entry] = f.Err.Error()
		switch {
		case r.said[f.Op.Entry] == f.Err.Error():
		case errors.Is(f.Err, backend.ErrBlocked):
			left++
		case lines == mostSaid:
			more++
		default:
			lines++
			r.log.Warn("change failed, will be tried again", zap.Stringer("op", f.Op), zap.Error(f.Err))
		}
	}
	if more+left > 0 {
		r.log.Warn("more changes failed or wait for those that did", zap.Int("failed", more), zap.Int("waiting", left))
	}
	if len(now) == 0 && len(r.said) > 0 {
		r.log.Info("changes that failed have been made", zap.Int("changes", len(r.said)))
	}
	r.said, r.noDump = now, ""
}

func (r *reporter) dump(ctx context.Context, err error) {
	if ctx.Err() == nil && err.Error() != r.noDump {
		r.noDump = err.Error()
		r.log.Warn("kernel cannot be read, will be tried again", zap.Error(err))
	}
}
