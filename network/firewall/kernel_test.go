package firewall

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

func testLog(t testing.TB) *zap.Logger {
	return zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel))
}

// opened is a Firewall in a namespace of its own, not running.
func opened(t testing.TB, opts Options, n Network) (*Firewall, *os.File) {
	t.Helper()
	ns := kerneltest.Namespace(t)
	return openedIn(t, ns, opts, n), ns
}

func openedIn(t testing.TB, ns *os.File, opts Options, n Network) *Firewall {
	t.Helper()
	log := zap.NewNop()
	if test, ok := t.(*testing.T); ok {
		log = testLog(test)
	}
	f, err := OpenAt(ns, opts, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	f.Begin(n.Ranges, n.Own, n.Devices, n.At, n.VNI, n.Port, n.Flannels)
	return f
}

// running runs a Firewall until it is stopped or the test ends.
func running(t *testing.T, f *Firewall) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	tried, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- f.Run(ctx, func() { close(tried) }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	select {
	case <-tried:
	case <-time.After(patience):
		t.Fatal("nothing was tried")
	}
	return stop
}

// outside is another's hand.
func outside(t testing.TB, ns *os.File) *conn {
	t.Helper()
	c, err := dial(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c
}

func (c *conn) must(t testing.TB) own {
	t.Helper()
	var o own
	var err error
	for range 5 { // It may be written anew meanwhile.
		if o, err = c.readOwn(); err == nil {
			return o
		}
	}
	t.Fatal(err)
	return o
}

// patience is how long is waited for what must come: far longer than it takes, also on
// a machine that is busy with other tests.
const patience = 30 * time.Second

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not after %s: %s", patience, what)
		}
	}
}

// passNow makes one pass.
func (f *Firewall) passNow(t testing.TB) {
	t.Helper()
	if err := f.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer f.give()
	f.pass(t.Context(), true)
}

// addrs are n addresses of peers, from the i-th on.
func addrs(i, n int) []netip.Addr {
	out := make([]netip.Addr, n)
	for k := range out {
		out[k] = netip.AddrFrom4([4]byte{10, 99, byte((i + k) >> 8), byte(i + k)})
	}
	return out
}

var everything = Options{Masquerade: true, Guard: true, EchoPort: 8473, ForwardRules: true}

// Every plan is written, and read back as what was wanted; with the same want a
// second time nothing is written.
func TestWriteAndReadBack(t *testing.T) {
	for name, want := range plans() {
		t.Run(name, func(t *testing.T) {
			c := outside(t, kerneltest.Namespace(t))
			if err := c.writeOwn(want, nil, nftables.CounterObj{Packets: 7, Bytes: 9}); err != nil {
				t.Fatal(err)
			}
			got := c.must(t)
			if !slices.Equal(got.skeleton, want.skeleton()) {
				t.Errorf("read back:\n%q\nwant:\n%q", got.skeleton, want.skeleton())
			}
			if len(want.Counters) > 0 && (got.dropped.Packets != 7 || got.dropped.Bytes != 9) {
				t.Errorf("the count does not go on: %+v", got.dropped)
			}
		})
	}
	f, ns := opened(t, everything, networks["dual"])
	peers := append(addrs(0, 3), netip.MustParseAddr("fd99::1"))
	f.Update(nil, peers)
	first := f.Status(t.Context())
	if first.Writes != 1 || first.Err != nil || first.Peers != 4 {
		t.Errorf("after the first update: %+v", first)
	}
	f.heard.all()
	f.passNow(t)
	if got := f.Status(t.Context()); got.Writes != first.Writes {
		t.Errorf("the same a second time: %+v", got)
	}
	if got := outside(t, ns).must(t); got.peers.len() != 4 {
		t.Errorf("in the sets: %v", got.peers)
	}
}

func TestLoad(t *testing.T) {
	for _, n := range []int{10_000, 60_000} {
		f, ns := opened(t, Options{Guard: true}, networks["ipv4"])
		// What Update cannot do in its time, on a machine that is busy, a pass does.
		f.Update(nil, addrs(0, n))
		f.passNow(t)
		if s := f.Status(t.Context()); s.Err != nil {
			t.Fatal(s.Err)
		}
		if got := outside(t, ns).must(t).peers.len(); got != n {
			t.Errorf("%d of %d peers are in the set", got, n)
		}
		f.Update(addrs(0, n-1), nil)
		f.passNow(t)
		if got := outside(t, ns).must(t).peers.len(); got != 1 {
			t.Errorf("%d peers are in the set, want 1", got)
		}
		f.Update(nil, addrs(0, n-1))
		f.passNow(t)
		if got := outside(t, ns).must(t).peers.len(); got != n {
			t.Errorf("added later: %d of %d peers are in the set", got, n)
		}
	}
}

