package converge

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/ripstop-net/ripstop/backend"
)

// Pauses before what failed is tried again.
const (
	firstRetry   = 100 * time.Millisecond
	longestRetry = 30 * time.Second
	// longestOwnRetry is for the node's own device and addresses, on which all
	// hangs: what stands in their way can go without being announced.
	longestOwnRetry = time.Second
	// longestVain is for tries that an announcement brings forward, when those
	// before were for nothing.
	longestVain = 5 * time.Second
)

// failing knows the entries whose last op failed, each with a pause of its own.
type failing struct {
	entries map[backend.Entry]failure
	agenda  agenda
	reports *reports
}

// failure is one entry's.
type failure struct {
	verb  backend.Verb
	text  string
	times int
	until time.Time
	// waits says that it was left out because of another, blocked that
	// somebody else's thing is in the way or a link of the host's is missing.
	waits, blocked bool
	// tried is the last time; early says that the next is ahead of its time;
	// vain counts the last of those that were for nothing.
	tried time.Time
	early bool
	vain  int
}

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

// renew has an entry of which another thing is wanted begin anew.
func (r *failing) renew(id backend.Entry, now time.Time) {
	if f, ok := r.entries[id]; ok {
		f.times, f.until, f.vain = 0, now, 0
		r.entries[id] = f
	}
}

// freed has an entry tried at once, for what stood in its way may have gone.
// Where that was for nothing lately, it takes a little longer.
func (r *failing) freed(id backend.Entry, now time.Time) {
	f, ok := r.entries[id]
	if !ok || f.waits {
		return
	}
	at := now
	if f.vain > 0 {
		at = later(at, f.tried.Add(min(firstRetry<<min(f.vain, 10), longestVain)))
	}
	if at.Before(f.until) {
		f.until, f.early = at, true
		r.entries[id] = f
		r.agenda.add(at, id)
	}
}

// freedAll is freed for all that somebody else's things are in the way of, or
// that want a link.
func (r *failing) freedAll(now time.Time) {
	for id, f := range r.entries {
		if f.blocked {
			r.freed(id, now)
		}
	}
}

// over drops an entry that differs no more: it was made, or is not wanted any
// longer. It tells whether others may have waited for it.
func (r *failing) over(id backend.Entry, made bool) (awaited bool) {
	f, ok := r.entries[id]
	if !ok {
		return false
	}
	delete(r.entries, id)
	r.reports.over(made)
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
	for _, f := range failures {
		id := backend.Identity(f.Op.Entry)
		was, known := r.entries[id]
		is := failure{
			verb: f.Op.Verb, text: f.Err.Error(), times: was.times + 1, tried: now,
			waits: errors.Is(f.Err, backend.ErrBlocked), blocked: errors.Is(f.Err, backend.ErrInTheWay) || needsLink(f),
		}
		if was.early {
			is.times, is.vain = was.times, was.vain+1
		}
		longest := longestRetry
		if id.Kind() <= backend.KindAddress {
			longest = longestOwnRetry
		}
		pause := min(firstRetry<<min(was.times, 10), longest)
		is.until = now.Add(pause/2 + rand.N(pause))
		r.entries[id] = is
		r.agenda.add(is.until, id)
		surprising = surprising || was.times == 0 && isSurprise(f.Err)
		if !known || was.text != is.text {
			r.reports.fails(f, is, now)
		}
	}
	return surprising
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
