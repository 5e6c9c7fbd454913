package converge

import (
	"errors"
	"syscall"
	"time"

	"github.com/ripstop-net/ripstop/backend"
)

// needsLink tells whether an op failed because a link of the host's, over which a
// plain route is to lead, is down or not there.
func needsLink(f backend.Failure) bool {
	r, ok := f.Op.Entry.(backend.Route)
	return ok && r.Plain && (errors.Is(f.Err, syscall.ENETDOWN) || errors.Is(f.Err, syscall.ENODEV) || errors.Is(f.Err, syscall.ENETUNREACH))
}

// linksChanged has all that failed for want of a link tried again at once: a
// doubt may mean that the link is back.
func (r *failing) linksChanged(now time.Time) {
	for id, f := range r.entries {
		if f.link && f.until.After(now) {
			f.until = now
			r.entries[id] = f
			r.agenda.add(now, id)
		}
	}
}
