package backend

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// The universe that random states are drawn from is small, so that they clash.
var testDevs = []string{"ripstop.1", "ripstop-v6.1"}

func testDevice(r *rand.Rand, dev int) Device {
	d := Device{
		Name: testDevs[dev], VNI: 1, Port: 8472, Local: testAddr(dev, 99, 1+r.IntN(2)),
		MAC: MAC{2, 0, 0, 0, byte(dev), byte(r.IntN(2))}, MTU: 1400 + 50*r.IntN(2), Lower: []string{"", "", "eth0"}[r.IntN(3)],
	}
	return d
}

func testAddr(dev, net, host int) netip.Addr {
	if dev == 0 {
		return netip.AddrFrom4([4]byte{10, byte(net), 0, byte(host)})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 1: byte(net), 15: byte(host)})
}

func testSubnet(dev, n int) netip.Prefix {
	if dev == 0 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 7: byte(n)}), 64)
}

// testPeer is what a peer owes on a device.
func testPeer(r *rand.Rand, dev, n int) []Entry {
	base, mac := testSubnet(dev, n).Addr(), MAC{2, 0, 0, 1, byte(dev), byte(r.IntN(6))}
	via := Nexthop{Dev: testDevs[dev], Gateway: base}
	return []Entry{
		FDB{Dev: testDevs[dev], MAC: mac, Remote: testAddr(dev, 99, 10+int(mac[5]))},
		Neighbour{Dev: testDevs[dev], IP: base, MAC: mac}, via, Route{Dst: testSubnet(dev, n), Via: via},
	}
}

// testDirect is what a peer on the underlay's link owes.
func testDirect(r *rand.Rand, dev, n int) Route {
	via := Nexthop{Dev: "eth0", Gateway: testAddr(dev, 99, 10+r.IntN(6))}
	return Route{Dst: testSubnet(dev, n), Plain: true, MTU: uint16(1300 * r.IntN(2)), Via: via}
}

// wanted draws a state as planners make them: every route has all it needs.
func wanted(r *rand.Rand) *State {
	s := &State{}
	for dev := range testDevs {
		if r.IntN(8) == 0 { // No tunnel, as with the backend host-gw.
			for n := range 3 {
				s.Put(testDirect(r, dev, n))
			}
			continue
		}
		s.Put(testDevice(r, dev))
		s.Put(Address{testDevs[dev], netip.PrefixFrom(testSubnet(dev, 100+r.IntN(2)).Addr(), testSubnet(dev, 0).Addr().BitLen())})
		for n := range 6 {
			switch r.IntN(4) {
			case 0:
				s.Put(testDirect(r, dev, n))
			case 1, 2:
				for _, e := range testPeer(r, dev, n) {
					if route, ok := e.(Route); ok {
						route.MTU = uint16(1300 * r.IntN(2))
						e = route
					}
					s.Put(e)
				}
			}
		}
	}
	return s
}

