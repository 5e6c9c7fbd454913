package etcd

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// pauses spaces out tries: they double from first to most, and each is drawn
// from around its length, so that a thousand nodes do not come back at once.
func pauses(first, most time.Duration) *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{InitialInterval: first, RandomizationFactor: 0.3, Multiplier: 2, MaxInterval: most}
}

// pause waits for the next of b's pauses. It returns false if ctx ended.
func pause(ctx context.Context, b *backoff.ExponentialBackOff) bool {
	return sleep(ctx, b.NextBackOff())
}

// sleep waits for d and returns true, or false as soon as ctx ends.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
