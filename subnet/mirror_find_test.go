package subnet

import (
	"net/netip"
	"testing"
	"time"
	"unsafe"
)

// TestPeersAreFoundOneByOne: each by its addresses and, once, by a number; and what
// is no peer is not.
func TestPeersAreFoundOneByOne(t *testing.T) {
	m := mirrorOf(t, 600)
	found := func() map[Subnets]int {
		out := map[Subnets]int{}
		for n := range m.Bound() {
			if l, ok := m.At(n); ok {
				out[l.Subnets]++
			}
		}
		return out
	}
	check := func() {
		t.Helper()
		numbers := found()
		if len(numbers) != m.Count() {
			t.Errorf("%d of %d peers have a number", len(numbers), m.Count())
		}
		for l := range m.All() {
			public, okPublic := m.ByPublic(l.Endpoints[V4].PublicIP)
			base, okBase := m.ByBase(l.Subnets[V4].Addr())
			if !okPublic || !okBase || public != l || base != l || numbers[l.Subnets] != 1 {
				t.Fatalf("%s is found as %s, %s and %d times by number", l.Subnets, public.Subnets, base.Subnets, numbers[l.Subnets])
			}
		}
	}
	check()
	gone := m.Peers()[7]
	// Two have one address for a while: of a node that took another subnet.
	again := gone
	again.Subnets[V4], again.Created = netip.MustParsePrefix("10.200.0.0/24"), 1000
	again.Endpoints[V4].MAC[5]++
	again.Endpoints[V4].MAC[3] = 9
	m.Apply(time.Now(), Change{Revision: 8, Leases: []Lease{again}})
	if l, ok := m.ByPublic(gone.Endpoints[V4].PublicIP); !ok || l != gone && l != again {
		t.Errorf("of two with one address %s is found, %v", l.Subnets, ok)
	}
	m.Apply(time.Now(), Change{Revision: 9, Gone: []string{gone.Subnets.Key()}})
	if _, ok := m.ByBase(gone.Subnets[V4].Addr()); ok {
		t.Error("a peer that is gone is found by its subnet")
	}
	check()
	for _, a := range []string{"10.200.0.1", "10.250.0.0", "10.251.0.0", "203.0.113.1", "::", "2001:db8::1"} {
		if l, ok := m.ByBase(netip.MustParseAddr(a)); ok {
			t.Errorf("%s is found by %s", l.Subnets, a)
		}
		if l, ok := m.ByPublic(netip.MustParseAddr(a)); ok {
			t.Errorf("%s is found by %s", l.Subnets, a)
		}
	}
	if _, ok := m.At(-1); ok {
		t.Error("there is a peer of the number -1")
	}
	if _, ok := m.At(m.Bound()); ok {
		t.Error("there is a peer beyond all numbers")
	}
	if allocs := testing.AllocsPerRun(100, func() {
		m.ByPublic(again.Endpoints[V4].PublicIP)
		m.ByBase(again.Subnets[V4].Addr())
		m.At(3)
	}); allocs > 0 {
		t.Errorf("finding a peer allocates %.0f times", allocs)
	}
	if size := unsafe.Sizeof(packedLease{}); size > 120 {
		t.Errorf("a packed lease has %d bytes", size)
	}
}
