package converge

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
)

// far is what the n-th of many peers owes.
func far(n int) []backend.Entry {
	base := netip.AddrFrom4([4]byte{10 + byte(n>>16), byte(n >> 8), byte(n), 0})
	mac := backend.MAC{2, 1, 0, byte(n >> 16), byte(n >> 8), byte(n)}
	via := backend.Nexthop{Dev: dev, Gateway: base}
	return []backend.Entry{
		backend.FDB{Dev: dev, MAC: mac, Remote: netip.AddrFrom4([4]byte{172, 16 + byte(n>>16), byte(n >> 8), byte(n)})},
		backend.Neighbour{Dev: dev, IP: base, MAC: mac}, via, backend.Route{Dst: netip.PrefixFrom(base, 24), Via: via},
	}
}

// farOwed is the node with n of many peers.
func farOwed(n int) []backend.Entry {
	out := []backend.Entry{device}
	for i := range n {
		out = append(out, far(i)...)
	}
	return out
}

// begun returns the fake's dumps and forgets its ops.
func begun(fake *backendtest.Fake) int {
	fake.Ops()
	return fake.Dumps()
}

func TestOnePeersChangeReadsNothing(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		dumps := begun(fake)
		for i := range 50 {
			n := byte(10 + i)
			l.Update(2, nil, peer(n))
			settle()
			l.Update(3, peer(n), nil)
			settle()
		}
		if ops := fake.Ops(); fake.Dumps() != dumps || len(ops) != 50*8 {
			t.Errorf("%d dumps and %d ops for 50 peers that came and went", fake.Dumps()-dumps, len(ops))
		}
		if s := l.Stats(); s.Drift != 0 || s.Failures != 0 || s.Dumps.Start != 1 || s.Dumps.Surprise != 0 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestDriftIsMendedWithoutADump(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		const peers = 10_000
		l.Update(1, nil, farOwed(peers))
		settle()
		want := fake.State()
		for _, e := range far(1234) {
			dumps := begun(fake)
			fake.Hand(func(s *backend.State) { s.Apply(backend.Op{Verb: backend.Delete, Entry: e}) })
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			if !fake.State().Equal(want) {
				t.Errorf("%s is not mended after 10 ms", e)
			}
			settle()
			wantOps := 1
			if e.Kind() == backend.KindNexthop {
				wantOps = 2 // Its route went with it, in silence.
			}
			if ops := fake.Ops(); fake.Dumps() != dumps || len(ops) != wantOps {
				t.Errorf("%s: %d dumps, ops %v", e, fake.Dumps()-dumps, ops)
			}
		}
		time.Sleep(sayEvery)
		synctest.Wait()
		if lines := logs.FilterMessage("drift mended").All(); len(lines) != 2 || lines[0].ContextMap()["entries"] != int64(1) || lines[1].ContextMap()["entries"] != int64(4) {
			t.Errorf("lines: %v", lines)
		}
		if s := l.Stats(); s.Drift != 5 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestDoubtIsReadOnce(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		dumps := begun(fake)
		fake.Silently(func(s *backend.State) { s.Drop(peer(2)[3]) })
		fake.Overflow()
		settle()
		holds(t, fake, owed(2, 3)...)
		if n := fake.Dumps() - dumps; n != 1 {
			t.Errorf("%d dumps", n)
		}
	})
}

// TestEndlessDoubtIsReadWithMeasure: and does not keep a new peer waiting.
func TestEndlessDoubtIsReadWithMeasure(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2))
		settle()
		dumps := begun(fake)
		for range 10_000 {
			fake.Overflow()
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		if n := fake.Dumps() - dumps; n > mostDumps+11 {
			t.Errorf("%d dumps in 10 s", n)
		}
		l.Update(2, nil, peer(3))
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		holds(t, fake, owed(2, 3)...)
	})
}

