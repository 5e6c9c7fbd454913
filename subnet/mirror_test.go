package subnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// noon is when the tests of a mirror take place.
var noon = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// peerLease is a sound lease of node n: subnet 10.5.n.0/24 at 10.99.0.n.
func peerLease(n int) Lease {
	l := held(fmt.Sprintf("10.5.%d.0/24", n), fmt.Sprint("node", n), fmt.Sprintf("10.99.0.%d", n), int64(n), int64(n))
	l.Endpoints[V4].MAC = MAC{2, 0, 0, 0, 0, byte(n)}
	return l
}

func newTestMirror(t testing.TB, mode string) *Mirror {
	return NewMirror(mustConfig(t, modes[mode]), Identity{Node: "node1", PublicIP: PerFamily[netip.Addr]{netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("fd99::1")}}, nil)
}

func peersOf(m *Mirror) string {
	var out []string
	for _, l := range m.Peers() {
		out = append(out, l.Subnets.Key())
	}
	return strings.Join(out, " ")
}

func whole(leases ...Lease) Change { return Change{Whole: true, Revision: 10, Leases: leases} }

func TestMirrorPassesOverBadLeasesByKeyAndReason(t *testing.T) {
	spoil := func(f func(*Lease)) Lease { l := peerLease(3); f(&l); return l }
	public := func(s string) func(*Lease) {
		return func(l *Lease) { l.Endpoints[V4].PublicIP = netip.MustParseAddr(s) }
	}
	for name, tc := range map[string]struct {
		bad  Lease
		want string
	}{
		"outside the network":   {spoil(func(l *Lease) { l.Subnets[V4] = netip.MustParsePrefix("10.6.3.0/24") }), "outside the network"},
		"of the wrong length":   {spoil(func(l *Lease) { l.Subnets[V4] = netip.MustParsePrefix("10.5.3.0/25") }), "is not a /24"},
		"the whole network":     {spoil(func(l *Lease) { l.Subnets[V4] = netip.MustParsePrefix("10.5.0.0/16") }), "is not a /24"},
		"more than the network": {spoil(func(l *Lease) { l.Subnets[V4] = netip.MustParsePrefix("10.0.0.0/8") }), "outside the network"},
		"overlapping another": {spoil(func(l *Lease) {
			l.Subnets = Subnets{netip.MustParsePrefix("10.5.2.0/24"), netip.MustParsePrefix("fd00:10:5:1::/64")}
		}), "held by an older lease"},
		"multicast address":      {spoil(public("224.0.0.1")), "not a host's"},
		"zero address":           {spoil(public("0.0.0.0")), "not a host's"},
		"broadcast address":      {spoil(public("255.255.255.255")), "not a host's"},
		"loopback address":       {spoil(public("127.0.0.1")), "not a host's"},
		"no address":             {spoil(func(l *Lease) { l.Endpoints[V4] = Endpoint{} }), "public address is missing"},
		"own address":            {spoil(public("10.99.0.1")), "this node's own"},
		"address in the network": {spoil(public("10.5.9.9")), "inside the network"},
		"no MAC":                 {spoil(func(l *Lease) { l.Endpoints[V4].MAC = MAC{} }), "VtepMAC is missing"},
		"multicast MAC":          {spoil(func(l *Lease) { l.Endpoints[V4].MAC[0] = 1 }), "multicast"},
		"another's MAC":          {spoil(func(l *Lease) { l.Endpoints[V4].MAC = peerLease(2).Endpoints[V4].MAC }), "that of another node too"},
		"another backend":        {spoil(func(l *Lease) { l.Backend = "wireguard" }), "BackendType"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, order := range [][]Lease{{peerLease(2), tc.bad, peerLease(4)}, {tc.bad, peerLease(4), peerLease(2)}} {
				m := newTestMirror(t, "ipv4")
				m.Apply(noon, whole(order...))
				if got := peersOf(m); got != "10.5.2.0-24 10.5.4.0-24" {
					t.Errorf("peers: %s", got)
				}
				if got := m.Problems(); len(got) != 1 || !strings.Contains(got[tc.bad.Subnets.Key()], tc.want) {
					t.Errorf("problems: %v", got)
				}
			}
		})
	}
}

