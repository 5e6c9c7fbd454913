package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet"
)

// twinWait bounds the pauses between looks at who is in this node's way.
const twinWait = 2 * time.Second

// settleTime is how long a start leaves the name to a node that has its lease at
// another address and is not known as living: long enough for that one's next
// sign of life. All presences lapse together where the store stands still for
// longer than they last, and whoever appears first then is the one who stays.
const settleTime = subnet.PresenceRenewal + 3*time.Second

// What the wait of a start is for.
const waitForName = "this node's name and address"

// errStanding says that the node may come up with the lease that it had, while it waits
// to be known and for the right to write.
var errStanding = errors.New("its lease stands")

// arrival is a start's way to being known as living.
type arrival struct {
	n *Node
	p *prepared
	// records is what the store held when the node first found that it is not
	// known itself.
	records *subnet.Listing
	// unknown is when nobody was found under the node's name.
	unknown time.Time
	// early says that the node does not serve yet: it allows to end with
	// errStanding and with errMoved.
	early bool
}

// arrive makes a node that starts known as living. What is known under its name
// or address may be dead, so it is waited for, until it is seen to live.
//
// What has the node's name and addresses is this machine's own earlier life, or a
// clone with its very address. Where the store has the lease as this machine saved
// it, and early is set, arrive then returns that lease and errStanding: the node
// can come up with it meanwhile. Entries that say the same on two machines do no
// harm beyond what their one address does. The same where the store refuses to make
// the node known. Where the node is known, that lease comes back without an error, the
// zero one where there is none.
func (n *Node) arrive(ctx context.Context, p *prepared, kick <-chan struct{}, early bool) (subnet.Lease, error) {
	a := &arrival{n: n, p: p, early: early}
	err := n.untilWithin(ctx, twinWait, waitForName, kick, func() error { return a.try(ctx) })
	if err != nil && !errors.Is(err, errStanding) {
		return subnet.Lease{}, err
	}
	lease, ok := a.standing()
	if !ok {
		lease = subnet.Lease{}
	}
	return lease, err
}

func (a *arrival) try(ctx context.Context) error {
	n := a.n
	if a.early { // Else the node serves, and its underlay is followed.
		if err := n.stillThere(ctx, a.p); err != nil {
			return err
		}
	}
	at, _ := n.place.now() // It may have moved since it was last tried.
	a.p.living, a.p.request = at.living(a.p.living), at.request(a.p.request)
	living := a.p.living
	if a.records == nil {
		a.records = a.p.recent()
	}
	first, known, err := n.presence.Known(ctx, living)
	if err != nil {
		a.unknown = time.Time{} // Nobody could come back while the store was away.
		if !errors.Is(err, subnet.ErrRefused) {
			a.records = nil // Nor is known what came meanwhile.
		}
		return a.judge(ctx, err)
	}
	if known && first.Token == living.Token { // The daemon alone was started again.
		a.p.presence, err = n.presence.Appear(ctx, living)
		return a.judge(ctx, err)
	}
	if a.records == nil {
		seen, err := n.store.List(ctx)
		if err != nil {
			return err
		}
		a.records = &seen
	}
	if moved, ok := a.p.request.Elsewhere(*a.records); ok {
		if err := a.settle(first, known, moved); err != nil {
			return err
		}
	}
	a.p.presence, err = n.presence.Appear(ctx, living)
	return a.judge(ctx, err)
}

// settle tells why the node cannot appear yet beside a lease of its name at
// another address, which may be that of a living node.
func (a *arrival) settle(first subnet.Living, known bool, moved subnet.Lease) error {
	switch {
	case known && a.unknown.IsZero():
		return nil // Appear tells.
	case known:
		var twin *subnet.TwinError
		if errors.As(a.p.living.Clash(first), &twin) { // It came while this node looked.
			twin.Lives = true
			return final(twin)
		}
		return nil
	case a.unknown.IsZero():
		a.unknown = time.Now()
	}
	if time.Since(a.unknown) < a.n.settle {
		return fmt.Errorf("this node's name has a lease at another address, %s, though nobody is known as living there: if that node lives and was cut off from the store, it has %s to come back",
			moved.Holder(), a.n.settle.Round(time.Second))
	}
	return nil
}

