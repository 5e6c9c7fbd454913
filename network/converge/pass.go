package converge

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
)

// pass is one comparison and what it leads to.
type pass struct {
	*Loop
	now time.Time
	// look has the identities of the entries to compare, with the port of the
	// hand that changed them; whole says that it is all.
	look  map[backend.Entry]uint32
	whole bool
	// audits says that it was begun to audit the mirror.
	audits bool
	// updated are those among them of which the want has changed.
	updated map[backend.Entry]struct{}
	// revision is that of the want which is compared.
	revision int64
	// drifted are the entries that an outside hand has changed; what hangs on
	// one of the moved devices, which change themselves, drifted with it.
	drifted map[backend.Entry]struct{}
	moved   map[string]bool
	// unasked is how many of the ops follow from no change of the want.
	unasked int
}

// pass brings the mirror up to date, compares what changed, on either side or
// by time, and mends what differs. It tells whether there was anything to look at,
// which the echo of the loop's own ops is not.
func (l *Loop) pass(ctx context.Context) (looked bool) {
	p := &pass{Loop: l, now: time.Now(), look: map[backend.Entry]uint32{}, moved: map[string]bool{}}
	changes, lost := l.kernel.Changes()
	switch {
	case lost:
		p.doubt()
	case l.have != nil:
		p.correct(changes)
	}
	if !l.isTold() {
		if l.unread != none { // So that nothing waits for that when the want is known.
			p.read(ctx)
		}
		return true
	}
	if !p.read(ctx) {
		return true
	}
	visit := func(id backend.Entry) {
		if id == nil {
			p.whole = true
		} else if _, ok := p.look[id]; !ok {
			p.look[id] = 0
		}
	}
	l.fights.due(p.now, visit)
	l.failing.due(p.now, visit)
	for _, id := range l.again {
		visit(id)
	}
	l.again = nil
	ops := p.sift(p.plan())
	failures := backend.Execute(ctx, l.kernel, l.have, ops)
	if len(ops) > 0 {
		l.wake() // What came by meanwhile is told without a call.
	}
	if ctx.Err() != nil {
		return true
	}
	p.conclude(ops, failures)
	if p.audits {
		p.audited()
	}
	return p.whole || len(p.look) > 0
}

func (l *Loop) isTold() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told
}

// doubt notes that announcements did not tell all. That something went that was
// in the way is then lost, too.
func (p *pass) doubt() {
	if p.unread == none {
		p.unread = doubt
	}
	p.failing.freedAll(p.now)
}

// correct takes what the kernel announced into the mirror.
func (p *pass) correct(changes []backend.Change) {
	news, lost := p.have.Correct(changes)
	if lost && p.unread == none {
		p.unread = doubt
	}
	for _, c := range news {
		p.look[backend.Identity(c.Entry)] = c.By
	}
	for _, c := range changes {
		if c.Freed {
			p.failing.freed(backend.Identity(c.Entry), p.now)
		}
	}
}

// read dumps the kernel if the mirror is not to be trusted, or audits it in
// time. It tells whether there is a mirror to go on with: one that is in doubt
// and cannot be read yet will do, for what is newly wanted must not wait.
func (p *pass) read(ctx context.Context) (ok bool) {
	if p.unread == none && !p.audit.After(p.now) {
		p.auditNow(ctx)
	}
	if p.unread == none {
		return true
	}
	if p.dumpAgain.After(p.now) {
		return p.have != nil
	}
	if allowed, at := p.dumping.take(p.now); !allowed {
		p.dumpAgain = at
		return p.have != nil
	}
	have, err := p.dump(ctx)
	if err != nil {
		return p.have != nil
	}
	p.count(func(s *Stats) { s.Dumps.count(p.unread) })
	p.have, p.unread, p.whole, p.suspected = have, none, true, nil
	return true
}

func (p *pass) dump(ctx context.Context) (*backend.State, error) {
	have, err := p.kernel.Dump(ctx)
	if err != nil {
		if ctx.Err() == nil {
			p.reports.dump(err)
		}
		p.dumpAgain = p.now.Add(min(firstRetry<<min(p.dumpTries, 10), longestRetry))
		p.noDump = err.Error()
		p.dumpTries++
		p.count(func(s *Stats) { s.Dumps.Failed++ })
		return nil, err
	}
	p.noDump, p.dumpTries, p.dumpAgain = "", 0, time.Time{}
	p.reports.dump(nil)
	return have, nil
}

// plan returns the difference: of all, or of what is looked at. A device that
// changes takes the whole, for all that hangs on it may change too.
func (p *pass) plan() []backend.Op {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Passes++
	p.revision = p.Loop.revision
	p.updated = p.dirty
	p.dirty = map[backend.Entry]struct{}{}
	for id := range p.updated {
		p.failing.renew(id, p.now)
		if _, ok := p.look[id]; !ok {
			p.look[id] = 0
		}
	}
	for id := range p.look {
		p.whole = p.whole || id.Kind() == backend.KindDevice
	}
	p.whole = p.letsGo() || p.whole || p.recompare
	p.recompare = false
	return p.keeping(p.differ())
}

