package subnet

import (
	"context"
	"errors"
)

// ErrReserved means that a lease is an operator's reservation, which is not the
// node's to give back.
var ErrReserved = errors.New("it is a reservation")

// Releaser is a Store to which a lease can be given back. Every Releaser passes
// the suite in subnettest.
type Releaser interface {
	// Release takes the lease's record away, and what it hangs on. It does so only
	// where the record is still that of the same node on the store's lease l.ID,
	// whatever else it says by now: another's is [ErrConflict]. One that is gone
	// already is no error; a reservation is [ErrReserved].
	Release(ctx context.Context, l Lease) error
}
