package converge

import (
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
)

// An entry that an outside hand undoes again and again is mended after a pause
// that grows from firstPause to longestPause, until nobody touches it for calm.
const (
	firstPause   = 5 * time.Millisecond
	longestPause = 5 * time.Second
	calmAfter    = 30 * time.Second
	// fightFrom is how many mends, none of them calm, are called a fight.
	fightFrom = 5
	// mostFights bounds their number. What comes on top shares one.
	mostFights = 1 << 14
)

// fights remembers which entries were mended lately. Each has its own pause, so
// that a hand that fights for one keeps nothing else from being mended at once.
type fights struct {
	log     *zap.Logger
	reports *reports
	calm    time.Duration
	most    int
	name    func(port uint32) string
	entries map[backend.Entry]*fight
	agenda  agenda
	// rest stands for all that entries has no room for.
	rest fight
	// fought counts the fights, named those that have a line of their own.
	fought, named int
}

type fight struct {
	times int
	// mended is the last time, until the end of the pause after it.
	mended, until time.Time
	by            uint32
	held          bool
	// said is set when it is a fight, named if it got a line.
	said, named bool
}

// holds tells whether an entry that drifted is to be left so for now.
func (f *fights) holds(id backend.Entry, now time.Time) bool {
	e, ok := f.entries[id]
	if !ok {
		if len(f.entries) < f.most || !f.rest.until.After(now) {
			return false
		}
		if !f.rest.held {
			f.rest.held = true
			f.agenda.add(f.rest.until, nil)
		}
		return true
	}
	if !e.until.After(now) {
		return false
	}
	if !e.held {
		e.held = true
		f.agenda.add(e.until, id)
	}
	return true
}

// mended notes that an entry was, and by whom it had been changed.
func (f *fights) mended(id backend.Entry, by uint32, now time.Time) {
	e, ok := f.entries[id]
	switch {
	case ok:
	case len(f.entries) < f.most:
		e = &fight{}
		f.entries[id] = e
		f.agenda.add(now.Add(f.calm), id)
	default:
		e, id = &f.rest, nil
		if now.Sub(e.until) > f.calm {
			*e = fight{}
		}
		if e.mended.Equal(now) {
			return // One pass counts once.
		}
	}
	if by != 0 {
		e.by = by
	}
	e.times++
	e.held, e.mended = false, now
	e.until = now.Add(min(firstPause<<min(e.times, 10), longestPause))
	if e.times < fightFrom || e.said {
		return
	}
	e.said = true
	if id == nil || f.named == mostSaid {
		f.reports.moreFight()
	} else {
		e.named = true
		f.named++
		f.log.Warn("an outside hand changes the same again and again, it is mended less often", zap.Stringer("entry", id),
			zap.Int("times", e.times), zap.String("hand", f.name(e.by)))
	}
	if id != nil {
		f.fought++
	}
}

// said tells whether a fight about an entry has been named: then its mends are
// counted and no longer logged.
func (f *fights) said(id backend.Entry) bool {
	e, ok := f.entries[id]
	return ok && e.said || !ok && len(f.entries) >= f.most && f.rest.said
}

// due hands the entries whose pause is over to look, nil for all those that
// share one, and forgets those that have been calm. The agenda has an entry once
// for its calm, and once more while it is held.
func (f *fights) due(now time.Time, look func(backend.Entry)) {
	for {
		id, ok := f.agenda.due(now)
		if !ok {
			return
		}
		if id == nil {
			f.rest.held = false
			look(nil)
			continue
		}
		e, ok := f.entries[id]
		switch {
		case !ok:
		case e.held && !e.until.After(now):
			e.held = false
			look(id)
		case now.Before(e.until.Add(f.calm)):
			f.agenda.add(e.until.Add(f.calm), id)
		default:
			f.forget(id, e)
		}
	}
}

func (f *fights) forget(id backend.Entry, e *fight) {
	if delete(f.entries, id); len(f.entries) == 0 {
		f.entries = map[backend.Entry]*fight{} // A map does not shrink.
	}
	if e.said {
		f.fought--
	}
	if e.named {
		f.named--
		f.log.Info("the outside hand has stopped", zap.Stringer("entry", id), zap.Int("times", e.times))
	}
}
