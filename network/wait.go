package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet"
)

// Pauses between tries of what is waited for.
const (
	firstWait   = 200 * time.Millisecond
	longestWait = 5 * time.Second
)

// final marks an error that waiting does not mend.
func final(err error) error { return backoff.Permanent(err) }

// passing makes of an error one that is waited for even if it is a refusal.
func passing(err error) error { return errors.New(err.Error()) }

// until tries until it succeeds, saying once why it waits and once that it has
// what it waited for. It gives up on what does not pass by itself; that the store
// refuses is such a thing for a node that starts, and passes for one that serves:
// its pods are not to pay for a right that was taken away. Where kick, which may be
// nil, has something, it tries at once.
func (n *Node) until(ctx context.Context, what string, kick <-chan struct{}, try func() error) error {
	return n.untilWithin(ctx, longestWait, what, kick, try)
}

// untilWithin is until with a bound of its own on the pauses.
func (n *Node) untilWithin(ctx context.Context, longest time.Duration, what string, kick <-chan struct{}, try func() error) error {
	defer n.view.goesOn(what) // Also where it is given up: nothing is waited for then.
	said, tries := "", 0
	pauses := &backoff.ExponentialBackOff{InitialInterval: firstWait, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: longest}
	for {
		err := try()
		tries++
		var given *backoff.PermanentError
		switch {
		case err == nil:
			if said != "" {
				n.log.Info("waiting is over", zap.String("for", what), zap.Int("tries", tries))
			}
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case errors.As(err, &given):
			return fmt.Errorf("%s: %w", what, given.Unwrap())
		case errors.Is(err, subnet.ErrRefused) && !n.serving.Load():
			return fmt.Errorf("%s: %w", what, err)
		case err.Error() != said:
			said = err.Error()
			n.view.waits(what, err)
			n.log.Warn("waiting", zap.String("for", what), zap.Error(err))
		}
		pause := time.NewTimer(pauses.NextBackOff())
		select {
		case <-ctx.Done():
		case <-kick:
		case <-pause.C:
		}
		pause.Stop()
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		}
	}
}