// found draws a state as a kernel may be found: somebody removed things,
// changed them, and left things of his own.
func found(r *rand.Rand) *State {
	s := wanted(r)
	var all []Entry
	for e := range s.All() {
		all = append(all, e)
	}
	for _, e := range all {
		if r.IntN(6) == 0 {
			s.Drop(e)
		}
	}
	for dev, name := range testDevs {
		if d, ok := s.Device(name); ok {
			switch r.IntN(9) {
			case 0:
				d.Down = true
			case 1:
				d.Learning = true
			case 2:
				d.Misfit = "is a port of br0"
			case 3:
				d.VNI = 2
			case 4:
				d.NoForwarding, d.PathFilter, d.NoTxChecksum = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
			case 5, 6:
				d.Lower = []string{"eth0", "eth1"}[r.IntN(2)]
			}
			s.Put(d)
		}
		if _, there := s.Device(name); there && r.IntN(3) == 0 { // It was another's, whose routes stand yet.
			for n := range 8 {
				if r.IntN(2) == 0 {
					s.Put(testTaken(s, dev, n))
				}
			}
		}
		if r.IntN(3) == 0 {
			stray := Nexthop{Dev: name, Gateway: testSubnet(dev, r.IntN(6)).Addr(), Stray: 7}
			s.Put(stray)
			s.Put(Route{Dst: testSubnet(dev, r.IntN(8)), Via: stray})
			s.Put(Route{Dst: testSubnet(dev, r.IntN(8)), Metric: 9, Via: stray})
			s.Put(Route{Dst: testSubnet(dev, r.IntN(8)), Table: 7})
			s.Put(Route{Dst: testSubnet(dev, r.IntN(8)), Plain: true, Via: Nexthop{Dev: name, Gateway: testSubnet(dev, r.IntN(8)).Addr()}})
			odd := testDirect(r, dev, r.IntN(8))
			odd.Odd, odd.Metric = true, uint32(9*r.IntN(2))
			s.Put(odd)
			s.Put(FDB{Dev: name, Remote: testAddr(dev, 99, 77)})
			s.Put(FDB{Dev: name, MAC: MAC{2, 0, 0, 1, byte(dev), 0}, Remote: testAddr(dev, 99, 10), Odd: "port 4789"})
		}
	}
	if r.IntN(4) == 0 {
		s.Put(Device{Name: "ripstop.2", VNI: 2, Port: 8472, Local: testAddr(0, 99, 1)})
		for _, e := range testPeer(r, 0, 9) {
			switch e := e.(type) {
			case FDB:
				e.Dev = "ripstop.2"
				s.Put(e)
			case Neighbour:
				e.Dev = "ripstop.2"
				s.Put(e)
			}
		}
	}
	return s
}

// unbound is what is wanted, without the bindings that it bears and that got lacks.
func unbound(got, want *State) *State {
	want = want.Clone()
	for _, name := range testDevs {
		if d, ok := want.Device(name); ok {
			if have, _ := got.Device(name); have.Lower == "" {
				d.Lower = ""
			}
			want.Put(d)
		}
	}
	return want
}

// testTaken is a route that another laid over a device, with what it needs.
func testTaken(s *State, dev, n int) Route {
	via := Nexthop{Dev: testDevs[dev], Gateway: testSubnet(dev, n).Addr()}
	mac := MAC{2, 0, 0, 1, byte(dev), byte(n)}
	s.Put(FDB{Dev: via.Dev, MAC: mac, Remote: testAddr(dev, 99, 10+n)})
	s.Put(Neighbour{Dev: via.Dev, IP: via.Gateway, MAC: mac})
	return Route{Dst: testSubnet(dev, n), Plain: true, Protocol: 3, Via: via}
}

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

// fuzz tries a test on random pairs of states, n of them in every run.
func fuzz(f *testing.F, n uint64, test func(t *testing.T, r *rand.Rand, have, want *State)) {
	for seed := range n {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := seeded(seed)
		have, want := found(r), wanted(r)
		test(t, r, have, want)
	})
}

func FuzzDiffMakesHaveEqualToWant(f *testing.F) {
	fuzz(f, 200, func(t *testing.T, _ *rand.Rand, have, want *State) {
		start := have.String()
		ops := Diff(have, want)
		if have.String() != start {
			t.Fatal("Diff changed its input")
		}
		if a, b := fmt.Sprint(ops), fmt.Sprint(Diff(have, want)); a != b {
			t.Fatalf("two orders for the same input:\n%s\n%s", a, b)
		}
		got := have.Clone()
		for _, op := range ops {
			got.Apply(op)
		}
		if !got.Equal(unbound(got, want)) {
			t.Fatalf("have\n%s\nops %v\ngot\n%s\nwant\n%s", have, ops, got, want)
		}
		if again := Diff(got, want); len(again) != 0 {
			t.Fatalf("a second time: %v", again)
		}
		if self := Diff(have, have.Clone()); len(self) != 0 {
			t.Fatalf("Diff(x, x) is %v", self)
		}
	})
}

// brokenBy returns a route of now that lacks something and was not standing
// like that before.
func brokenBy(before, now *State) (Route, bool) {
	for e := range now.OfKind(KindRoute) {
		if r := e.(Route); !now.Forwards(r) && !(before.Has(r) && !before.Forwards(r)) {
			return r, true
		}
	}
	return Route{}, false
}

