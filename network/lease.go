package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/subnet"
)

// claim obtains the lease, trying at once when kicked. It writes nothing while
// another machine has this node's place.
func (n *Node) claim(ctx context.Context, cfg subnet.Config, req subnet.Request, kick <-chan struct{}) (subnet.Lease, error) {
	return n.claimWhere(ctx, cfg, req, kick, n.twinInPlace)
}

// claimWhere is claim where each try depends on what is asked first.
func (n *Node) claimWhere(ctx context.Context, cfg subnet.Config, req subnet.Request, kick <-chan struct{}, first func() error) (lease subnet.Lease, err error) {
	err = n.until(ctx, "lease", kick, func() error {
		if err := first(); err != nil {
			return err
		}
		lease, err = subnet.Claim(ctx, n.store, cfg, req)
		req.Seen = nil // By the next try it is old.
		var stranded *subnet.StrandedError
		var taken *subnet.TakenError
		switch {
		case errors.As(err, &stranded):
			return final(err)
		case errors.As(err, &taken):
			if n.setTaken(err) {
				n.log.Error("not ready: this node's subnet is another's", zap.Stringer("subnets", taken.Subnets), zap.String("holder", taken.By))
			}
		}
		return err
	})
	if err == nil {
		n.setTaken(nil)
		n.log.Info("lease held", zap.Stringer("subnets", lease.Subnets), zap.String("node", lease.Node), zap.Bool("reservation", lease.Reservation()))
	}
	return lease, err
}

// hold keeps the lease and the node's presence, and claims them again where
// they were lost. The subnets are in use by then: no others will do. elsewhere is
// closed when the node is no longer at the site that p is of.
func (n *Node) hold(ctx context.Context, p prepared, lease subnet.Lease, keeper *keeper, f *follower, elsewhere <-chan struct{}) error {
	p.request.Previous, p.request.OnlyPrevious = lease.Subnets, true
	if p.unclaimed {
		var err error
		if lease, err = n.takeUp(ctx, &p, lease, keeper, f.kick); err != nil {
			return err
		}
	}
	req, published := p.request, site{public: p.request.Self.PublicIP, endpoints: p.request.Endpoints, mtu: p.request.MTU}
	vigil := newVigil(n, p)
	moved := make(chan site, 1)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return vigil.run(ctx) })
	group.Go(func() error { return n.appearWhereMoved(ctx, vigil, published, elsewhere, moved) })
	group.Go(func() error {
		pauses := &backoff.ExponentialBackOff{InitialInterval: firstWait, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: longestWait}
		for {
			began := time.Now()
			to, err := n.holdRecord(ctx, lease, keeper.renewed, f.rewritten, moved)
			if ctx.Err() != nil {
				return nil
			}
			if to != nil {
				req = to.request(req)
			}
			if err == nil {
				if lease, err = n.rewrite(ctx, p.config, lease, req, f.kick); err != nil {
					return err
				}
				keeper.claimed(lease)
				f.noteOwn(lease, false)
				continue
			}
			if !errors.Is(err, subnet.ErrLeaseLost) {
				return fmt.Errorf("hold the lease: %w", err)
			}
			n.view.lost(err)
			if time.Since(began) > longestWait {
				pauses.Reset()
			} else { // Something takes it away again and again.
				select {
				case <-ctx.Done():
					return nil
				case <-time.After(pauses.NextBackOff()):
				}
			}
			n.log.Warn("lease lost, claiming it again", zap.Stringer("subnets", lease.Subnets), zap.Error(err))
			// Whoever took it may have taken this node's place before.
			if err := vigil.sure(ctx); err != nil {
				return err
			}
			// The site of which it was made sure.
			at, _ := n.place.now()
			req = at.request(req)
			if lease, err = n.claim(ctx, p.config, req, f.kick); err != nil {
				return err
			}
			keeper.claimed(lease)
			f.noteOwn(lease, false)
		}
	})
	return group.Wait()
}

// takeUp makes a node known that came up by the lease that it had, and claims that. It
// may wait for long: for its earlier life to lapse, or for the right to write. Meanwhile
// it keeps the lease alive as it is, for which etcd asks no right.
func (n *Node) takeUp(ctx context.Context, p *prepared, had subnet.Lease, keeper *keeper, kick <-chan struct{}) (lease subnet.Lease, err error) {
	holding, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := n.store.Hold(holding, had, keeper.renewed); err != nil {
			n.view.lost(err) // The claim makes it anew.
		}
	}()
	defer func() {
		cancel()
		<-ended
	}()
	if _, err := n.arrive(ctx, p, kick, false); err != nil {
		return lease, err
	}
	if lease, err = n.claim(ctx, p.config, p.request, kick); err == nil {
		keeper.claimed(lease)
	}
	return lease, err
}

// appearWhereMoved makes the node known as living at its addresses of now whenever
// they change, and then has its record written: in this order, so that no record
// names an address at which another lives. at is the site of the record as it is.
func (n *Node) appearWhereMoved(ctx context.Context, v *vigil, at site, changed <-chan struct{}, moved chan site) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		was := at
		for at, changed = n.place.now(); at.public != v.known(); at, changed = n.place.now() {
			if err := v.sure(ctx); err != nil {
				return nil // The end of ctx.
			}
		}
		if at.public == was.public && at.endpoints == was.endpoints && at.mtu == was.mtu {
			continue // Others are told nothing of what has changed.
		}
		select {
		case <-moved: // It was not written yet, and needs not be.
		default:
		}
		moved <- at // There is room: nobody else puts anything there.
	}
}

// rewrite makes the record of the lease that is held say what the request does.
func (n *Node) rewrite(ctx context.Context, cfg subnet.Config, held subnet.Lease, req subnet.Request, kick <-chan struct{}) (subnet.Lease, error) {
	lease, err := subnet.Rewrite(ctx, n.store, held, req)
	if err != nil { // The claim finds out why, and waits for a store that is away.
		return n.claim(ctx, cfg, req, kick)
	}
	if lease.Modified != held.Modified {
		n.log.Info("record rewritten", zap.Stringer("subnets", lease.Subnets), zap.String("holder", lease.Holder()), zap.Int("mtu", lease.MTU))
	}
	return lease, nil
}

// holdRecord holds the lease until it is lost, also to who writes another's
// address into its record: the store takes that for the node's own hand, for the
// record still bears its name. It returns the site where the record is to be
// written anew for one.
func (n *Node) holdRecord(ctx context.Context, lease subnet.Lease, alive func(until time.Time), rewritten <-chan subnet.Lease, moved <-chan site) (to *site, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- n.store.Hold(ctx, lease, alive) }()
	for {
		select {
		case err := <-done:
			return nil, err
		case at := <-moved:
			cancel()
			return &at, <-done
		case now := <-rewritten:
			if now.Modified <= lease.Modified || now.SameContent(lease) {
				continue // It was so before it was claimed, or says the same.
			}
			cancel()
			if err := <-done; err != nil { // It had ended by itself.
				return nil, err
			}
			return nil, fmt.Errorf("%w: its record was overwritten by %s", subnet.ErrLeaseLost, now.Holder())
		}
	}
}
