package firewall

import (
	"context"
	"time"

	"github.com/google/nftables"
	"go.uber.org/zap"
)

// sayEvery is how often dropped packets are spoken of at most.
const sayEvery = time.Hour

// dropped is the guard's count as it was last seen. It outlives the counter.
type dropped struct {
	nftables.CounterObj
	seen bool
	// read is when the counter was last read, or tried to be.
	read, said time.Time
}

func (d *dropped) see(now nftables.CounterObj) {
	if now.Packets >= d.Packets {
		d.CounterObj = now
	}
}

// count reads the guard's count. It is for the holder of the turn.
func (f *Firewall) count(ctx context.Context) {
	if f.have == nil || !f.opts.Guard {
		return
	}
	f.counted.read = time.Now()
	var o own
	if err := f.with(ctx, func(c *conn) error { return c.readCounters(&o) }); err != nil {
		return // The next pass has the same trouble, and tells.
	}
	before := f.counted.Packets
	f.counted.see(o.dropped)
	now := f.counted.Packets
	f.note(func(s *Status) { s.Dropped = now })
	if !f.forgetful && (now > before || now > 0 && !f.counted.seen) {
		f.meet(ctx)
	}
	if f.counted.seen && now > before && time.Since(f.counted.said) > sayEvery {
		f.counted.said = time.Now()
		f.log.Warn("VXLAN packets of this network from addresses of no peer were dropped: they are forged, or a node sends from another address than it publishes (--guard=off lets them in)",
			zap.Uint64("packets", now-before), zap.Uint64("in_all", now))
	}
	f.counted.seen = true
}