// FuzzInvariant1EachPrefixKeepsRoutesSupplied: no route exists without the FDB
// and neighbour entries it needs, and none of those goes before the route does,
// wherever the ops are cut off.
func FuzzInvariant1EachPrefixKeepsRoutesSupplied(f *testing.F) {
	fuzz(f, 200, func(t *testing.T, _ *rand.Rand, have, want *State) {
		now := have.Clone()
		for i, op := range Diff(have, want) {
			now.Apply(op)
			if route, broken := brokenBy(have, now); broken {
				t.Fatalf("op %d, %s, breaks %s\nhave\n%s\nnow\n%s", i, op, route, have, now)
			}
		}
	})
}

// failingKernel fails ops at random and checks the invariant after each op.
type failingKernel struct {
	t      *testing.T
	r      *rand.Rand
	before *State
	now    *State
}

var errInjected = errors.New("injected")

func (k *failingKernel) Dump(context.Context) (*State, error)      { return k.now.Clone(), nil }
func (k *failingKernel) Watch(ctx context.Context, _ func()) error { <-ctx.Done(); return nil }
func (k *failingKernel) Changes() ([]Change, bool)                 { return nil, true }
func (k *failingKernel) Apply(_ context.Context, ops []Op) []error {
	errs := make([]error, len(ops))
	for i, op := range ops {
		if k.r.IntN(5) == 0 {
			errs[i] = errInjected
			continue
		}
		k.now.Apply(op)
		if route, broken := brokenBy(k.before, k.now); broken {
			k.t.Fatalf("%s breaks %s\nbefore\n%s\nnow\n%s", op, route, k.before, k.now)
		}
	}
	return errs
}

// FuzzInvariant1HoldsWhenAnyOpFails: the kernel goes on after an error, so
// what depends on a failed op must be left out. In the end all is as wanted.
func FuzzInvariant1HoldsWhenAnyOpFails(f *testing.F) {
	fuzz(f, 300, func(t *testing.T, r *rand.Rand, have, want *State) {
		k := &failingKernel{t: t, r: r, before: have.Clone(), now: have.Clone()}
		for try := 0; ; try++ {
			failures := Execute(t.Context(), k, have, Diff(have, want))
			if !have.Equal(k.now) {
				t.Fatalf("the mirror says\n%s\nthe kernel has\n%s", have, k.now)
			}
			if len(failures) == 0 {
				break
			}
			for _, f := range failures {
				if !errors.Is(f, errInjected) && !errors.Is(f, ErrBlocked) {
					t.Fatalf("failure of another kind: %v", f)
				}
			}
			if try == 200 {
				t.Fatalf("still failing: %v", failures)
			}
			k.before = k.now.Clone()
		}
		if !have.Equal(unbound(have, want)) {
			t.Fatalf("got\n%s\nwant\n%s", have, want)
		}
	})
}

// FuzzInvariant1HoldsForAnyPartOfADifference: what is held back, or failed and
// is to be tried later, may leave any ops out, and then others at another time.
func FuzzInvariant1HoldsForAnyPartOfADifference(f *testing.F) {
	fuzz(f, 300, func(t *testing.T, r *rand.Rand, have, want *State) {
		k := &failingKernel{t: t, r: r, before: have.Clone(), now: have.Clone()}
		for range 10 {
			ops := slices.DeleteFunc(Diff(have, want), func(Op) bool { return r.IntN(3) == 0 })
			Execute(t.Context(), k, have, ops)
			k.before = k.now.Clone()
		}
		if !have.Equal(k.now) {
			t.Fatalf("the mirror says\n%s\nthe kernel has\n%s", have, k.now)
		}
	})
}

