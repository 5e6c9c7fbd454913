// Package converge makes the kernel's forwarding state equal to the wanted one
// and keeps it so. It does not know why the two differ.
package converge

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/backend"
)

const (
	// After a pass that had something to look at the loop rests as long as that
	// took, within these bounds: a burst then costs a few passes and not one for
	// each event, and what comes alone finds the loop idle.
	leastRest = 50 * time.Microsecond
	mostRest  = 5 * time.Millisecond
	// Dumps after a doubt may follow one another mostDumps times, and then one
	// each dumpEvery, for a hand that takes a device up and down all the time.
	mostDumps = 20
	dumpEvery = time.Second
)

// Loop is the loop. Update may be called from any goroutine; Run once.
type Loop struct {
	kernel backend.Kernel
	log    *zap.Logger
	// kick wakes Run; it carries no data.
	kick chan struct{}
	// asked has what Run is to call between two passes.
	asked      chan func()
	converged  chan struct{}
	auditEvery time.Duration

	mu     sync.Mutex
	ledger backend.Ledger
	// told is set by the first Update: before it nothing is known to be
	// wanted, and an empty want would empty the kernel.
	told bool
	// careful says that what is wanted may lack peers. found has what the first
	// comparison since then found otherwise, by its identity; nil before it.
	careful bool
	found   map[backend.Entry]backend.Entry
	// recompare asks for a whole comparison, at first and after being careful.
	recompare bool
	// keep are the subnets that Keep named last, letGo those that it named
	// before and that no pass has looked at since.
	keep  map[netip.Prefix]struct{}
	letGo []netip.Prefix
	// dirty are the identities of entries of which the want has changed.
	dirty map[backend.Entry]struct{}
	// revision is that of the last Update, reached that of the last of which
	// the node's entries are as wanted; step is closed when it advances.
	revision, reached int64
	step              chan struct{}
	stats             Stats
	latest            Report

	// The rest is Run's own. have is the mirror of the kernel, unread says why
	// it is not to be trusted.
	have   *backend.State
	unread reason
	// settled says that all that was wanted has been compared once: what
	// differs after that without a change of the want is drift.
	settled bool
	// again are entries to be compared in the next pass.
	again   []backend.Entry
	failing failing
	fights  fights
	reports *reports
	audit   time.Time
	// auditTook is how long the last one was.
	auditTook time.Duration
	// suspected has what the last audit found and the next is to confirm.
	suspected map[backend.Entry]struct{}
	dumping   allowance
	// noDump is why the last dump failed, "" if it did not. dumpTries counts
	// failed dumps, dumpAgain is when to try the next.
	noDump    string
	dumpTries int
	dumpAgain time.Time
}

// New returns a loop that has been told of nothing yet. If the kernel has a
// method Hand(port uint32) string, it says in the log who made a change.
func New(kernel backend.Kernel, log *zap.Logger) *Loop {
	name := func(port uint32) string {
		if port == 0 {
			return "unknown"
		}
		return fmt.Sprintf("netlink port %d", port)
	}
	if k, ok := kernel.(interface{ Hand(port uint32) string }); ok {
		name = k.Hand
	}
	reports := newReports(log)
	return &Loop{
		kernel: kernel, log: log, reports: reports, auditEvery: DefaultAuditEvery,
		kick: make(chan struct{}, 1), asked: make(chan func()), converged: make(chan struct{}), step: make(chan struct{}), reached: -1,
		dirty: map[backend.Entry]struct{}{}, unread: start,
		failing: failing{reports: reports, entries: map[backend.Entry]failure{}},
		fights:  fights{log: log, reports: reports, calm: calmAfter, most: mostFights, name: name, entries: map[backend.Entry]*fight{}},
		dumping: allowance{left: mostDumps},
	}
}

// Update changes what is wanted as of a revision of the store: first it takes
// back, then it adds. The first Update must bring all that is wanted at that
// time; until it comes, the loop touches nothing.
func (l *Loop) Update(revision int64, release, owe []backend.Entry) {
	l.mu.Lock()
	l.ledger.Release(release...)
	l.ledger.Owe(owe...)
	if !l.told {
		l.recompare = true // All is new, so nothing need be noted one by one.
	} else {
		for _, entries := range [][]backend.Entry{release, owe} {
			for _, e := range entries {
				l.dirty[backend.Identity(e)] = struct{}{}
			}
		}
	}
	l.told, l.revision = true, revision
	l.mu.Unlock()
	l.wake()
}

// Converged is closed after the first pass that left the node's devices and
// addresses right. A peer's entry that fails is said and tried again, and keeps
// the node from nothing else.
func (l *Loop) Converged() <-chan struct{} { return l.converged }

// WaitFor returns nil once a pass has seen the Update of that revision, or of a
// later one, and left the node's devices and addresses as wanted; or ctx's error.
// It does not wait for a peer's entry that fails: Stats tells of those.
func (l *Loop) WaitFor(ctx context.Context, revision int64) error {
	for {
		l.mu.Lock()
		reached, step := l.reached, l.step
		l.mu.Unlock()
		if reached >= revision {
			select {
			case <-l.converged:
				return nil
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for revision %d: %w", revision, ctx.Err())
		case <-step:
		}
	}
}

func (l *Loop) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// Run converges until ctx ends, which returns nil.
func (l *Loop) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	subscribed := make(chan struct{})
	once := sync.OnceFunc(func() { close(subscribed) })
	group.Go(func() error {
		return l.kernel.Watch(ctx, func() {
			once()
			l.wake()
		})
	})
	group.Go(func() error { return l.converge(ctx, subscribed) })
	return group.Wait()
}

// longestSubscribe is how long the first pass waits for the subscription: what is
// read before it has to be read again. Where there is none to be had, as on a host
// that is short of memory, peers' entries are made without.
const longestSubscribe = time.Second

func (l *Loop) converge(ctx context.Context, subscribed <-chan struct{}) error {
	l.planAudit(time.Now())
	select {
	case <-ctx.Done():
		return nil
	case <-subscribed:
	case <-time.After(longestSubscribe):
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer l.reports.flush()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.kick:
		case <-timer.C:
		case f := <-l.asked:
			f()
			continue
		}
		began := time.Now()
		looked := l.pass(ctx)
		l.reports.say(time.Now())
		l.note(began)
		if next := l.next(); !next.IsZero() {
			timer.Reset(time.Until(next))
		}
		if !looked {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rest(time.Since(began))):
		}
	}
}

// rest is how long the loop waits after a pass that took so long.
func rest(took time.Duration) time.Duration { return min(max(took, leastRest), mostRest) }

// next is when there is something to do without a kick.
func (l *Loop) next() time.Time {
	at := earlier(earlier(l.failing.agenda.next(), l.fights.agenda.next()), l.reports.next())
	if l.unread == none {
		return earlier(at, l.audit)
	}
	return earlier(at, l.dumpAgain)
}

// count changes the counts.
func (l *Loop) count(change func(*Stats)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.stats)
}

// allowance is a number of times that grows by one each dumpEvery up to
// mostDumps.
type allowance struct {
	left int
	last time.Time
}

// take uses one, or says when there will be one.
func (a *allowance) take(now time.Time) (ok bool, at time.Time) {
	if grown := int(now.Sub(a.last) / dumpEvery); a.left+grown >= mostDumps || a.last.IsZero() {
		a.left, a.last = mostDumps, now
	} else {
		a.left += grown
		a.last = a.last.Add(time.Duration(grown) * dumpEvery)
	}
	if a.left == 0 {
		return false, a.last.Add(dumpEvery)
	}
	a.left--
	return true, time.Time{}
}