func TestMirrorHearsTheBackendsOwnCheck(t *testing.T) {
	m := newTestMirror(t, "ipv4")
	m = NewMirror(m.cfg, m.self, func(l Lease) error {
		if l.Node == "node3" {
			return fmt.Errorf("no way to it")
		}
		return nil
	})
	m.Apply(noon, whole(peerLease(2), peerLease(3)))
	if peersOf(m) != "10.5.2.0-24" || m.Problems()["10.5.3.0-24"] != "no way to it" {
		t.Errorf("peers %s, problems %v", peersOf(m), m.Problems())
	}
}

// TestUnreadableRecordIsNeverARemoval: invariant 3.
func TestUnreadableRecordIsNeverARemoval(t *testing.T) {
	m := newTestMirror(t, "ipv4")
	m.Apply(noon, whole(peerLease(2), peerLease(3)))
	bad := []BadRecord{{"10.5.3.0-24", "junk"}, {"junk", "key is no subnet"}}
	for _, c := range []Change{{Revision: 11, Bad: bad}, {Whole: true, Revision: 12, Leases: []Lease{peerLease(2)}, Bad: bad}} {
		if d := m.Apply(noon, c); len(d) != 0 {
			t.Errorf("%+v: deltas %v", c, d)
		}
		if got := peersOf(m); got != "10.5.2.0-24 10.5.3.0-24" || len(m.Problems()) != 2 {
			t.Errorf("peers %s, problems %v", got, m.Problems())
		}
	}
	m.Apply(noon, Change{Revision: 13, Gone: []string{"10.5.3.0-24", "junk"}})
	if peersOf(m) != "10.5.2.0-24" || len(m.Problems()) != 0 {
		t.Errorf("after the keys are gone: peers %s, problems %v", peersOf(m), m.Problems())
	}
}

func TestMirrorGivesTheNextInLineWhatAnOlderLeaseLetsGo(t *testing.T) {
	m := newTestMirror(t, "ipv4")
	rival := peerLease(3)
	rival.Endpoints[V4].MAC = peerLease(2).Endpoints[V4].MAC
	m.Apply(noon, whole(peerLease(2), rival))
	d := m.Apply(noon, Change{Revision: 11, Gone: []string{"10.5.2.0-24"}})
	if len(d) != 2 || d[0].Before.Node != "node2" || d[0].After.Node != "" || d[1].After.Node != "node3" {
		t.Errorf("deltas %+v", d)
	}
	if len(m.Problems()) != 0 {
		t.Errorf("problems %v", m.Problems())
	}
}

func TestMirrorKeepsOwnLeaseAndReservationsApart(t *testing.T) {
	m := newTestMirror(t, "ipv4")
	reserved := Lease{Subnets: Subnets{netip.MustParsePrefix("10.5.9.0/24")}, Node: "node9"}
	m.Apply(noon, whole(peerLease(1), peerLease(2), reserved))
	if peersOf(m) != "10.5.2.0-24" || len(m.Problems()) != 0 {
		t.Errorf("peers %s, problems %v", peersOf(m), m.Problems())
	}
	if own, ok := m.Own(); !ok || own.Node != "node1" {
		t.Errorf("own %v", own)
	}
}

// TestMirrorIsAFunctionOfTheRecords: whatever the order and the steps in which
// records came, mirrors that hold the same records agree on peers and problems,
// and the deltas given on the way add up to the peers.
func TestMirrorIsAFunctionOfTheRecords(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 1))
		m, sum := newTestMirror(t, "dual"), map[Subnets]Lease{}
		now := map[string]Lease{}
		for step := range 60 {
			l := randomLease(r)
			c := Change{Revision: int64(step), Leases: []Lease{l}}
			now[l.Subnets.Key()] = l
			switch r.IntN(5) {
			case 0:
				c = Change{Revision: int64(step), Gone: []string{l.Subnets.Key()}}
				delete(now, l.Subnets.Key())
			case 1:
				c.Whole, c.Leases = true, nil
				for _, l := range now {
					c.Leases = append(c.Leases, l)
				}
			}
			for _, d := range m.Apply(noon, c) {
				if !sum[subnetsOf(d)].SameContent(d.Before) {
					t.Fatalf("seed %d step %d: before is %+v, was told %+v", seed, step, d.Before, sum[subnetsOf(d)])
				}
				sum[subnetsOf(d)] = d.After
			}
		}
		fresh := newTestMirror(t, "dual")
		var all []Lease
		for _, l := range now {
			all = append(all, l)
		}
		fresh.Apply(noon, whole(all...))
		if peersOf(m) != peersOf(fresh) || fmt.Sprint(m.Problems()) != fmt.Sprint(fresh.Problems()) {
			t.Fatalf("seed %d:\n%s\n%s\n%v\n%v", seed, peersOf(m), peersOf(fresh), m.Problems(), fresh.Problems())
		}
		peers := m.Peers()
		for s, l := range sum {
			if has := slices.ContainsFunc(peers, func(p Lease) bool { return p.Subnets == s && p.SameContent(l) }); has != (l.Subnets == s) {
				t.Fatalf("seed %d: deltas say %+v, peers say otherwise", seed, l)
			}
		}
	}
}

