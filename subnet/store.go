package subnet

import (
	"context"
	"errors"
	"time"
)

// Errors that callers of a [Store] branch on.
var (
	// ErrConflict means that a record is not at the revision that a write asked for.
	ErrConflict = errors.New("record was changed by another")
	// ErrLeaseLost means that a held record is gone, or another's now.
	ErrLeaseLost = errors.New("lease lost")
	// ErrRefused wraps what the store will go on refusing until an operator
	// mends it: wrong credentials, missing rights.
	ErrRefused = errors.New("store refuses")
)

// Store keeps the network's config and its leases. Every Store passes the
// suite in subnettest.
//
// A call that finds the store away returns an error once its own time limit has
// passed; only Hold and Watch ride it out by themselves.
type Store interface {
	// List reads config and leases as they were at one revision.
	List(ctx context.Context) (Listing, error)

	// Write sets a lease's record if it is still at revision l.Modified; 0
	// asks that there be none, and none either that holds a subnet of its in
	// one family alone. Otherwise it returns ErrConflict and changes nothing.
	//
	// With l.Modified 0, or with an l.ID of the record's, the record hangs on
	// a lease of the store and vanishes when nobody holds it for the store's
	// TTL. A record that reserves (its ID is 0) stays one.
	//
	// It returns the lease with ID and revisions filled in.
	Write(ctx context.Context, l Lease) (Lease, error)

	// Hold keeps the lease alive until ctx ends, which returns nil, or until it
	// is lost, which returns ErrLeaseLost: expired, deleted, or overwritten by
	// another. Keeping alive writes no record and so makes no event; only a
	// store's lease of another TTL than the store's own is replaced, which
	// writes once. A reservation is watched only.
	//
	// After each renewal it calls alive, if that is not nil, with the time until
	// which the store keeps the record whatever becomes of this node. It is not
	// called for a reservation, which the store keeps for good.
	Hold(ctx context.Context, l Lease, alive func(until time.Time)) error

	// Watch calls to with a whole listing first and then with every change in
	// order, from the same goroutine, until ctx ends; then it returns nil. On
	// any doubt whether a change was missed it gives a whole listing again, and
	// says so if the store is not the one of the listing before. It rides out what
	// the store refuses too: rights may come back.
	//
	// Now and then, and when the store is back after it was away, it gives an
	// empty change: the store has answered and there is no news.
	Watch(ctx context.Context, to func(Change)) error
}

// Listing is what the store held at one revision.
type Listing struct {
	Revision int64
	// Epoch names the store's life. A store that was wiped, replaced or put back
	// from a backup has another; "" where nobody has watched it yet.
	Epoch string
	// Config is the config as written, nil where there is none.
	Config []byte
	// Leases are the records that can be read, Bad those that cannot.
	Leases []Lease
	Bad    []BadRecord
}

// Change is one step in the store's life: all that one revision did to records,
// a change of the config, or everything.
type Change struct {
	// Whole means that Leases and Bad are all there is, as of Revision: what
	// they lack is gone.
	Whole bool
	// Revision says that all changes of records up to it have been told, this one
	// included. A change of the config alone is told when it is heard of, and
	// need not advance it.
	Revision int64
	// Epoch is the listing's where the change is whole. Different means that the
	// store is not the one that was told of before: what its listing lacks may
	// never have been taken back.
	Epoch     string
	Different bool

	// ConfigSet means that Config is news; nil says that it was deleted.
	ConfigSet bool
	Config    []byte

	// More says that another change follows at once, so that whoever has much to
	// do for a change, whatever it is, may do it once for several.
	More bool

	// Leases were written, the records in Bad were written and cannot be read,
	// the Gone keys were deleted.
	Leases []Lease
	Bad    []BadRecord
	Gone   []string
}

// Whole returns the listing as the change from nothing to it.
func (l Listing) Whole() Change {
	return Change{Whole: true, Revision: l.Revision, Epoch: l.Epoch, ConfigSet: true, Config: l.Config, Leases: l.Leases, Bad: l.Bad}
}

// Empty tells whether the change brings no news but that the store answers.
func (c Change) Empty() bool {
	return !c.Whole && !c.ConfigSet && len(c.Leases)+len(c.Bad)+len(c.Gone) == 0
}
