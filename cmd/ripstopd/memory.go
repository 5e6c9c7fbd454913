package main

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// lookEvery is how often the daemon looks whether it has memory that it could give
// back to the host. Where nothing was collected meanwhile it is calm.
const lookEvery = 5 * time.Second

// gcPercent is what GOGC is once the node is ready, unless the environment says
// otherwise. The heap is large only where there are many peers, hardly changes any
// more, and is nearly free of pointers: to collect it more often than usual costs
// little, and garbage takes less room.
const gcPercent = 40

// spare is the memory, in bytes, that is too little to be worth giving back.
const spare = 2 << 20

// trickle is what a daemon that does next to nothing takes from one look to the next, in
// bytes. It adds up to spare within a minute or two, and is for the collector to find: to
// collect all and give it back takes some 50 ms of processor time with 10,000 peers, which
// is as much as all the rest of that minute.
const trickle = spare / 12

// settleMemory gives back to the host what a start, or thousands of peers that
// came or went at once, took beyond what stays, such as the listing: by itself the
// collector would keep it for minutes. It returns nil when ctx ends.
func settleMemory(ctx context.Context, ready <-chan struct{}) error {
	select {
	case <-ctx.Done():
		return nil
	case <-ready:
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var settled, last memory
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C:
		}
		now := readMemory()
		switch {
		case settled == memory{}:
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(gcPercent)
			}
		case now.cycles != last.cycles || now.heap < settled.heap+max(spare, settled.heap/8):
			if now.heap > settled.heap {
				settled.heap += min(trickle, now.heap-settled.heap)
			}
			last = now
			continue
		}
		debug.FreeOSMemory()
		settled = readMemory()
		last = settled
	}
}

// memory is what the process has of the host's memory for its heap, in bytes, and
// how many collections there were.
type memory struct{ heap, cycles uint64 }

func readMemory() memory {
	s := []metrics.Sample{
		{Name: "/gc/cycles/total:gc-cycles"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(s)
	return memory{heap: s[1].Value.Uint64() + s[2].Value.Uint64() + s[3].Value.Uint64(), cycles: s[0].Value.Uint64()}
}
