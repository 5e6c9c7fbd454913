package subnet

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// mirrorOf is a mirror with n sound peers, and among them a few records that
// are none.
func mirrorOf(t testing.TB, n int) *Mirror {
	t.Helper()
	cfg, err := ParseConfig([]byte(`{"Network": "10.0.0.0/8"}`))
	if err != nil {
		t.Fatal(err)
	}
	c := Change{Whole: true, Revision: 7, Epoch: "e"}
	for i := range n {
		c.Leases = append(c.Leases, Lease{
			Subnets: Subnets{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + i>>8), byte(i), 0}), 24)}, Node: fmt.Sprint("node", i/2), Backend: "vxlan", ID: 1, Created: int64(i),
			Endpoints: PerFamily[Endpoint]{{PublicIP: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), VNI: 1, MAC: MAC{2, 0, 0, 0, byte(i >> 8), byte(i)}}},
		})
	}
	if n > 0 {
		broken := c.Leases[n/2]
		broken.Endpoints[0].PublicIP = netip.Addr{}
		broken.Subnets[0] = netip.MustParsePrefix("10.250.0.0/24")
		c.Leases = append(c.Leases, broken)
		c.Bad = append(c.Bad, BadRecord{Key: "10.251.0.0-24", Reason: "junk"})
	}
	m := NewMirror(cfg, Identity{Node: "self"}, nil)
	m.Apply(time.Now(), c)
	return m
}

// TestPagesTogetherAreAllPeers, whatever their size and the order of a map.
func TestPagesTogetherAreAllPeers(t *testing.T) {
	for _, n := range []int{0, 1, 2, 7, 300} {
		m := mirrorOf(t, n)
		all := m.Peers()
		if len(all) != n || m.Count() != n {
			t.Fatalf("%d peers, %d counted, want %d", len(all), m.Count(), n)
		}
		for _, limit := range []int{1, 3, 299, 300, 301} {
			var got []Lease
			after, pages := Subnets{}, 0
			for more := true; more; pages++ {
				var page []Saved
				page, more = m.Page(after, limit, func(Lease) bool { return true })
				if len(page) > limit || more && len(page) < limit || pages > n {
					t.Fatalf("%d peers by %d: a page of %d, more %v", n, limit, len(page), more)
				}
				for _, p := range page {
					got = append(got, p.Lease)
					after = p.Lease.Subnets
				}
			}
			if !slices.Equal(got, all) {
				t.Errorf("%d peers by %d: pages have %d", n, limit, len(got))
			}
		}
	}
}

func TestPageOfThoseThatMatch(t *testing.T) {
	m := mirrorOf(t, 300)
	page, more := m.Page(Subnets{}, 10, func(l Lease) bool { return l.Node == "node7" })
	if len(page) != 2 || more || page[0].Lease.Subnets[0].String() != "10.1.14.0/24" || page[1].Lease.Subnets[0].String() != "10.1.15.0/24" {
		t.Errorf("got %v, more %v", page, more)
	}
	if m.Passed() != 2 || len(m.SomeProblems(1)) != 1 || len(m.SomeProblems(9)) != 2 {
		t.Errorf("%d records passed over: %v", m.Passed(), m.SomeProblems(9))
	}
}

// BenchmarkFirstPage of 10,000 peers, 100 to a page.
func BenchmarkFirstPage(b *testing.B) {
	m := mirrorOf(b, 10000)
	for b.Loop() {
		if page, more := m.Page(Subnets{}, 100, func(Lease) bool { return true }); len(page) != 100 || !more {
			b.Fatal(len(page))
		}
	}
}