// judge decides what a refusal means to a start.
func (a *arrival) judge(ctx context.Context, err error) error {
	var twin *subnet.TwinError
	switch {
	case errors.As(err, &twin) && twin.Lives:
		return final(err)
	case !a.early,
		twin == nil && !errors.Is(err, subnet.ErrRefused),
		twin != nil && (twin.First.Node != a.p.living.Node || twin.First.Addresses != a.p.living.Addresses):
		return err
	}
	if a.records == nil {
		if seen, err := a.n.store.List(ctx); err == nil {
			a.records = &seen
		}
	}
	if _, ok := a.standing(); ok {
		return final(fmt.Errorf("%w: %w", errStanding, err))
	}
	return err
}

// standing is the lease that this machine had, where the store has it still.
func (a *arrival) standing() (subnet.Lease, bool) {
	if a.p.saved == nil || a.records == nil {
		return subnet.Lease{}, false
	}
	had := a.p.saved.Lease
	l, ok := a.p.request.Standing(a.p.config, *a.records, had.Subnets)
	return l, ok && l.SameContent(had)
}

// vigil keeps a node that runs known as living.
type vigil struct {
	n *Node
	p prepared

	mu sync.Mutex
	at subnet.PerFamily[netip.Addr] // Where the node is known to live.

	// doubts has who wants the node to be known for sure before it goes on.
	doubts chan chan<- struct{}
}

func newVigil(n *Node, p prepared) *vigil {
	return &vigil{n: n, p: p, at: p.living.Addresses, doubts: make(chan chan<- struct{})}
}

// known are the addresses under which the node was made known last.
func (v *vigil) known() subnet.PerFamily[netip.Addr] {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.at
}

// run keeps the node known until ctx ends. One that runs is not ended by a twin
// that took its place while the store did not hear from it: it is in trouble,
// which it says, until the twin is gone.
func (v *vigil) run(ctx context.Context) error {
	for {
		sure, err := v.stay(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil || errors.Is(err, subnet.ErrLeaseLost) {
			err = v.again(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if sure != nil {
			close(sure)
		}
	}
}

// stay stays known until that is lost or somebody wants to be sure.
func (v *vigil) stay(ctx context.Context) (sure chan<- struct{}, err error) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- v.n.presence.Stay(ctx, v.p.presence) }()
	select {
	case err = <-done:
		cancel()
		return nil, err
	case sure = <-v.doubts:
		cancel()
		return sure, <-done
	}
}

// again makes the node known anew. What it was known by before is kept alive until
// then, if it still is: while its new address is another's, its name stays its own.
func (v *vigil) again(ctx context.Context) error {
	staying, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func(id int64) {
		defer close(ended)
		_ = v.n.presence.Stay(staying, id) // That it is lost is what this mends.
	}(v.p.presence)
	defer func() {
		cancel()
		<-ended
	}()
	return v.n.untilWithin(ctx, twinWait, waitForName, nil, func() error {
		at, _ := v.n.place.now()
		living, before := at.living(v.p.living), v.known()
		id, err := v.n.presence.Appear(ctx, living)
		var twin *subnet.TwinError
		if errors.As(err, &twin) {
			if twin.Address.IsValid() && twin.Address != before[subnet.FamilyOf(twin.Address)] {
				if at.between { // By the old address pods are reached.
					return twin
				}
				v.n.setTwin(twin, "not ready: the address that this node has now is another machine's")
				return twin
			}
			twin.Lives = true // It came after this node, which was known before.
			v.n.setTwin(twin, "not ready: another machine has taken this node's place while the store did not hear from this one")
			return twin
		}
		if err == nil {
			v.p.presence = id
			v.mu.Lock()
			v.at = living.Addresses
			v.mu.Unlock()
			v.n.setTwin(nil, "")
		}
		return err
	})
}

// sure returns once the node is known as living, and has been found to be so
// since the call: for what only the one who lives may do.
func (v *vigil) sure(ctx context.Context) error {
	known := make(chan struct{})
	select {
	case <-ctx.Done():
		return ctx.Err()
	case v.doubts <- known:
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-known:
		return nil
	}
}

// setTwin notes who has taken this node's place, nil for nobody, and says it once.
func (n *Node) setTwin(twin *subnet.TwinError, what string) {
	n.mu.Lock()
	before := n.twin
	n.twin = nil
	if twin != nil {
		n.twin = twin
	}
	n.mu.Unlock()
	switch {
	case before == nil && twin != nil:
		n.log.Error(what, zap.Error(twin))
	case before != nil && twin == nil:
		n.log.Info("this node's place is its own again")
	}
}