func TestPeersAreCounted(t *testing.T) {
	f, ns := opened(t, Options{Guard: true}, networks["ipv4"])
	c := outside(t, ns)
	two := addrs(0, 2)
	f.Update(nil, []netip.Addr{two[0], two[1], two[0]})
	running(t, f)
	if got := c.must(t).peers; got.len() != 2 {
		t.Errorf("in the set at once: %v", got)
	}
	f.Update(two[:1], nil)
	f.Update(two[1:], nil)
	eventually(t, "the peer that nobody owes is out", func() bool { return c.must(t).peers.len() == 1 })
	if !c.must(t).peers.has(two[0]) {
		t.Error("the peer that one still owes is out")
	}
	f.SetCareful(true)
	f.Update(two[:1], nil)
	f.passNow(t)
	f.Update(nil, two[1:])
	if got := c.must(t).peers; got.len() != 2 {
		t.Errorf("while peers may be missing: %v", got)
	}
	f.SetCareful(false)
	eventually(t, "what is not owed is out", func() bool { return c.must(t).peers.len() == 1 })
}

// What another hand does to our table is undone, at once.
func TestHeals(t *testing.T) {
	f, ns := opened(t, everything, networks["dual"])
	f.Update(nil, addrs(0, 100))
	running(t, f)
	c := outside(t, ns)
	whole := c.must(t)
	var took []time.Duration
	chain := func(name string) *nftables.Chain { return &nftables.Chain{Table: ownTable(), Name: name} }
	for name, harm := range map[string]func(){
		"flush ruleset": c.nft.FlushRuleset,
		"delete table":  func() { c.nft.DelTable(ownTable()) },
		"flush chain":   func() { c.nft.FlushChain(chain(chainMasquerade)) },
		"flush set":     func() { c.nft.FlushSet(peerSet(0)) },
		"add a peer":    func() { _ = c.nft.SetAddElements(peerSet(0), elements(0, addrs(1000, 1))) },
		"add a rule": func() {
			c.nft.AddRule(&nftables.Rule{Table: ownTable(), Chain: chain(chainGuard), Exprs: doReturn.exprs})
		},
		"insert a rule": func() {
			c.nft.InsertRule(&nftables.Rule{Table: ownTable(), Chain: chain(chainMasquerade), Exprs: doReturn.exprs})
		},
		"add a chain": func() { c.nft.AddChain(chain("more")) },
		"change a policy": func() {
			drop := nftables.ChainPolicyDrop
			c.nft.AddChain(&nftables.Chain{Table: ownTable(), Name: chainGuard, Policy: &drop, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(priorityGuard), Type: "filter"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			// No fight is on: that has a test of its own.
			<-f.turn
			f.fight = fight{}
			f.turn <- struct{}{}
			before := f.Status(t.Context())
			harm()
			if err := c.nft.Flush(); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			// A pass may be at work on what came before: the count tells.
			eventually(t, "it is mended", func() bool {
				now := c.must(t)
				return slices.Equal(now.skeleton, whole.skeleton) && now.peers.len() == whole.peers.len() && f.Status(t.Context()).Heals > before.Heals
			})
			took = append(took, time.Since(began))
			t.Logf("mended after %s", took[len(took)-1])
			if got := f.Status(t.Context()); got.Heals != before.Heals+1 || got.Writes != before.Writes+1 {
				t.Errorf("%d heals and %d writes for one harm", got.Heals-before.Heals, got.Writes-before.Writes)
			}
		})
	}
	// A machine that does something else meanwhile delays one or the other.
	slices.Sort(took)
	if median := took[len(took)/2]; median > 200*time.Millisecond {
		t.Errorf("the median of the times until it was mended is %s, more than 200ms", median)
	}
}

// A flush of all of a host's rules, others' as well, is mended within 0.2 s. So is
// each of several in a row, which are answered more and more slowly. (The median
// counts: a machine that does something else meanwhile delays one or the other.)
func TestFlushHealsWithinAFifthOfASecond(t *testing.T) {
	f, ns := opened(t, everything, networks["dual"])
	peers := append(addrs(0, 1000), netip.MustParseAddr("fd99::7"))
	f.Update(nil, peers)
	running(t, f)
	c := outside(t, ns)
	whole := c.must(t)
	var took []time.Duration
	for i := range 5 {
		w := writer{t, c, filterIP}
		w.base(forwardChain, 0, dropPolicy)
		w.done()
		eventually(t, "others' rules have ours among them", func() bool { return len(c.text(t, keyForward)) == 2 })
		c.nft.FlushRuleset()
		w.done()
		began := time.Now()
		eventually(t, "it is mended", func() bool {
			now := c.must(t)
			return slices.Equal(now.skeleton, whole.skeleton) && now.peers.len() == len(peers)
		})
		took = append(took, time.Since(began))
		eventually(t, "it is counted", func() bool { return f.Status(t.Context()).Heals == uint64(i+1) })
	}
	t.Logf("mended after %s", took)
	slices.Sort(took)
	if median := took[len(took)/2]; median > 200*time.Millisecond {
		t.Errorf("the median of the times until it was mended is %s, more than 200ms", median)
	}
}

// What the firewall itself changes is not read again when it is announced, and
// what another changes is.
func TestOwnEchoesAreNoNews(t *testing.T) {
	f, ns := opened(t, everything, networks["ipv4"])
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	f.heard.take()
	go func() { done <- f.listen(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	eventually(t, "it listens", func() bool { own, _, _ := f.heard.take(); return own })
	f.heard.all()
	f.Update(nil, addrs(0, 3))
	if own, others, _ := f.heard.take(); own || !others {
		t.Errorf("after a first update it is to look at our table %t, at others' %t", own, others)
	}
	before := f.events.Load()
	f.Update(nil, addrs(3, 1))
	eventually(t, "the change is announced", func() bool { return f.events.Load() >= before+2 })
	if own, others, _ := f.heard.take(); own || others {
		t.Errorf("an own change is news: of our table %t, of others %t", own, others)
	}
	c := outside(t, ns)
	c.nft.FlushSet(peerSet(0))
	if err := c.nft.Flush(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another's change is news", func() bool { own, _, _ := f.heard.take(); return own })
}

// Announcements that were lost, as the socket's buffer is too small for them, are
// made up for by reading.
func TestLostEventsAreMadeUpFor(t *testing.T) {
	f, ns := opened(t, everything, networks["ipv4"])
	f.listenBuffer = 1 // The kernel takes its least.
	f.Update(nil, addrs(0, 3))
	running(t, f)
	c := outside(t, ns)
	table := c.nft.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "flood"})
	for i := range 300 {
		c.nft.AddChain(&nftables.Chain{Table: table, Name: fmt.Sprint("chain", i)})
	}
	c.nft.DelTable(ownTable())
	if err := c.nft.Flush(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the table is back", func() bool { return c.must(t).exists })
}

// A hand that undoes our rules again and again is answered more and more seldom,
// and named.
func TestFightIsSlowedDown(t *testing.T) {
	f, ns := opened(t, everything, networks["ipv4"])
	core, logs := observer.New(zap.ErrorLevel)
	f.log = zap.New(core)
	f.Update(nil, addrs(0, 3))
	running(t, f)
	c := outside(t, ns)
	named := func() int { return logs.FilterMessageSnippet("again and again").Len() }
	began := time.Now()
	eventually(t, "the fight is named", func() bool {
		if c.must(t).exists {
			c.nft.DelTable(ownTable())
			if err := c.nft.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		return named() > 0
	})
	heals, least := f.Status(t.Context()).Heals, time.Duration(0) // The next may come before the clock is read.
	for i := range heals - 1 {
		least += firstPause << i
	}
	if took := time.Since(began); took < least || named() != 1 {
		t.Errorf("mended %d times in %s, named %d times", heals, took, named())
	}
	eventually(t, "the table is back when the other gives up", func() bool { return c.must(t).exists })
}

func TestReadingIsBounded(t *testing.T) {
	var r reading
	now := time.Now()
	if at := r.allowed(now); at.After(now) {
		t.Error("the first reading waits")
	}
	r.spent += mostReading + time.Second
	if at := r.allowed(now); !at.Equal(now.Add(readShare * time.Second)) {
		t.Errorf("after a second too much the next reading waits %s", at.Sub(now))
	}
	now = now.Add(readShare * time.Second)
	if at := r.allowed(now); at.After(now) {
		t.Errorf("after that there is still a wait of %s", at.Sub(now))
	}
	now = now.Add(time.Hour)
	if at := r.allowed(now); r.spent != 0 || at.After(now) {
		t.Errorf("after an hour %s are spent", r.spent)
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 60_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			all := addrs(0, n)
			var cpu time.Duration // Of this process, whatever else the machine does.
			for b.Loop() {
				b.StopTimer()
				f, _ := opened(b, Options{Guard: true}, networks["ipv4"])
				b.StartTimer()
				began := cpuTime(b)
				f.Update(nil, all)
				cpu += cpuTime(b) - began
				if err := f.Status(context.Background()).Err; err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

func cpuTime(t testing.TB) time.Duration {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// BenchmarkOneMore is a peer that comes to many others and goes.
func BenchmarkOneMore(b *testing.B) {
	f, _ := opened(b, Options{Guard: true}, networks["ipv4"])
	f.Update(nil, addrs(0, 10_000))
	more := addrs(10_000, 1)
	for b.Loop() {
		f.Update(nil, more)
		f.Update(more, nil)
		<-f.turn
		f.pass(context.Background(), true)
		f.turn <- struct{}{}
	}
}
