package backend

import (
	"context"
	"net/netip"
	"testing"
	"time"
)

// willing is a kernel that carries out all that it is sent.
type willing struct{ Kernel }

func (willing) Apply(_ context.Context, ops []Op) []error { return make([]error, len(ops)) }

// TestLeaveCostsTheSameAmongMany: also where some entries are of a form that does
// not fit the tables.
func TestLeaveCostsTheSameAmongMany(t *testing.T) {
	const dev = "ripstop.1"
	leave := func(peers int) time.Duration {
		s := manyPeers(peers)
		s.Put(Device{Name: dev})
		small := netip.MustParsePrefix("10.200.1.0/24")
		s.Put(Route{Dst: small, MTU: 1400, Via: Nexthop{Dev: dev, Gateway: small.Addr()}})
		s.Put(Route{Dst: netip.MustParsePrefix("10.200.2.0/24"), Plain: true, Via: Nexthop{Dev: "eth0", Gateway: netip.MustParseAddr("192.0.2.1")}})
		s.Put(FDB{Dev: dev, MAC: MAC{2, 9}, Remote: netip.MustParseAddr("192.0.2.1"), Odd: "port 4789"})
		base, mac := netip.MustParseAddr("10.200.3.0"), MAC{2, 8}
		via := Nexthop{Dev: dev, Gateway: base}
		one := NewState(FDB{Dev: dev, MAC: mac, Remote: base}, Neighbour{dev, base, mac}, via, Route{Dst: netip.PrefixFrom(base, 24), Via: via})
		join, part := Diff(&State{}, one), Diff(one, &State{})
		fastest := time.Duration(-1)
		for range 100 {
			if failures := Execute(t.Context(), willing{}, s, join); len(failures) > 0 {
				t.Fatal(failures)
			}
			began := time.Now()
			failures := Execute(t.Context(), willing{}, s, part)
			if took := time.Since(began); fastest < 0 || took < fastest {
				fastest = took
			}
			if len(failures) > 0 {
				t.Fatal(failures)
			}
		}
		return fastest
	}
	few, many := leave(100), leave(60_000)
	t.Logf("among 100 %s, among 60,000 %s", few, many)
	if many > 20*few {
		t.Errorf("a leave takes %s among 60,000 peers, %s among 100", many, few)
	}
}

// refusing is a kernel that refuses to change routes.
type refusing struct{ failingKernel }

func (k *refusing) Apply(_ context.Context, ops []Op) []error {
	errs := make([]error, len(ops))
	for i, op := range ops {
		if op.Entry.Kind() == KindRoute {
			errs[i] = errInjected
		}
	}
	return errs
}

// TestTakenRouteKeepsWhatItNeeds: as long as a route that was taken over could not be made
// ours, the neighbour and the FDB entry that it stands on stay.
func TestTakenRouteKeepsWhatItNeeds(t *testing.T) {
	dev := testDevice(seeded(1), 1)
	dst := testSubnet(1, 3)
	have := NewState(dev)
	taken := testTaken(have, 1, 3)
	have.Put(taken)
	mac := MAC{2, 0, 0, 9, 9, 9} // The peer's by now.
	via := Nexthop{Dev: dev.Name, Gateway: netip.MustParseAddr("fe80::3")}
	want := NewState(dev, FDB{Dev: dev.Name, MAC: mac, Remote: testAddr(1, 99, 13)}, Neighbour{Dev: dev.Name, IP: via.Gateway, MAC: mac}, via, Route{Dst: dst, Via: via})
	needs := have.Supply(dst)
	if len(needs) != 3 || !have.Forwards(taken) {
		t.Fatalf("it needs %v", needs)
	}
	k := &refusing{}
	if failures := Execute(t.Context(), k, have, Diff(have, want)); len(failures) == 0 {
		t.Fatal("nothing failed")
	}
	for _, e := range needs {
		if !have.Has(e) {
			t.Errorf("%s is gone, and the route stands", e)
		}
	}
}
