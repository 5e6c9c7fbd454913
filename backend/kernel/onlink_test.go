package kernel

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// linkTo is a route to a prefix by a device's own link, with gateway one through a
// gateway.
func linkTo(prefix netip.Prefix, out int, gateway bool) routeMessage {
	r := routeMessage{dst: prefix, out: out, typ: unix.RTN_UNICAST}
	if gateway {
		r.gateway = netip.MustParseAddr("192.0.2.1")
	}
	return r
}

// TestOnLink: what is left of a link are the fewest prefixes, sorted, once each.
func TestOnLink(t *testing.T) {
	const eth0, veth = 2, 3
	for _, c := range []struct {
		what   string
		links  map[string]int
		aside  []string
		onEth0 []netip.Prefix
	}{
		{"nothing inside", map[string]int{"10.0.0.0/24": eth0}, []string{"10.0.1.0/24", "10.0.0.0/8"}, prefixes("10.0.0.0/24")},
		{"a half", map[string]int{"10.0.0.0/24": eth0}, []string{"10.0.0.0/25"}, prefixes("10.0.0.128/25")},
		{"both halves", map[string]int{"10.0.0.0/24": eth0}, []string{"10.0.0.128/25", "10.0.0.0/25"}, nil},
		{"an address", map[string]int{"10.0.0.0/30": eth0}, []string{"10.0.0.2/32"}, prefixes("10.0.0.0/31", "10.0.0.3/32")},
		{"one inside another", map[string]int{"10.0.0.0/30": eth0}, []string{"10.0.0.2/32", "10.0.0.2/31"}, prefixes("10.0.0.0/31")},
		{"another link's", map[string]int{"10.0.0.0/30": eth0, "10.0.0.2/32": veth}, nil, prefixes("10.0.0.0/31", "10.0.0.3/32")},
		{"its own", map[string]int{"10.0.0.0/30": eth0, "10.0.0.2/32": eth0}, nil, prefixes("10.0.0.0/30")},
		{"its own in what is taken", map[string]int{"10.0.0.0/30": eth0, "10.0.0.2/32": eth0}, []string{"10.0.0.2/31"}, prefixes("10.0.0.0/31", "10.0.0.2/32")},
		{"all of IPv4", map[string]int{"0.0.0.0/1": eth0, "128.0.0.0/1": eth0}, []string{"255.0.0.0/8"},
			prefixes("0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "224.0.0.0/4", "240.0.0.0/5", "248.0.0.0/6", "252.0.0.0/7", "254.0.0.0/8")},
		{"IPv6", map[string]int{"2001:db8::/32": eth0}, []string{"2001:db8:4000::/34"}, prefixes("2001:db8::/34", "2001:db8:8000::/33")},
	} {
		var table mainTable
		for text, out := range c.links {
			table.links = append(table.links, linkTo(netip.MustParsePrefix(text), out, false))
		}
		for _, p := range prefixes(c.aside...) {
			table.aside = append(table.aside, linkTo(p, eth0, true))
		}
		by := map[int][]netip.Prefix{}
		table.onLink(by)
		if !slices.Equal(by[eth0], c.onEth0) {
			t.Errorf("%s: %v, want %v", c.what, by[eth0], c.onEth0)
		}
	}
}

// FuzzOnLink compares with what onLink means, address by address: one is on a device's
// link if some route to that link has it which no other overrules there.
func FuzzOnLink(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 1))
		const devices = 3
		base := [16]byte{0x20, 1, 13: 7}
		six := r.IntN(2) == 0
		address := func(n int) netip.Addr {
			if six {
				a := base
				a[15] = byte(n)
				return netip.AddrFrom16(a)
			}
			return netip.AddrFrom4([4]byte{10, 0, 7, byte(n)})
		}
		var table mainTable
		for range r.IntN(12) {
			a := address(r.IntN(256))
			route := linkTo(netip.PrefixFrom(a, a.BitLen()-r.IntN(9)).Masked(), 1+r.IntN(devices), r.IntN(2) == 0)
			route.metric, route.tos = uint32(r.IntN(3)), uint8(r.IntN(8)/7)
			if route.connected() {
				table.links = append(table.links, route)
			} else {
				table.aside = append(table.aside, route)
			}
		}
		all := slices.Concat(table.aside, table.links)
		by := map[int][]netip.Prefix{}
		table.onLink(by)
		inside := insideOf(table.links)
		for out := 1; out <= devices; out++ {
			for n := range 256 {
				a, want := address(n), false
				for _, l := range table.links {
					want = want || l.out == out && l.dst.Contains(a) && !slices.ContainsFunc(all, func(o routeMessage) bool {
						return l.overruledBy(o) && o.dst.Contains(a)
					})
				}
				if got := slices.ContainsFunc(by[out], func(p netip.Prefix) bool { return p.Contains(a) }); got != want {
					t.Fatalf("%s on the link of %d: %t, want %t, by %v; routes %+v", a, out, got, want, by[out], all)
				}
			}
			for i, p := range by[out] {
				if i > 0 && (by[out][i-1].Overlaps(p) || comparePrefixes(by[out][i-1], p) > 0) {
					t.Fatalf("%v are not sorted and apart", by[out])
				}
			}
		}
		for _, o := range table.aside { // What is not kept of a large table must not matter.
			if !inside(o.dst) && slices.ContainsFunc(table.links, func(l routeMessage) bool { return l.overruledBy(o) }) {
				t.Fatalf("%s matters and is left out", o.dst)
			}
		}
	})
}

// largeTable is that of a host whose link has so many routes of pods' inside it, each to
// a link of its own, and as many that are held by nothing.
func largeTable(n int) (t mainTable) {
	t.links = append(t.links, linkTo(netip.MustParsePrefix("10.0.0.0/8"), 2, false))
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 15), byte(i >> 7), byte(i << 1)})
		t.links = append(t.links, linkTo(netip.PrefixFrom(a, 32), 3+i, false), linkTo(netip.MustParsePrefix("192.0.2.254/32"), 3+i, false))
		t.aside = append(t.aside, linkTo(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32), 2, true))
	}
	return t
}

// TestOnLinkGrowsWithTheRoutes, and no faster: ten times the routes take about ten times
// as long. It is judged by the thread's time of the processor, of which others on the machine
// take nothing away: the long one would be interrupted by them, and the short one not.
func TestOnLinkGrowsWithTheRoutes(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	used := func() time.Duration {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now); err != nil {
			t.Fatal(err)
		}
		return time.Duration(now.Nano())
	}
	fastest := func(routes int) time.Duration {
		table, least := largeTable(routes), time.Hour
		for range 10 {
			began := used()
			by := map[int][]netip.Prefix{}
			table.onLink(by)
			least = min(least, used()-began)
			if len(by) != routes+1 || len(by[2]) < routes {
				t.Fatalf("%d devices, the first with %d prefixes", len(by), len(by[2]))
			}
		}
		return least
	}
	few, many := fastest(1_000), fastest(10_000)
	t.Logf("1,000 routes take %s, 10,000 take %s", few, many)
	if ratio := float64(many) / float64(few); ratio > 30 { // A hundred if it were quadratic.
		t.Errorf("10,000 routes take %.0f times as long as 1,000", ratio)
	}
}

func BenchmarkOnLink(b *testing.B) {
	for _, routes := range []int{1_000, 10_000} {
		table := largeTable(routes)
		b.Run(fmt.Sprint(routes), func(b *testing.B) {
			for b.Loop() {
				table.onLink(map[int][]netip.Prefix{})
			}
		})
	}
}
