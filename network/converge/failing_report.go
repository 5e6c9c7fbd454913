package converge

import (
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
)

const (
	// mostSaid bounds the lines about single failures each sayEvery, and those
	// about single fights at one time. The rest is counted.
	mostSaid = 10
	// repeatAfter is how long a failure that was said is counted only, should
	// its entry be made and fail in turn; mostRecent bounds what is remembered
	// for that.
	repeatAfter = 10 * time.Minute
	mostRecent  = 1024
)

// failingReports says each failure once, and once that all is over.
type failingReports struct {
	log *zap.Logger
	// left are the lines about single failures until refill.
	left   int
	refill time.Time
	// recent has the failures that were said, until forget.
	recent map[backend.Entry]string
	forget time.Time

	// more is about failures that have no line, ended about what fails no more,
	// unread about a kernel that cannot be read.
	more, ended, unread    matter
	failed, waiting        int
	made, unwanted         int
	unreadable, unreadSaid string
}

func (r *failingReports) init(log *zap.Logger) {
	r.log = log
	r.more.write = func() {
		r.log.Warn("more changes failed or wait for those that did", zap.Int("failed", r.failed), zap.Int("waiting", r.waiting))
		r.failed, r.waiting = 0, 0
	}
	r.ended.write = func() {
		if r.made > 0 {
			r.log.Info("changes that failed have been made", zap.Int("changes", r.made), zap.Int("no_longer_wanted", r.unwanted))
		} else {
			r.log.Info("changes that failed are no longer wanted", zap.Int("changes", r.unwanted))
		}
		r.made, r.unwanted = 0, 0
	}
	r.unread.write = func() {
		r.log.Warn("kernel cannot be read, will be tried again", zap.String("error", r.unreadable))
		r.unreadSaid = r.unreadable
	}
}

// dump notes how a reading of the kernel ended.
func (r *failingReports) dump(err error) {
	if err == nil {
		r.unread.pending, r.unreadSaid = false, ""
		return
	}
	r.unreadable = err.Error()
	r.unread.pending = r.unreadable != r.unreadSaid
}

// fails says that an op failed, as it did not before.
func (r *failingReports) fails(f backend.Failure, is failure, now time.Time) {
	id := backend.Identity(f.Op.Entry)
	if !r.forget.After(now) || len(r.recent) == mostRecent {
		r.recent, r.forget = map[backend.Entry]string{}, now.Add(repeatAfter)
	}
	if !r.refill.After(now) {
		r.left, r.refill = mostSaid, now.Add(sayEvery)
	}
	switch {
	case is.waits:
		r.waiting++
		r.more.pending = true
	case r.left == 0, r.recent[id] == is.text:
		r.failed++
		r.more.pending = true
	default:
		r.left--
		r.recent[id] = is.text
		r.log.Warn("change failed, will be tried again", zap.Stringer("op", f.Op), zap.Error(f.Err))
	}
}

// over counts an entry that fails no more.
func (r *failingReports) over(made bool) {
	if made {
		r.made++
	} else {
		r.unwanted++
	}
}

// settle has it said that nothing fails any more, if that is so.
func (r *failingReports) settle(left int) { r.ended.pending = left == 0 && r.made+r.unwanted > 0 }
