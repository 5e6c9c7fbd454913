package converge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const dev = "ripstop.1"

var device = backend.Device{
	Name: dev, VNI: 1, Port: 8472, Local: netip.MustParseAddr("10.99.0.1"), MAC: backend.MAC{2, 0, 0, 0, 0, 1}, MTU: 1450,
}

// peer is what the n-th peer owes.
func peer(n byte) []backend.Entry {
	base, mac := netip.AddrFrom4([4]byte{10, 5, n, 0}), backend.MAC{2, 0, 0, 0, 1, n}
	via := backend.Nexthop{Dev: dev, Gateway: base}
	return []backend.Entry{
		backend.FDB{Dev: dev, MAC: mac, Remote: netip.AddrFrom4([4]byte{10, 99, 0, n})},
		backend.Neighbour{Dev: dev, IP: base, MAC: mac}, via, backend.Route{Dst: netip.PrefixFrom(base, 24), Via: via},
	}
}

func owed(peers ...byte) []backend.Entry {
	out := []backend.Entry{device}
	for _, n := range peers {
		out = append(out, peer(n)...)
	}
	return out
}

// loop runs a loop on a fake kernel in a bubble in which time is the test's.
func loop(t *testing.T, fake *backendtest.Fake, test func(l *Loop, logs *observer.ObservedLogs)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		l := New(fake, zap.New(core))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		test(l, logs)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// settle lets time pass until nothing moves.
func settle() {
	time.Sleep(time.Second)
	synctest.Wait()
}

func holds(t *testing.T, fake *backendtest.Fake, want ...backend.Entry) {
	t.Helper()
	if got := fake.State(); !got.Equal(backend.NewState(want...)) {
		t.Errorf("the kernel has\n%s\nwant\n%s", got, backend.NewState(want...))
	}
}

func isConverged(l *Loop) bool {
	select {
	case <-l.Converged():
		return true
	default:
		return false
	}
}

// TestInvariant2NothingIsTouchedBeforeTheFirstSnapshot: what an earlier run
// left is not removed while nobody has said what is wanted.
func TestInvariant2NothingIsTouchedBeforeTheFirstSnapshot(t *testing.T) {
	fake := backendtest.NewFake(owed(2, 3)...)
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		fake.Hand(func(s *backend.State) { s.Drop(peer(2)[3]) })
		settle()
		if ops := fake.Ops(); len(ops) != 0 || isConverged(l) {
			t.Errorf("before the first update: %v", ops)
		}
		l.Update(1, nil, owed(3))
		settle()
		holds(t, fake, owed(3)...)
		if !isConverged(l) {
			t.Error("not converged")
		}
	})
}

func TestOwnEchoesCauseNoSecondChange(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		holds(t, fake, owed(2, 3)...)
		if ops := fake.Ops(); len(ops) != len(owed(2, 3)) {
			t.Errorf("%d ops: %v", len(ops), ops)
		}
		if n := logs.FilterMessage("forwarding state changed").Len(); n != 1 {
			t.Errorf("%d lines about one change: %v", n, logs.All())
		}
	})
}

func TestOnePeersChangeTouchesItsEntriesOnly(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3, 4))
		settle()
		fake.Ops()
		l.Update(2, peer(3), peer(5))
		settle()
		holds(t, fake, owed(2, 4, 5)...)
		if ops := fake.Ops(); len(ops) != 8 {
			t.Errorf("ops: %v", ops)
		}
	})
}

func TestOutsideHandIsMended(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		for name, harm := range map[string]func(){
			"an entry each": func() {
				fake.Hand(func(s *backend.State) {
					for _, e := range peer(2) {
						s.Drop(e)
					}
				})
			},
			"the device": func() { fake.Hand(func(s *backend.State) { s.Apply(backend.Op{Verb: backend.Delete, Entry: device}) }) },
			"down":       func() { fake.Down(dev) },
			"something of its own": func() {
				fake.Hand(func(s *backend.State) {
					for _, e := range peer(9) {
						s.Put(e)
					}
				})
			},
		} {
			harm()
			start := time.Now()
			for !fake.State().Equal(backend.NewState(owed(2, 3)...)) {
				time.Sleep(time.Millisecond)
				synctest.Wait()
				if time.Since(start) > time.Second {
					t.Fatalf("%s: not mended after a second:\n%s", name, fake.State())
				}
			}
			settle()
		}
	})
}

// TestFightingHandMeetsBackoff: one that undoes every mend at once makes no
// busy loop.
func TestFightingHandMeetsBackoff(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2))
		settle()
		fake.Ops()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for ctx.Err() == nil {
			fake.Hand(func(s *backend.State) { s.Drop(peer(2)[0]) })
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if n := len(fake.Ops()); n > 60 || n < 10 {
			t.Errorf("%d mends in a minute", n)
		}
		time.Sleep(longestPause)
		settle()
		holds(t, fake, owed(2)...)
	})
}