// randomLease draws from few values, so that leases clash.
func randomLease(r *rand.Rand) Lease {
	l := peerLease(1 + r.IntN(6))
	l.Node = fmt.Sprint("node", 1+r.IntN(6))
	l.Created = int64(r.IntN(4))
	if r.IntN(2) == 0 {
		l.Subnets[V6] = netip.MustParsePrefix(fmt.Sprintf("fd00:10:5:%d::/64", 1+r.IntN(4)))
		l.Endpoints[V6] = Endpoint{netip.MustParseAddr(fmt.Sprintf("fd99::%d", 1+r.IntN(4))), 1, MAC{2, 6, 0, 0, 0, byte(r.IntN(4))}, false}
	}
	if r.IntN(4) == 0 {
		l.Endpoints[V4].MAC = MAC{2, 0, 0, 0, 0, byte(r.IntN(6))}
	}
	return l
}

// manyPeers is a listing of n peers.
func manyPeers(n int) Change {
	c := Change{Whole: true, Epoch: "one", Revision: int64(n)}
	for i := range n {
		l := peerLease(2)
		l.Node, l.Created, l.ID = fmt.Sprintf("node-%06d", i), int64(i), 1
		l.Subnets[V4] = addrPrefix(i)
		l.Endpoints[V4] = Endpoint{netip.MustParseAddr("192.0.2.2"), 1, MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}, false}
		c.Leases = append(c.Leases, l)
	}
	return c
}

// TestMirrorIsSmall: it has tens of thousands of leases.
func TestMirrorIsSmall(t *testing.T) {
	const peers = 60_000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	m := NewMirror(mustConfig(t, `{"Network":"10.0.0.0/8"}`), Identity{Node: "node1"}, nil)
	if n := len(m.Apply(noon, manyPeers(peers))); n != peers {
		t.Fatalf("%d peers", n)
	}
	per := (heap() - before) / peers
	t.Logf("%d bytes per peer", per)
	if per > 230 {
		t.Errorf("a peer takes %d bytes", per)
	}
	runtime.KeepAlive(m)
}

// TestOneChangeCostsTheSameAmongMany counts what it allocates.
func TestOneChangeCostsTheSameAmongMany(t *testing.T) {
	cost := func(peers int) float64 {
		m := NewMirror(mustConfig(t, `{"Network":"10.0.0.0/8"}`), Identity{Node: "node1"}, nil)
		m.Apply(noon, manyPeers(peers))
		l := manyPeers(peers + 1).Leases[peers]
		return testing.AllocsPerRun(100, func() {
			m.Apply(noon, Change{Revision: 1, Leases: []Lease{l}})
			m.Apply(noon, Change{Revision: 1, Gone: []string{l.Subnets.Key()}})
		})
	}
	if few, many := cost(100), cost(20_000); many > few {
		t.Errorf("%v allocations among 100 peers, %v among 20,000", few, many)
	}
}

// TestListingAgainMakesNothing for each lease, such as the text of its key: that is
// what a restart waits for.
func TestListingAgainMakesNothing(t *testing.T) {
	const peers = 5000
	m := NewMirror(mustConfig(t, `{"Network":"10.0.0.0/8"}`), Identity{Node: "node1"}, nil)
	c := manyPeers(peers)
	for i := range c.Leases { // A key that is too long for the stack.
		c.Leases[i].Subnets[V6] = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x11, 0x11, 0x11, 0x22, 0x22, 0x11 + byte(i>>8), byte(i)}), 64)
	}
	m.Apply(noon, c)
	if n := testing.AllocsPerRun(5, func() { m.Apply(noon, c) }); n > peers/10 {
		t.Errorf("%v allocations for %d leases that are as they were", n, peers)
	}
}

