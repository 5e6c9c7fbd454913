package firewall

import (
	"context"
	"time"

	"github.com/ripstop-net/ripstop/network/status"
)

const (
	// countAfter is how old the guard's count may be that a report gives.
	countAfter = time.Second
	// countTime bounds the reading of it.
	countTime = 100 * time.Millisecond
)

// Report tells how the rules are. It waits for no pass: while one is at work, the
// guard's count is the last one read.
func (f *Firewall) Report(ctx context.Context) status.Firewall {
	select {
	case <-f.turn:
		if time.Since(f.counted.read) > countAfter {
			ctx, cancel := context.WithTimeout(ctx, countTime)
			f.count(ctx)
			cancel()
		}
		f.give()
	default:
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := status.Firewall{
		Kept: f.begun, Guard: f.opts.Guard && f.network.Port != 0, Peers: f.status.Peers, Dropped: f.status.Dropped,
		Writes: f.status.Writes, Heals: f.status.Heals, LastHeal: f.status.LastHeal,
	}
	if f.status.Err != nil {
		out.Problem = f.status.Err.Error()
	}
	for _, s := range f.status.Strangers {
		out.Strangers = append(out.Strangers, status.Stranger{Address: s.Address, Packets: s.Packets})
	}
	for _, found := range f.status.Findings {
		out.Findings = append(out.Findings, status.Rule{
			Table: found.Table, Chain: found.Chain, Rule: found.Rule, Traffic: found.Traffic, Mend: found.Mend, Certain: found.Certain,
		})
	}
	return out
}
