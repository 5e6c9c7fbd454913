package converge

import (
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
)

// Pauses before what failed is tried again.
const (
	firstRetry   = 100 * time.Millisecond
	longestRetry = 30 * time.Second
	// longestOwnRetry is for the node's own device and addresses, on which all
	// hangs: what stands in their way can go without being announced.
	longestOwnRetry = time.Second
)

// failing knows the entries whose last op failed, each with a pause of its own.
// It says each failure once, and once that all is over.
type failing struct {
	log     *zap.Logger
	entries map[backend.Entry]failure
	agenda  agenda
	// made counts those that were said and have been made since.
	made int
	// noDump is what the last dump failed with, "" if it did not.
	noDump string
}

// failure is one entry's. One that waits was left out because of another.
type failure struct {
	text  string
	times int
	until time.Time
	waits bool
	// foreign says that somebody else's thing is in the way.
	foreign bool
}

// mostSaid bounds the lines of one pass; the rest is counted.
const mostSaid = 10

// holds tells whether an entry is to be left alone for now, and whether it is
// failing at all. What waits is not held: it fails again at no cost if what it
// waits for does.
func (r *failing) holds(id backend.Entry, now time.Time) (held, known bool) {
	f, known := r.entries[id]
	return known && !f.waits && f.until.After(now), known
}

// held is holds without the second answer.
func (r *failing) held(id backend.Entry, now time.Time) bool {
	held, _ := r.holds(id, now)
	return held
}

// due hands the entries that are to be tried now to look.
func (r *failing) due(now time.Time, look func(backend.Entry)) {
	for {
		id, ok := r.agenda.due(now)
		if !ok {
			return
		}
		if f, failing := r.entries[id]; failing && !f.until.After(now) {
			look(id)
		}
	}
}

// forget drops an entry that is as it should be, or is no longer wanted so. It
// tells whether others may have waited for it.
func (r *failing) forget(id backend.Entry) (awaited bool) {
	f, ok := r.entries[id]
	if !ok {
		return false
	}
	delete(r.entries, id)
	r.made++
	return !f.waits
}

// waiting hands all that wait for others to look.
func (r *failing) waiting(look func(backend.Entry)) {
	for id, f := range r.entries {
		if f.waits {
			look(id)
		}
	}
}

// add notes the failures of one pass and tells whether one of them shows that
// the mirror may be wrong about it.
func (r *failing) add(failures []backend.Failure, now time.Time) (surprising bool) {
	lines, more, left := 0, 0, 0
	for _, f := range failures {
		id := backend.Identity(f.Op.Entry)
		was := r.entries[id]
		text := f.Err.Error()
		waits := errors.Is(f.Err, backend.ErrBlocked)
		is := failure{text: text, times: was.times + 1, waits: waits, foreign: errors.Is(f.Err, backend.ErrInTheWay)}
		longest := longestRetry
		if id.Kind() <= backend.KindAddress {
			longest = longestOwnRetry
		}
		pause := min(firstRetry<<min(was.times, 10), longest)
		is.until = now.Add(pause/2 + rand.N(pause))
		r.entries[id] = is
		r.agenda.add(is.until, id)
		surprising = surprising || was.times == 0 && isSurprise(f.Err)
		switch {
		case was.text == text:
		case waits:
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
	return surprising
}

// settle says once that nothing fails any more.
func (r *failing) settle() {
	if len(r.entries) == 0 && r.made > 0 {
		r.log.Info("changes that failed have been made", zap.Int("changes", r.made))
		r.made = 0
	}
}

func (r *failing) dump(ctx context.Context, err error) {
	if ctx.Err() == nil && err.Error() != r.noDump {
		r.noDump = err.Error()
		r.log.Warn("kernel cannot be read, will be tried again", zap.Error(err))
	}
}

// isSurprise tells whether an error says that the kernel holds something else
// than the mirror shows. An error that is no errno leaves open what was done. A
// route through a nexthop that is gone is EINVAL (fib_create_info).
func isSurprise(err error) bool {
	if errors.Is(err, backend.ErrBlocked) {
		return false
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return true
	}
	switch errno {
	case syscall.EEXIST, syscall.ENOENT, syscall.ESRCH, syscall.ENODEV, syscall.EINVAL, syscall.ENETDOWN:
		return true
	}
	return false
}
