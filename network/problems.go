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
	return &problems{log: log, said: map[string]saidProblem{}}
}

// report brings what was said up to date with the records that are passed over
// and why, by key. It is to be called now and then also when nothing changed.
func (p *problems) report(now time.Time, records map[string]string) {
	if !p.refill.After(now) {
		p.left, p.refill = mostSaid, now.Add(sayEvery)
	}
	had, more := p.left, 0
	for key, why := range records {
		if p.said[key].why != why && !p.say(now, key, why) {
			more++
		}
	}
	for key, was := range p.said {
		_, still := records[key]
		switch {
		case still:
		case was.why != "":
			if !p.say(now, key, "") {
				more++
			}
		case was.until.Add(was.pause).Before(now):
			delete(p.said, key)
		}
	}
	if more > 0 && had > 0 && p.left == 0 {
		p.log.Warn("more records like these", zap.Int("records", more), zap.Int("passed_over", len(records)))
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