func BenchmarkMirror(b *testing.B) {
	const peers = 60_000
	listing := manyPeers(peers)
	cfg := mustConfig(b, `{"Network":"10.0.0.0/8"}`)
	b.Run("listing", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			NewMirror(cfg, Identity{Node: "node1"}, nil).Apply(noon, listing)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/peers, "ns/peer")
	})
	b.Run("one", func(b *testing.B) {
		m := NewMirror(cfg, Identity{Node: "node1"}, nil)
		m.Apply(noon, listing)
		l := manyPeers(peers + 1).Leases[peers]
		b.ReportAllocs()
		for b.Loop() {
			m.Apply(noon, Change{Revision: 1, Leases: []Lease{l}})
			m.Apply(noon, Change{Revision: 1, Gone: []string{l.Subnets.Key()}})
		}
	})
}

// TestMoveJudgesPeersAgain: by the node's addresses of now and what its backend says
// then, whatever was so before.
func TestMoveJudgesPeersAgain(t *testing.T) {
	refused := "10.99.0.2"
	m := NewMirror(mustConfig(t, modes["ipv4"]), Identity{Node: "node1", PublicIP: PerFamily[netip.Addr]{netip.MustParseAddr("10.99.0.1")}}, func(l Lease) error {
		if at := l.Endpoints[V4].PublicIP.String(); at == refused {
			return fmt.Errorf("%s is not on the link", at)
		}
		return nil
	})
	same, unnamed, twin := peerLease(5), peerLease(6), peerLease(7)
	same.Endpoints[V4].PublicIP = netip.MustParseAddr("10.99.0.1")
	unnamed.Node = ""
	twin.Endpoints[V4].MAC = peerLease(3).Endpoints[V4].MAC // Of an older lease.
	m.Apply(noon, whole(peerLease(2), peerLease(3), peerLease(4), same, unnamed, twin))
	if got := peersOf(m); got != "10.5.3.0-24 10.5.4.0-24 10.5.6.0-24" {
		t.Fatalf("peers are %s", got)
	}
	for _, step := range []struct{ refused, own, peers, deltas string }{
		{"10.99.0.2", "10.99.0.1", "10.5.3.0-24 10.5.4.0-24 10.5.6.0-24", ""},
		{"10.99.0.3", "10.99.0.1", "10.5.2.0-24 10.5.4.0-24 10.5.6.0-24 10.5.7.0-24", "+10.5.2.0-24 -10.5.3.0-24 +10.5.7.0-24"},
		{"10.99.0.3", "10.99.0.4", "10.5.2.0-24 10.5.5.0-24 10.5.6.0-24 10.5.7.0-24", "-10.5.4.0-24 +10.5.5.0-24"},
		{"", "10.99.0.6", "10.5.2.0-24 10.5.3.0-24 10.5.4.0-24 10.5.5.0-24", "+10.5.3.0-24 +10.5.4.0-24 -10.5.6.0-24 -10.5.7.0-24"},
		{"10.99.0.2", "10.99.0.1", "10.5.3.0-24 10.5.4.0-24 10.5.6.0-24", "-10.5.2.0-24 -10.5.5.0-24 +10.5.6.0-24"},
	} {
		refused = step.refused
		var got []string
		for _, d := range m.Move(Identity{Node: "node1", PublicIP: PerFamily[netip.Addr]{netip.MustParseAddr(step.own)}}) {
			switch {
			case d.Before.Subnets == Subnets{}:
				got = append(got, "+"+d.After.Subnets.Key())
			case d.After.Subnets == Subnets{}:
				got = append(got, "-"+d.Before.Subnets.Key())
			default:
				t.Errorf("changed: %+v", d)
			}
		}
		if text := strings.Join(got, " "); text != step.deltas || peersOf(m) != step.peers || m.Count() != len(strings.Fields(step.peers)) {
			t.Errorf("at %s: %s, and peers are %s (%d)", step.own, text, peersOf(m), m.Count())
		}
		fresh := NewMirror(mustConfig(t, modes["ipv4"]), Identity{Node: "node1", PublicIP: PerFamily[netip.Addr]{netip.MustParseAddr(step.own)}}, m.check)
		fresh.Apply(noon, whole(peerLease(2), peerLease(3), peerLease(4), same, unnamed, twin))
		if peersOf(fresh) != peersOf(m) || fmt.Sprint(fresh.Problems()) != fmt.Sprint(m.Problems()) {
			t.Errorf("at %s: one that begins there has %s %v, this %s %v", step.own, peersOf(fresh), fresh.Problems(), peersOf(m), m.Problems())
		}
	}
}
