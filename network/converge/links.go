package converge

import (
	"errors"
	"syscall"

	"github.com/ripstop-net/ripstop/backend"
)

// needsLink tells whether an op failed because a link of the host's, over which a
// plain route is to lead, is down or not there.
func needsLink(f backend.Failure) bool {
	r, ok := f.Op.Entry.(backend.Route)
	return ok && r.Plain && (errors.Is(f.Err, syscall.ENETDOWN) || errors.Is(f.Err, syscall.ENODEV) || errors.Is(f.Err, syscall.ENETUNREACH))
}