// sift leaves out the ops that are not to be tried yet: what failed lately, and
// what an outside hand fights for. It keeps the rest, among which it notes the
// drift. Of a device that is held back and missing or down, all that hangs on it
// is held back too, as it would be in vain.
func (p *pass) sift(ops []backend.Op) []backend.Op {
	if !p.settled && len(p.failing.entries) == 0 {
		return ops // There is no drift before all was compared once.
	}
	p.unasked = max(0, len(ops)-len(p.updated))
	for _, op := range ops {
		if op.Entry.Kind() == backend.KindDevice {
			p.moved[op.Entry.On()] = true
		}
	}
	out := map[string]bool{} // Devices held back that carry nothing now.
	goes := make([]bool, len(ops))
	for i, op := range ops {
		id := backend.Identity(op.Entry)
		device := id.Kind() == backend.KindDevice
		if goes[i] = p.allowed(id); goes[i] || !device {
			continue
		}
		if d, ok := p.have.Device(id.On()); op.Verb != backend.Replace || !ok || d.Down {
			out[id.On()] = true
		}
	}
	kept := ops[:0:0]
	for i, op := range ops {
		if goes[i] && !out[op.Entry.On()] {
			kept = append(kept, op)
		}
	}
	return kept
}

// allowed tells whether an entry may be changed now.
func (p *pass) allowed(id backend.Entry) bool {
	if _, ok := p.updated[id]; ok {
		return true
	}
	if held, known := p.failing.holds(id, p.now); known {
		return !held
	}
	if !p.settled {
		return true
	}
	if p.alone(id) && p.fights.holds(id, p.now) {
		return false
	}
	if p.drifted == nil {
		p.drifted = make(map[backend.Entry]struct{}, p.unasked)
	}
	p.drifted[id] = struct{}{}
	return true
}

// alone tells whether an entry is, or did not drift with, a device.
func (p *pass) alone(id backend.Entry) bool {
	return id.Kind() == backend.KindDevice || !p.moved[id.On()]
}

// conclude notes what came of the ops.
func (p *pass) conclude(ops []backend.Op, failures []backend.Failure) {
	failed := make(map[backend.Entry]struct{}, len(failures))
	for _, f := range failures {
		failed[backend.Identity(f.Op.Entry)] = struct{}{}
	}
	if p.log.Level() <= zap.DebugLevel {
		for _, op := range ops {
			p.log.Debug("op", zap.Stringer("op", op))
		}
	}
	tried := map[backend.Entry]struct{}{}
	if len(p.failing.entries) > 0 { // Else there is none of which this could be news.
		for _, op := range ops {
			tried[backend.Identity(op.Entry)] = struct{}{}
		}
	}
	awaited := false
	for id := range tried {
		if _, ok := failed[id]; !ok {
			awaited = p.failing.over(id, true) || awaited
		}
	}
	p.resolved(tried, func(id backend.Entry) { awaited = p.failing.over(id, p.made(id)) || awaited })
	if p.failing.add(failures, p.now) && p.unread == none {
		p.unread = surprise
		p.wake()
	}
	if awaited {
		p.failing.waiting(func(id backend.Entry) { p.again = append(p.again, id) })
		p.wake()
	}
	p.reports.settle(len(p.failing.entries))
	p.settled = p.settled || p.whole
	p.report(ops, failed)
	p.count(func(s *Stats) {
		s.Ops += uint64(len(ops) - len(failures))
		s.Failures += uint64(len(failures))
		s.Failing, s.Fought = len(p.failing.entries), p.fights.fought
	})
	p.arrive()
}

// resolved settles the entries that were failing and no longer differ.
func (p *pass) resolved(tried map[backend.Entry]struct{}, settle func(backend.Entry)) {
	if len(p.failing.entries) == 0 {
		return
	}
	if !p.whole {
		for id := range p.look {
			if _, ok := tried[id]; !ok && !p.failing.held(id, p.now) {
				settle(id)
			}
		}
		return
	}
	for id := range p.failing.entries {
		if _, ok := tried[id]; !ok && !p.failing.held(id, p.now) {
			settle(id)
		}
	}
}

// made tells of a failing entry that differs no more whether it is there, or
// gone, as it was to be. Else it is no longer wanted so.
func (p *pass) made(id backend.Entry) bool {
	p.mu.Lock()
	want, wanted := p.wantAt(id)
	p.mu.Unlock()
	if wanted {
		return p.have.Has(want)
	}
	return p.failing.entries[id].verb == backend.Delete
}

// arrive advances what WaitFor and Converged wait for, if the node's own
// entries are as wanted.
func (p *pass) arrive() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unread != none && p.unread != surprise {
		return // The mirror may be wrong.
	}
	for _, k := range []backend.Kind{backend.KindDevice, backend.KindAddress} {
		for e := range p.ledger.Want().OfKind(k) {
			if !p.have.Has(e) {
				return
			}
		}
	}
	select {
	case <-p.converged:
	default:
		close(p.converged)
	}
	if p.reached != p.revision {
		p.reached = p.revision
		close(p.step)
		p.step = make(chan struct{})
	}
}
