package subnet

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// PresenceTTL is how long a node is taken to live after its last sign of life.
const PresenceTTL = 60 * time.Second

// Living is a node that lives, as it makes itself known. A lease's record
// proves nothing about life: it outlives its node by a day.
type Living struct {
	// Token tells two machines apart that say they are the same node. It is
	// kept across restarts of the daemon.
	Token string
	Node  string
	// Addresses are the node's public ones.
	Addresses PerFamily[netip.Addr]
}

// Presence is where living nodes are known by name and by public address, each
// of which only one of them can have. Nobody watches it. Every Presence passes
// the suite in subnettest.
type Presence interface {
	// Appear makes the node known as living. Where another token is known under
	// its name or one of its addresses, it returns [*TwinError] and changes
	// nothing; its own token's entries are taken over. It returns an id for Stay.
	//
	// What is known may be dead for up to [PresenceTTL]. A caller that asks again
	// and again is told by [TwinError.Lives] once there was a sign of life between
	// its calls.
	Appear(ctx context.Context, n Living) (id int64, err error)

	// Known returns who is known under n's name or at one of its addresses:
	// another token's node before n itself. It is false where nobody is.
	Known(ctx context.Context, n Living) (Living, bool, error)

	// Stay keeps the node known until ctx ends, which returns nil, or until the
	// store no longer knows it, which returns [ErrLeaseLost]: Appear again. A
	// store that is away is ridden out. It writes nothing. Its end takes nothing
	// back: the node is known for [PresenceTTL] more, so that a twin which waits
	// cannot slip into its place while its daemon is restarted.
	Stay(ctx context.Context, id int64) error
}

// PresenceRenewal is the longest time between two signs of life that a Stay gives
// while it reaches its store.
const PresenceRenewal = PresenceTTL/4 + PresenceTTL/32

// TwinError says that another token is known under this node's name or address.
type TwinError struct {
	// First is the node that was there before.
	First Living
	// Address is the public address that both have; not valid where it is the name.
	Address netip.Addr
	// Lives says that the first was seen to give a sign of life. Without it the
	// first may be this machine before a crash or a reboot.
	Lives bool
}

// Error names the first node, and says what to do if that lives. Its text stays
// the same while nothing new is known.
func (e *TwinError) Error() string {
	what := "this node's name"
	if e.Address.IsValid() {
		what = "public address " + e.Address.String()
	}
	switch {
	case !e.Lives:
		return fmt.Sprintf("%s is still that of %s, this machine before a crash or a reboot, or another: it is free %s after the last sign of life",
			what, e.First.String(), PresenceTTL)
	case e.Address.IsValid():
		return fmt.Sprintf("%s is that of %s, which lives: give each node an address of its own by --iface or --public-ip", what, e.First.String())
	default:
		return fmt.Sprintf("another machine lives under %s: %s: give each machine, also a clone of an image, a name of its own by --node-name or its hostname",
			what, e.First.String())
	}
}

// String gives name and addresses, for people.
func (n Living) String() string {
	var at []string
	for _, a := range n.Addresses {
		if a.IsValid() {
			at = append(at, a.String())
		}
	}
	return fmt.Sprintf("%s (%s)", n.Node, strings.Join(at, ", "))
}

// Clash tells why n cannot appear beside one that is known already under the
// same name or address, nil if it can: they are one machine.
func (n Living) Clash(known Living) error {
	if known.Token == n.Token {
		return nil
	}
	if known.Node == n.Node {
		return &TwinError{First: known}
	}
	for f, a := range n.Addresses {
		if a.IsValid() && known.Addresses[f] == a {
			return &TwinError{First: known, Address: a}
		}
	}
	return nil
}
