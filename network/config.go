package network

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/planners"
	"github.com/ripstop-net/ripstop/subnet"
)

// chosenConfig is a network config and what was read from it.
type chosenConfig struct {
	text, seen []byte
	config     subnet.Config
	options    plan.Options
	// listing is what was read with it from the store at listedAt, if it was.
	listing  *subnet.Listing
	listedAt time.Time
}

func parseConfig(text []byte) (c chosenConfig, err error) {
	c.text, c.seen = text, text
	if c.config, err = subnet.ParseConfig(text); err == nil {
		c.options, err = planners.Parse(c.config.Backend)
	}
	return c, err
}

// errWithout ends the wait for a store that what was saved stands in for.
var errWithout = errors.New("the store is done without")

// config waits for the network config. One that is malformed is an error,
// unless the config that this node last worked with is there to go on with; that
// serves also where the store has none, as after a wipe, if the node's lease
// cannot have run out. Where the store does not answer within the patience and the
// saved snapshot can stand in for it, that is what it returns, and alone; nor does it
// end then where the store refuses. Whether it can is asked with each try: after a boot
// the clock may be wrong, and be set while the node waits.
func (n *Node) config(ctx context.Context, saved *snapshot, patience time.Duration) (c chosenConfig, alone bool, err error) {
	var old chosenConfig
	var last error // What the store said: the end of the patience tells nothing.
	began, unfit := time.Now(), errNoSnapshot
	without := func() bool {
		if saved != nil {
			old, unfit = saved.fit(n.clock())
		}
		return unfit == nil && last != nil && time.Since(began) >= patience
	}
	over := make(chan struct{}, 1)
	defer time.AfterFunc(patience, func() { signal(over) }).Stop()
	err = n.until(ctx, "network config", over, func() error {
		if without() {
			return final(errWithout)
		}
		limited := ctx
		if left := patience - time.Since(began); unfit == nil && left > 0 {
			var cancel context.CancelFunc
			limited, cancel = context.WithTimeout(ctx, left)
			defer cancel()
		}
		seen, err := n.store.List(limited)
		if err == nil || limited.Err() == nil || last == nil {
			last = err
		}
		if without() {
			return final(errWithout)
		}
		switch {
		case err != nil && saved != nil && unfit != nil && ctx.Err() == nil && !errors.Is(err, subnet.ErrRefused):
			return fmt.Errorf("%w; what was saved cannot stand in for it: %w", err, unfit)
		case err != nil && unfit == nil:
			return passing(err)
		case err != nil:
			return err
		case seen.Config == nil && unfit == nil:
			n.log.Error("store has no network config, starting with what was saved: write the config again with 'ripstop config set'", saved.fields()...)
			c = old
			c.seen = nil
			return nil
		case seen.Config == nil:
			return fmt.Errorf("there is no network config in %s: write one with 'ripstop config set'", n.whichStore())
		}
		if c, err = parseConfig(seen.Config); err == nil {
			c.listing, c.listedAt = &seen, time.Now()
			return nil
		}
		lastGood, savedErr := chosenConfig{}, errNoSnapshot
		if saved != nil {
			lastGood, savedErr = parseConfig(saved.Config)
		}
		if savedErr != nil {
			return final(fmt.Errorf("%w: mend it with 'ripstop config set'", err))
		}
		n.log.Error("network config in the store cannot be used, going on with the one used last: mend it with 'ripstop config set'", zap.Error(err))
		lastGood.seen = seen.Config
		c = lastGood
		return nil
	})
	if errors.Is(err, errWithout) {
		n.log.Warn("starting with what was saved", append(saved.fields(), zap.Error(last))...)
		return old, true, nil
	}
	return c, false, err
}

// whichStore names the store as far as that can: by a wrong endpoint or prefix another one
// is asked than the one that was meant.
func (n *Node) whichStore() string {
	if s, ok := n.store.Store.(fmt.Stringer); ok {
		return "the store (" + s.String() + ")"
	}
	return "the store"
}