func TestLedgerKeepsWhatTwoOweUntilTheLastLetsGo(t *testing.T) {
	shared := FDB{Dev: "ripstop.1", MAC: MAC{2}, Remote: testAddr(0, 99, 2)}
	a := Neighbour{Dev: "ripstop.1", IP: testAddr(0, 5, 1), MAC: MAC{2}}
	b := Neighbour{Dev: "ripstop.1", IP: testAddr(0, 5, 2), MAC: MAC{2}}
	c := Neighbour{Dev: "ripstop.1", IP: testAddr(0, 5, 3), MAC: MAC{2}}
	var l Ledger
	l.Owe(shared, a)
	l.Owe(shared, b)
	l.Owe(shared, c)
	for i, step := range []struct {
		release Entry
		want    *State
	}{
		{b, NewState(shared, a, c)}, {c, NewState(shared, a)}, {a, NewState()},
	} {
		l.Release(shared, step.release)
		if !l.Want().Equal(step.want) {
			t.Errorf("step %d: want is\n%s", i, l.Want())
		}
	}
	if len(l.more) != 0 {
		t.Errorf("left over: %v", l.more)
	}
	l.Release(shared) // What nobody owes is no matter.
}

func TestPickTakesByIdentity(t *testing.T) {
	was := FDB{Dev: "ripstop.1", MAC: MAC{2}, Remote: testAddr(0, 99, 2)}
	is := FDB{Dev: "ripstop.1", MAC: MAC{2}, Remote: testAddr(0, 99, 3)}
	s := NewState(is, Address{"ripstop.1", netip.MustParsePrefix("10.5.0.0/32")})
	if got := s.Pick(NewState(was).All()); !got.Equal(NewState(is)) {
		t.Errorf("got\n%s", got)
	}
}

// TestDiffOrder is the golden of one peer's coming, moving and going.
func TestDiffOrder(t *testing.T) {
	r := seeded(1)
	dev := testDevice(r, 0)
	first, second := testPeer(r, 0, 1), testPeer(r, 0, 1)
	for first[0] == second[0] {
		second = testPeer(r, 0, 1)
	}
	none, one, moved := NewState(dev), NewState(append(first, dev)...), NewState(append(second, dev)...)
	route := testDirect(r, 0, 1)
	narrow := route
	narrow.MTU = 1200
	direct, narrowed := NewState(dev, route), NewState(dev, narrow)
	for name, tc := range map[string]struct {
		have, want *State
		ops        string
	}{
		"comes":                  {none, one, "[" + fmt.Sprintf("add %s add %s add %s add %s", first[0], first[1], first[2], first[3]) + "]"},
		"moves":                  {one, moved, "[" + fmt.Sprintf("add %s replace %s delete %s", second[0], second[1], first[0]) + "]"},
		"goes":                   {one, none, "[" + fmt.Sprintf("delete %s delete %s delete %s delete %s", first[3], first[2], first[1], first[0]) + "]"},
		"tunnel to direct route": {one, direct, "[" + fmt.Sprintf("replace %s delete %s delete %s delete %s", route, first[2], first[1], first[0]) + "]"},
		"direct route to tunnel": {direct, one, "[" + fmt.Sprintf("add %s add %s add %s replace %s", first[0], first[1], first[2], first[3]) + "]"},
		"without a device":       {one, NewState(route), "[" + fmt.Sprintf("replace %s delete %s delete %s", route, first[2], dev) + "]"},
		"another MTU":            {direct, narrowed, "[" + fmt.Sprintf("replace %s", narrow) + "]"},
	} {
		if got := fmt.Sprint(Diff(tc.have, tc.want)); got != tc.ops {
			t.Errorf("%s:\n got %s\nwant %s", name, got, tc.ops)
		}
	}
}

func BenchmarkDiff(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		want := &State{}
		for i := range n {
			base := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
			mac := MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}
			via := Nexthop{Dev: "ripstop.1", Gateway: base}
			for _, e := range []Entry{FDB{"ripstop.1", mac, base, ""}, Neighbour{"ripstop.1", base, mac}, via, Route{Dst: netip.PrefixFrom(base, 24), Via: via}} {
				want.Put(e)
			}
		}
		for name, have := range map[string]*State{"cold": {}, "same": want.Clone()} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				for b.Loop() {
					Diff(have, want)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/peer")
			})
		}
	}
}
