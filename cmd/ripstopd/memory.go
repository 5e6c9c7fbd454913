package main

import (
	"context"
	"os"
	"runtime/debug"
	"time"
)

// calmAfter is when a start is over. What it took beyond what stays, such as the
// listing, is then given back to the host: by itself the collector would keep it
// for minutes.
const calmAfter = 5 * time.Second

// gcPercent is what GOGC is from then on, unless the environment says otherwise.
// The heap is large only where there are many peers, hardly changes any more, and
// is nearly free of pointers: to collect it more often than usual costs little, and
// garbage takes less room.
const gcPercent = 40

// settleMemory waits until the node is ready and calm.
func settleMemory(ctx context.Context, ready <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-ready:
	}
	calm := time.NewTimer(calmAfter)
	defer calm.Stop()
	select {
	case <-ctx.Done():
		return nil
	case <-calm.C:
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	debug.FreeOSMemory()
	return nil
}
