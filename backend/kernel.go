package backend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// Kernel is a kernel's forwarding state, as far as it is ours: our devices and
// what hangs on them, and the nexthops and routes that carry our protocol
// number. Every Kernel passes the suite in backendtest.
type Kernel interface {
	// Dump reads the state. What somebody else owns is not in it.
	Dump(ctx context.Context) (*State, error)

	// Apply carries out ops that do not need one another, in order, and goes on
	// after a failure. The i-th error is the i-th op's, nil if it succeeded; a
	// delete of what is not there succeeds.
	Apply(ctx context.Context, ops []Op) []error

	// Watch calls changed after anything that Dump shows may have changed, by
	// whatever hand, until ctx ends; then it returns nil. It has subscribed
	// before its first call of changed, which comes at once.
	Watch(ctx context.Context, changed func()) error
}

// Errors of a Kernel that callers branch on, and explain.
var (
	// ErrUnsupported means that the kernel lacks a feature that is needed.
	ErrUnsupported = errors.New("kernel lacks a feature")
	// ErrNotPermitted means that the process may not change the network.
	ErrNotPermitted = errors.New("not permitted")
	// ErrInTheWay means that somebody else's thing stands where ours should.
	ErrInTheWay = errors.New("in the way")
	// ErrBlocked means that an op was left out because one that it needs failed.
	ErrBlocked = errors.New("left out")
)

// Interface is one of the host's own network interfaces, as the underlay is
// chosen from them.
type Interface struct {
	Name string
	// MTU is in bytes.
	MTU int
	// Addresses are its global addresses that are not about to go, IPv4 first,
	// the oldest of a family first.
	Addresses []netip.Addr
	// DefaultV4 and DefaultV6 tell whether the family's default route of the
	// lowest metric leaves by it.
	DefaultV4, DefaultV6 bool
}

// Failure is an op that did not succeed.
type Failure struct {
	Op  Op
	Err error
}

// Error gives op and cause.
func (f Failure) Error() string { return fmt.Sprintf("%s: %v", f.Op, f.Err) }

// Unwrap returns the cause.
func (f Failure) Unwrap() error { return f.Err }
