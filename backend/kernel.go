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

	// Watch subscribes to what the kernel announces and calls changed, at once
	// and then whenever there is something new to be told, until ctx ends; then
	// it returns nil. It may leave out calls until Changes has been called.
	// changed must not wait. There is one Watch at a time.
	Watch(ctx context.Context, changed func()) error

	// Changes returns what was announced since the last call, in the kernel's
	// order; it does not wait. doubt says that the announcements do not tell
	// all, so that only a Dump does: at the first call after Watch subscribed,
	// while nothing is subscribed, when announcements were lost, and after a
	// change of one of our devices or its addresses, with which entries go
	// silently. So do IPv4 routes with their nexthop, see [State.Correct].
	//
	// What an Apply caused is told by the first Changes after it, and no later.
	// Changes by others that came by meanwhile are too, even if changed is not
	// called: whoever called Apply calls Changes again.
	Changes() (changes []Change, doubt bool)
}

// Change is what the kernel announced about one entry.
type Change struct {
	Entry Entry
	// Gone tells that there is none of its identity any more.
	Gone bool
	// Freed tells that what was in the way of the entry when it was last to be
	// added (ErrInTheWay) may be no more. It is told once for each such
	// failure, and says nothing of what the kernel has.
	Freed bool
	// By is the netlink port of the one who made the change, often a process's
	// number; 0 where the kernel does not tell.
	By uint32
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
	// Up tells that it is up and has a carrier.
	Up bool
	// MTU is in bytes.
	MTU int
	// Addresses are its global addresses, IPv4 first; those that are to be given up
	// only where there are no others of their family,
	// the oldest of a family first.
	Addresses []netip.Addr
	// Tentative tells that one of them is still looked for on the link, in case
	// another host has it, and not sent from until then (RFC 4862 section 5.4).
	Tentative bool
	// OnLink are the prefixes whose addresses are reached over its link without
	// a gateway, by the host's own routes, the more specific ones heeded.
	OnLink []netip.Prefix
	// Broadcasts are the IPv4 addresses that are everybody's on its link: they may be in
	// OnLink, and are nobody's own.
	Broadcasts []netip.Addr
	// DefaultV4 and DefaultV6 tell whether the family's default route of the
	// lowest metric leaves by it.
	DefaultV4, DefaultV6 bool
}

// Way is how the host sends to an address outside. The zero Way says that it
// cannot.
type Way struct {
	// Interface names the interface by which a packet leaves; that of the loopback
	// where the address is the host's own.
	Interface string
	// Source is the address from which it is sent unless it has one already.
	Source netip.Addr
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
