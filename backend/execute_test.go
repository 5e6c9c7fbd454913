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
