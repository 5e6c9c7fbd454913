package network

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

const (
	// movedGrace is how long the guard lets packets in from where a peer was before it
	// moved: they are on the way still, and a peer whose old address serves on has its
	// record written before its device moves.
	movedGrace = 10 * time.Second
	// mostMoved bounds the addresses that wait for that. What waits for longest goes where
	// more come: its peer is the likeliest to have moved its device by now.
	mostMoved = 1 << 16
)

// left is an address that a peer has moved away from, which still counts as its own.
type left struct {
	peer  subnet.Subnets
	addr  netip.Addr
	until time.Time
}

// gone lists the addresses that are nobody's any more by what changed, each as often
// as somebody had it. Those that a peer has moved away from stay for a while unless it
// goes meanwhile.
func (f *follower) gone(deltas []subnet.Delta, now time.Time) []netip.Addr {
	var out []netip.Addr
	for _, d := range deltas {
		before := publicAddresses(f.subnet, d.Before)
		if d.After.Node == "" || d.After.Node != d.Before.Node { // It went, or nothing proves that it is the same.
			out = append(append(out, before...), f.forget(deltaSubnets(d))...)
			continue
		}
		after := publicAddresses(f.subnet, d.After)
		for _, a := range before {
			if slices.Contains(after, a) {
				out = append(out, a)
				continue
			}
			if len(f.left) >= f.mostMoved {
				out, f.left = append(out, f.left[0].addr), f.left[1:]
			}
			f.left = append(f.left, left{d.After.Subnets, a, now.Add(f.movedGrace)})
			signal(f.leaves)
		}
	}
	return out
}

// forget takes the addresses that a peer has left from those that wait.
func (f *follower) forget(peer subnet.Subnets) (out []netip.Addr) {
	f.left = slices.DeleteFunc(f.left, func(l left) bool {
		if l.peer == peer {
			out = append(out, l.addr)
		}
		return l.peer == peer
	})
	return out
}

// endGraces takes the addresses whose time is over out of the firewall, and returns when
// to do so again, the zero time where none waits.
func (f *follower) endGraces(now time.Time) (next time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.storeAway() { // Who moved may not have been answered, and waits with its device.
		if len(f.left) == 0 {
			return time.Time{}
		}
		return now.Add(time.Second)
	}
	var over []netip.Addr
	for len(f.left) > 0 && !now.Before(f.left[0].until) { // The oldest is the first.
		over = append(over, f.left[0].addr)
		f.left = f.left[1:]
	}
	if len(over) > 0 {
		f.firewall.Update(over, nil)
	}
	if len(f.left) == 0 {
		f.left = nil
		return time.Time{}
	}
	return f.left[0].until
}

// graces ends each grace in its time, until ctx ends.
func (f *follower) graces(ctx context.Context) error {
	for {
		var over <-chan time.Time
		if next := f.endGraces(time.Now()); !next.IsZero() {
			over = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.leaves:
		case <-over:
		}
	}
}
