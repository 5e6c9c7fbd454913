package converge

import (
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
)

// namedDrift is how many entries a line about drift names.
const namedDrift = 3

// sums are what ops of several passes came to.
type sums struct {
	ops    [3]int // By verb.
	passes int
	took   time.Duration
	first  []string
}

func (s *sums) total() int {
	return s.ops[backend.Add] + s.ops[backend.Replace] + s.ops[backend.Delete]
}

func (s *sums) add(o sums) {
	for v := range s.ops {
		s.ops[v] += o.ops[v]
	}
	s.passes++
	s.took += o.took
	s.first = append(s.first, o.first[:min(len(o.first), namedDrift-len(s.first))]...)
}

// report sums up what changed: what was wanted, and what an outside hand had
// done.
func (p *pass) report(ops []backend.Op, failed map[backend.Entry]struct{}) {
	var changed, mended sums
	silent := 0
	for _, op := range ops {
		if len(failed) == 0 && len(p.drifted) == 0 {
			changed.ops[op.Verb]++
			continue
		}
		id := backend.Identity(op.Entry)
		if _, ok := failed[id]; ok {
			continue
		}
		if _, ok := p.drifted[id]; !ok {
			changed.ops[op.Verb]++
			continue
		}
		if p.alone(id) {
			p.fights.mended(id, p.look[id], p.now)
		}
		if p.fights.said(id) {
			silent++
			continue
		}
		if mended.ops[op.Verb]++; len(mended.first) < namedDrift {
			mended.first = append(mended.first, op.String())
		}
	}
	changed.took = time.Since(p.now)
	mended.took = changed.took
	p.count(func(s *Stats) { s.Drift += uint64(mended.total() + silent) })
	p.reports.changed(changed)
	p.reports.mended(mended)
}

// reports writes the loop's lines, whatever happens at most so many a time.
type reports struct {
	log            *zap.Logger
	changes, drift matter
	// sum has what the next line about changes and drift tells.
	sum struct{ changes, drift sums }
	failingReports
	fights     matter
	moreFights int
}

func newReports(log *zap.Logger) *reports {
	r := &reports{log: log}
	r.changes.write = func() {
		s := r.sum.changes
		r.sum.changes = sums{}
		r.log.Info("forwarding state changed", zap.Int("added", s.ops[backend.Add]), zap.Int("replaced", s.ops[backend.Replace]),
			zap.Int("deleted", s.ops[backend.Delete]), zap.Int("passes", s.passes), zap.Duration("took", s.took))
	}
	r.drift.write = func() {
		s := r.sum.drift
		r.sum.drift = sums{}
		r.log.Info("drift mended", zap.Int("entries", s.total()), zap.Strings("first", s.first), zap.Int("passes", s.passes), zap.Duration("took", s.took))
	}
	r.fights.write = func() {
		r.log.Warn("an outside hand changes more entries again and again", zap.Int("entries", r.moreFights))
		r.moreFights = 0
	}
	r.failingReports.init(log)
	return r
}

func (r *reports) changed(s sums) {
	if s.total() > 0 {
		r.sum.changes.add(s)
		r.changes.pending = true
	}
}

func (r *reports) mended(s sums) {
	if s.total() > 0 {
		r.sum.drift.add(s)
		r.drift.pending = true
	}
}

// moreFight counts a fight that has no line of its own.
func (r *reports) moreFight() {
	r.moreFights++
	r.fights.pending = true
}

func (r *reports) matters() [6]*matter {
	return [...]*matter{&r.changes, &r.drift, &r.fights, &r.more, &r.ended, &r.unread}
}

// say writes the lines that are due.
func (r *reports) say(now time.Time) {
	for _, m := range r.matters() {
		m.say(now)
	}
}

// next is when a line is due, the zero time if none waits.
func (r *reports) next() (at time.Time) {
	for _, m := range r.matters() {
		if m.pending {
			at = earlier(at, m.after)
		}
	}
	return at
}

// flush writes what waits, at the loop's end.
func (r *reports) flush() {
	for _, m := range r.matters() {
		if m.pending {
			m.write()
		}
	}
}