// TestFightingHandDelaysNothingElse also sees that it is named once, and once
// when it has stopped.
func TestFightingHandDelaysNothingElse(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		for i := range 25 {
			for range 1000 {
				fake.Hand(func(s *backend.State) { s.Drop(peer(2)[1]) })
				time.Sleep(time.Millisecond)
				synctest.Wait()
			}
			fake.Ops()
			n := byte(10 + i)
			l.Update(int64(i), nil, peer(n))
			fake.Hand(func(s *backend.State) { s.Drop(peer(3)[0]) })
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			if !fake.State().Has(peer(n)[3]) || i == 0 && !fake.State().Has(peer(3)[0]) {
				t.Fatalf("second %d: others wait", i)
			}
			if ops := fake.Ops(); i > 18 && len(ops) > 6 {
				t.Errorf("second %d: %v", i, ops)
			}
		}
		named := logs.FilterMessageSnippet("again and again")
		if named.Len() == 0 || strings.Count(fmt.Sprint(named.All()), peer(2)[1].(backend.Neighbour).IP.String()) != 1 ||
			!strings.Contains(fmt.Sprint(named.All()[0].ContextMap()), fmt.Sprint(backendtest.HandPort)) {
			t.Errorf("named: %v", named.All())
		}
		if l.Stats().Fought == 0 {
			t.Errorf("stats: %+v", l.Stats())
		}
		time.Sleep(longestPause + 2*calmAfter)
		synctest.Wait()
		if n := logs.FilterMessage("the outside hand has stopped").Len(); n != named.Len() || l.Stats().Failing != 0 {
			t.Errorf("%d lines that it has stopped, %d named", n, named.Len())
		}
		if len(l.fights.entries) != 0 || len(l.fights.agenda.items) != 0 {
			t.Errorf("left over: %d fights, %d times", len(l.fights.entries), len(l.fights.agenda.items))
		}
		if lines := logs.FilterMessage("drift mended").Len(); lines > 20 {
			t.Errorf("%d lines about mends", lines)
		}
	})
}

// TestFightsAreBounded: a hand that deletes all of many entries all the time.
func TestFightsAreBounded(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		const peers = 300
		l.fights.most = 400
		l.Update(1, nil, farOwed(peers))
		settle()
		want := fake.State()
		fake.Ops()
		for range 10 {
			fake.Hand(func(s *backend.State) {
				for i := range peers {
					s.Drop(far(i)[0])
					s.Drop(far(i)[1])
				}
			})
			time.Sleep(20 * time.Millisecond)
			synctest.Wait()
		}
		if n := len(l.fights.entries); n > 400 {
			t.Errorf("%d fights kept", n)
		}
		if ops := len(fake.Ops()); ops > 8*2*peers {
			t.Errorf("%d ops", ops)
		}
		time.Sleep(longestPause + calmAfter)
		settle()
		if !fake.State().Equal(want) {
			t.Error("not mended at last")
		}
		if n := logs.Len(); n > 100 {
			t.Errorf("%d lines", n)
		}
	})
}

// TestPoisonedPeerDelaysNobody: nor does its retry read the kernel.
func TestPoisonedPeerDelaysNobody(t *testing.T) {
	fake := backendtest.NewFake()
	poison := peer(2)[0]
	var tries atomic.Int32
	fake.FailOps(func(op backend.Op) error {
		if op.Entry == poison {
			tries.Add(1)
			return syscall.ENOMEM
		}
		return nil
	})
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		if !isConverged(l) {
			t.Error("one peer keeps the node from being ready")
		}
		dumps := begun(fake)
		for i := range 100 {
			n := byte(10 + i)
			l.Update(2, nil, peer(n))
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
			if !fake.State().Has(peer(n)[3]) {
				t.Fatal("a new peer waits for the one that fails")
			}
		}
		if n := tries.Load(); n > 8 {
			t.Errorf("%d tries in two seconds", n)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := fake.Dumps() - dumps; n != 0 {
			t.Errorf("%d dumps", n)
		}
		if s := l.Stats(); s.Failing != 3 || s.Failures < 10 {
			t.Errorf("stats: %+v", s)
		}
		if n := logs.FilterMessage("change failed, will be tried again").Len(); n != 1 {
			t.Errorf("said %d times", n)
		}
		fake.FailOps(nil)
		time.Sleep(2 * longestRetry)
		synctest.Wait()
		if !fake.State().Has(peer(2)[3]) || l.Stats().Failing != 0 {
			t.Error("not made when it could be")
		}
		// One that leaves while it fails is not missed.
		fake.FailOps(func(op backend.Op) error {
			if op.Entry == peer(4)[0] {
				return syscall.ENOMEM
			}
			return nil
		})
		l.Update(3, nil, peer(4))
		settle()
		l.Update(4, peer(4), nil)
		settle()
		if s := l.Stats(); s.Failing != 0 {
			t.Errorf("after it left: %+v", s)
		}
	})
}

// TestSurpriseIsReadOnce: an op that meets what the mirror does not show.
func TestSurpriseIsReadOnce(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2))
		settle()
		fake.Silently(func(s *backend.State) {
			for _, e := range peer(3) {
				s.Put(e)
			}
		})
		l.Update(2, nil, peer(3))
		settle()
		holds(t, fake, owed(2, 3)...)
		fake.Stand(peer(4)[3])
		l.Update(3, nil, peer(4))
		time.Sleep(4 * time.Minute / 2)
		synctest.Wait()
		if s := l.Stats(); s.Dumps.Surprise != 2 || s.Failing != 1 {
			t.Errorf("stats: %+v", s)
		}
	})
}

