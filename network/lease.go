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

// claim obtains the lease, trying at once when kicked.
func (n *Node) claim(ctx context.Context, cfg subnet.Config, req subnet.Request, kick <-chan struct{}) (lease subnet.Lease, err error) {
	err = n.until(ctx, "lease", kick, func() error {
		lease, err = subnet.Claim(ctx, n.store, cfg, req)
		var stranded *subnet.StrandedError
		var taken *subnet.TakenError
		switch {
		case errors.As(err, &stranded):
			return final(err)
		case errors.As(err, &taken):
			if n.NotReady() == nil {
				n.log.Error("not ready: this node's subnet is another's", zap.Stringer("subnets", taken.Subnets), zap.String("holder", taken.By))
			}
			n.setTrouble(err)
		}
		return err
	})
	if err == nil {
		n.setTrouble(nil)
		n.log.Info("lease held", zap.Stringer("subnets", lease.Subnets), zap.String("node", lease.Node), zap.Bool("reservation", lease.Reservation()))
	}
	return lease, err
}

// hold keeps the lease and the node's presence, and claims them again where
// they were lost. The subnets are in use by then: no others will do.
func (n *Node) hold(ctx context.Context, p prepared, lease subnet.Lease, keeper *keeper, kick <-chan struct{}) error {
	req := p.request
	req.Previous, req.OnlyPrevious = lease.Subnets, true
	if p.alone {
		if err := n.appear(ctx, &p, kick, true); err != nil {
			return err
		}
		var err error
		if lease, err = n.claim(ctx, p.config, req, kick); err != nil {
			return err
		}
		keeper.claimed(lease)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return n.stay(ctx, p) })
	group.Go(func() error {
		pauses := &backoff.ExponentialBackOff{InitialInterval: firstWait, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: longestWait}
		for {
			began := time.Now()
			err := n.store.Hold(ctx, lease, keeper.renewed)
			if ctx.Err() != nil {
				return nil
			}
			if !errors.Is(err, subnet.ErrLeaseLost) {
				return fmt.Errorf("hold the lease: %w", err)
			}
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
			if lease, err = n.claim(ctx, p.config, req, kick); err != nil {
				return err
			}
			keeper.claimed(lease)
		}
	})
	return group.Wait()
}

// appear makes the node known as living. Another that lives under its name or
// address may be a dead machine's last minute, so it is waited for; at a start
// not for longer than that takes.
func (n *Node) appear(ctx context.Context, p *prepared, kick <-chan struct{}, starting bool) error {
	var since time.Time // When the twin was met first.
	return n.until(ctx, "this node's name and address", kick, func() error {
		var err error
		p.presence, err = n.presence.Appear(ctx, p.living)
		var twin *subnet.TwinError
		switch {
		case !errors.As(err, &twin):
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case starting && time.Since(since) > n.twinPatience:
			return final(err)
		}
		return err
	})
}

// stay keeps the node known as living. One that runs is not ended by a twin: the
// one that came later is refused.
func (n *Node) stay(ctx context.Context, p prepared) error {
	for {
		err := n.presence.Stay(ctx, p.presence)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, subnet.ErrLeaseLost) {
			err = n.appear(ctx, &p, nil, false)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
