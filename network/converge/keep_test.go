package converge

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
)

// moved is what the n-th peer owes on another machine, with another MAC.
func moved(n byte) []backend.Entry {
	out := peer(n)
	mac := backend.MAC{2, 0, 0, 0, 2, n}
	for i, e := range out {
		switch e := e.(type) {
		case backend.FDB:
			e.MAC, e.Remote = mac, netip.AddrFrom4([4]byte{10, 99, 1, n})
			out[i] = e
		case backend.Neighbour:
			e.MAC = mac
			out[i] = e
		}
	}
	return out
}

func subnetOf(n byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, n, 0}), 24)
}

// TestKeptIsLeftAlone: what an earlier run has put into the kernel for subnets of
// which nothing is known stays, whatever else changes, and goes or changes with
// them once that is known.
func TestKeptIsLeftAlone(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		some := func() (out []byte) {
			for n := byte(2); n < 12; n++ {
				if r.IntN(2) == 0 {
					out = append(out, n)
				}
			}
			return out
		}
		before, want, keep := some(), some(), some()
		fake := backendtest.NewFake(owed(before...)...)
		loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
			subnets := make([]netip.Prefix, len(keep))
			for i, n := range keep {
				subnets[i] = subnetOf(n)
			}
			l.Keep(subnets...)
			l.Update(1, nil, owed(want...))
			settle()
			kept := backend.NewState(owed(want...)...)
			was := backend.NewState(owed(before...)...)
			for _, dst := range subnets {
				for _, e := range was.Supply(dst) {
					kept.Put(e)
				}
			}
			if got := fake.State(); !got.Equal(kept) {
				t.Errorf("seed %d: of peers %v, of which %v are wanted and %v kept, the kernel has\n%s", seed, before, want, keep, got)
				return
			}
			// One of them is known to be another by now.
			if len(keep) > 0 {
				n := keep[0]
				release := []backend.Entry(nil)
				for _, w := range want {
					if w == n {
						release = peer(n)
					}
				}
				l.Update(2, release, moved(n))
				settle()
				for _, e := range moved(n) {
					if !fake.State().Has(e) {
						t.Errorf("seed %d: %s is not there", seed, e)
						return
					}
				}
				l.Keep(subnets[1:]...)
				settle()
				if fake.State().Has(peer(n)[0]) {
					t.Errorf("seed %d: %s is still there", seed, peer(n)[0])
					return
				}
				l.Update(3, moved(n), release)
			}
			l.Keep()
			settle()
			holds(t, fake, owed(want...)...)
		})
	}
}

// TestWhatWasNeverThereCostsNothing: only where something was kept does the end
// of that make a whole comparison.
func TestWhatWasNeverThereCostsNothing(t *testing.T) {
	l := New(backendtest.NewFake(), zap.NewNop())
	l.have = backend.NewState(owed(3)...)
	p := &pass{Loop: l}
	for _, tc := range []struct {
		keep []netip.Prefix
		want bool
	}{
		{[]netip.Prefix{subnetOf(2), subnetOf(3)}, false},
		{[]netip.Prefix{subnetOf(3), subnetOf(4)}, false},
		{[]netip.Prefix{subnetOf(4)}, true},
		{nil, false},
	} {
		l.Keep(tc.keep...)
		if got := p.letsGo(); got != tc.want {
			t.Errorf("lets go %t with %v kept, want %t", got, tc.keep, tc.want)
		}
	}
}