func TestAuditFindsWhatWasNotAnnounced(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		time.Sleep(time.Hour)
		synctest.Wait()
		if s := l.Stats(); s.Findings != 0 || s.Dumps.Audit < 8 || s.Dumps.Audit > 24 {
			t.Errorf("stats after an hour: %+v", s)
		}
		fake.Silently(func(s *backend.State) { s.Drop(peer(2)[0]) })
		time.Sleep(2 * DefaultAuditEvery)
		synctest.Wait()
		holds(t, fake, owed(2, 3)...)
		if s := l.Stats(); s.Findings != 1 || s.Drift != 1 || logs.FilterMessageSnippet("audit found").Len() != 1 {
			t.Errorf("stats: %+v, %v", s, logs.All())
		}
	})
}

// TestAnnouncedLateIsNoFinding: the kernel may announce a change only after a dump
// could see it.
func TestAnnouncedLateIsNoFinding(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		fake.Silently(func(s *backend.State) { s.Drop(peer(2)[3]) })
		for dumps := fake.Dumps(); fake.Dumps() == dumps; time.Sleep(longestConfirm / 10) {
			synctest.Wait()
		}
		if fake.State().Has(peer(2)[3]) {
			t.Error("mended before it was confirmed")
		}
		fake.Overflow()
		time.Sleep(2 * DefaultAuditEvery)
		synctest.Wait()
		holds(t, fake, owed(2, 3)...)
		if s := l.Stats(); s.Findings != 0 || s.Drift != 1 || logs.FilterMessageSnippet("audit found").Len() != 0 {
			t.Errorf("stats: %+v, %v", s, logs.All())
		}
	})
}

func TestBurstIsCoalesced(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(0, nil, owed())
		settle()
		passes := l.Stats().Passes
		for i := range 10_000 {
			l.Update(int64(i+1), nil, far(i))
		}
		settle()
		if s := l.Stats(); s.Passes > passes+100 || fake.State().Len() != 40_001 {
			t.Errorf("%d passes, %d entries", s.Passes-passes, fake.State().Len())
		}
	})
}

func TestWaitForRevision(t *testing.T) {
	fake := backendtest.NewFake()
	fake.FailDump(errors.New("no"))
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		short := func(revision int64) error {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return l.WaitFor(ctx, revision)
		}
		l.Update(5, nil, owed(2))
		if err := short(5); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("while the kernel cannot be read: %v", err)
		}
		fake.FailDump(nil)
		if err := l.WaitFor(context.Background(), 5); err != nil || !fake.State().Has(peer(2)[3]) {
			t.Errorf("wait: %v", err)
		}
		if err := short(6); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("for what has not come: %v", err)
		}
		fake.Stand(peer(3)[3])
		l.Update(7, nil, append(peer(3), peer(4)...))
		start := time.Now()
		if err := l.WaitFor(context.Background(), 6); err != nil || time.Since(start) > 20*time.Millisecond || !fake.State().Has(peer(4)[3]) {
			t.Errorf("a failing peer keeps it waiting: %v after %v", err, time.Since(start))
		}
		// The node's own entries do.
		moved := device
		moved.MTU = 1300
		fake.FailOps(func(op backend.Op) error {
			if op.Entry.Kind() == backend.KindDevice {
				return syscall.EBUSY
			}
			return nil
		})
		l.Update(8, []backend.Entry{device}, []backend.Entry{moved})
		if err := short(8); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("without its device: %v", err)
		}
		fake.FailOps(nil)
		if err := l.WaitFor(context.Background(), 8); err != nil {
			t.Error(err)
		}
		l.Update(9, nil, nil) // Nothing changes, and it is reached.
		if err := l.WaitFor(context.Background(), 9); err != nil {
			t.Error(err)
		}
	})
}

// BenchmarkOnePeer is one peer's coming and going among many.
func BenchmarkOnePeer(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000, 60_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			fake := backendtest.NewFake()
			l := New(fake, zap.NewNop())
			ctx, cancel := context.WithCancel(b.Context())
			watch := make(chan error, 1)
			subscribed := make(chan struct{}, 1)
			go func() {
				watch <- fake.Watch(ctx, func() {
					select {
					case subscribed <- struct{}{}:
					default:
					}
				})
			}()
			<-subscribed
			l.Update(1, nil, farOwed(n))
			for range 3 {
				l.pass(ctx)
			}
			one := far(n + 1)
			dumps := begun(fake)
			runtime.GC() // What it took to begin is not what is measured.
			b.ReportAllocs()
			for b.Loop() {
				l.Update(2, nil, one)
				l.pass(ctx)
				l.Update(3, one, nil)
				l.pass(ctx)
				if len(fake.Ops()) != 8 {
					b.Fatal("not done")
				}
			}
			if fake.Dumps() != dumps {
				b.Fatal("dumped")
			}
			cancel()
			if err := <-watch; err != nil {
				b.Fatal(err)
			}
		})
	}
}