// TestFailureIsSaidOnceAndTriedAgain also sees that one peer that cannot be
// had does not keep others from being reached.
func TestFailureIsSaidOnceAndTriedAgain(t *testing.T) {
	fake := backendtest.NewFake()
	foreign := peer(2)[3]
	fake.Stand(foreign)
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		all := owed(2, 3)
		holds(t, fake, append(append([]backend.Entry{}, all[:4]...), all[5:]...)...)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if !isConverged(l) || !fake.Stands(foreign) {
			t.Error("one peer keeps the node from being ready, or the route of another was overwritten")
		}
		said := logs.FilterMessage("change failed, will be tried again")
		if said.Len() != 1 || !strings.Contains(fmt.Sprint(said.All()[0].Context), "in the way") {
			t.Errorf("said: %v", said.All())
		}
		l.Update(1, nil, peer(4))
		settle()
		if !fake.State().Has(peer(4)[3]) {
			t.Error("a new peer waits for the one that fails")
		}
		fake.Yield(foreign)
		time.Sleep(2 * longestRetry)
		synctest.Wait()
		holds(t, fake, owed(2, 3, 4)...)
		if !isConverged(l) || logs.FilterMessage("changes that failed have been made").Len() != 1 {
			t.Errorf("after it went: %v", logs.All())
		}
	})
}

// TestFreedWayIsTakenAtOnce: also where the word of it is lost, and however long
// the entry has been failing.
func TestFreedWayIsTakenAtOnce(t *testing.T) {
	fake := backendtest.NewFake()
	foreign := peer(2)[3]
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2))
		for i, lost := range []bool{false, true} {
			fake.Hand(func(s *backend.State) { s.Drop(foreign) })
			fake.Stand(foreign)
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			fake.Hand(func(*backend.State) {}) // It has just looked, and will again in a moment.
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if fake.State().Has(foreign) || l.Stats().Failing != 1 {
				t.Fatalf("time %d: %+v", i, l.Stats())
			}
			if lost {
				fake.Overflow()
			}
			fake.Yield(foreign)
			time.Sleep(3 * mostRest)
			synctest.Wait()
			if !fake.State().Has(foreign) {
				t.Fatalf("time %d: not made at once", i)
			}
		}
	})
}

// TestFreedInVainMakesNoBusyLoop: a word that comes all the time and is never true.
func TestFreedInVainMakesNoBusyLoop(t *testing.T) {
	fake := backendtest.NewFake()
	foreign, other := peer(2)[3], peer(9)[3]
	fake.Stand(foreign)
	var tries atomic.Int32
	fake.FailOps(func(op backend.Op) error {
		if op.Entry == foreign {
			tries.Add(1)
		}
		return nil
	})
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2))
		settle()
		tries.Store(0)
		for range 60_000 {
			fake.Yield(other)
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if n := tries.Load(); n < 10 || n > 40 {
			t.Errorf("%d tries in a minute", n)
		}
	})
}

func TestNodeWithoutItsDeviceIsNotConverged(t *testing.T) {
	fake := backendtest.NewFake()
	other := device
	other.Name = "flannel.1"
	fake.Stand(other)
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(1, nil, owed(2))
		settle()
		if isConverged(l) || fake.State().Len() != 0 {
			t.Errorf("converged without a device: %s", fake.State())
		}
		if said := fmt.Sprint(logs.All()); !strings.Contains(said, "flannel.1") {
			t.Errorf("what is in the way is not named: %s", said)
		}
		fake.Yield(other)
		time.Sleep(2 * longestRetry)
		synctest.Wait()
		holds(t, fake, owed(2)...)
	})
}

func TestKernelThatCannotBeReadIsTriedAgain(t *testing.T) {
	fake := backendtest.NewFake()
	fake.FailDump(errors.New("no buffer space"))
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(1, nil, owed(2))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := logs.FilterMessage("kernel cannot be read, will be tried again").Len(); n != 1 {
			t.Errorf("said %d times", n)
		}
		fake.FailDump(nil)
		time.Sleep(2 * longestRetry)
		synctest.Wait()
		holds(t, fake, owed(2)...)
	})
}

// TestOneChangeDoesNotWaitForTheLast: one that comes a moment after another is
// made at once, for no time passes here while it is.
func TestOneChangeDoesNotWaitForTheLast(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed())
		settle()
		for n := byte(1); n < 30; n++ {
			l.Update(int64(n), nil, peer(n))
			synctest.Wait()
			if !fake.State().Has(peer(n)[3]) {
				t.Fatalf("change %d waits for the one %s before", n, time.Duration(n)*time.Millisecond/2)
			}
			time.Sleep(time.Duration(n) * time.Millisecond / 2)
			synctest.Wait()
		}
	})
}

// slow takes a while to tell what the kernel announced.
type slow struct{ *backendtest.Fake }

func (s slow) Changes() ([]backend.Change, bool) {
	time.Sleep(4 * time.Millisecond)
	return s.Fake.Changes()
}

// TestNoRestAfterTheEcho: it is no part of a burst, however long it took to read.
func TestNoRestAfterTheEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fake := backendtest.NewFake()
		l := New(slow{fake}, zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		l.Update(1, nil, owed())
		settle()
		l.Update(2, nil, peer(2)) // A pass of 4 ms, as long a rest, and the echo until 12 ms.
		time.Sleep(13 * time.Millisecond)
		l.Update(3, nil, peer(3))
		time.Sleep(4 * time.Millisecond)
		synctest.Wait()
		if !fake.State().Has(peer(3)[3]) {
			t.Error("the loop rests though nothing was to be done")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestRestIsInProportion to what a pass took, so that a burst is gathered and nothing
// waits long.
func TestRestIsInProportion(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{
		0: leastRest, time.Microsecond: leastRest, time.Millisecond: time.Millisecond, time.Second: mostRest,
	} {
		if got := rest(took); got != want {
			t.Errorf("after %s it rests %s, want %s", took, got, want)
		}
	}
}
