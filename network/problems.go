package network

import (
	"time"

	"go.uber.org/zap"
)

const (
	// mostSaid bounds the lines about records in sayEvery; the rest is counted.
	mostSaid = 10
	sayEvery = 10 * time.Second
	// After a line a record has a pause in which it has no other. It doubles up
	// to longestSilence for one that turns good and bad all the time, and begins
	// anew after as long without a line.
	longestSilence = 10 * time.Minute
)

// problems says once of each record that it is passed over and why, and once
// that it no longer is. What there was no room for is said later, if it is still
// so then.
type problems struct {
	log *zap.Logger
	// said has the records that are passed over, as far as that was said, and
	// those of which there was a line lately.
	said map[string]saidProblem
	// waiting are those of which something else is so than was said.
	waiting map[string]struct{}
	// left are the lines until refill.
	left   int
	refill time.Time
}

// saidProblem is what was said of a record last; the reason is "" where it is
// no longer passed over.
type saidProblem struct {
	why   string
	until time.Time
	pause time.Duration
}

func newProblems(log *zap.Logger) *problems {
	return &problems{log: log, said: map[string]saidProblem{}, waiting: map[string]struct{}{}}
}

// report brings what was said up to date with the records of which it may have
// changed whether they are passed over; why says so of any of them, and passed is
// their number. It is to be called now and then also when nothing changed: what waits
// is looked at each sayEvery, so that a change costs the same among many problems.
func (p *problems) report(now time.Time, changed []string, why func(key string) string, passed int) {
	had := p.left
	if !p.refill.After(now) {
		p.left, p.refill, had = mostSaid, now.Add(sayEvery), mostSaid
		p.again(now, why)
	}
	for _, key := range changed {
		p.look(now, key, why(key))
	}
	if len(p.waiting) > 0 && had > 0 && p.left == 0 {
		p.log.Warn("more records like these", zap.Int("records", len(p.waiting)), zap.Int("passed_over", passed))
	}
}

// again looks at what waits, and forgets what is over.
func (p *problems) again(now time.Time, why func(key string) string) {
	for key := range p.waiting {
		if p.left == 0 {
			break
		}
		p.look(now, key, why(key))
	}
	for key, was := range p.said {
		if _, waits := p.waiting[key]; !waits && was.why == "" && was.until.Add(was.pause).Before(now) {
			delete(p.said, key)
		}
	}
}

// look says what is so of a record, or has it wait, if that was not said.
func (p *problems) look(now time.Time, key, why string) {
	if p.said[key].why == why || p.say(now, key, why) {
		delete(p.waiting, key)
	} else {
		p.waiting[key] = struct{}{}
	}
}

// say says what is so of a record, if there is room for a line.
func (p *problems) say(now time.Time, key, why string) bool {
	was := p.said[key]
	if p.left == 0 || was.until.After(now) {
		return false
	}
	p.left--
	pause := min(2*was.pause, longestSilence)
	if was.until.Add(was.pause).Before(now) {
		pause = sayEvery
	}
	p.said[key] = saidProblem{why, now.Add(pause), pause}
	if why == "" {
		p.log.Info("record no longer passed over", zap.String("key", key))
	} else {
		p.log.Warn("record passed over", zap.String("key", key), zap.String("reason", why))
	}
	return true
}
