package subnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

const testGrace = 5 * time.Minute

// twelve is a mirror with peers 2 to 13, all from a store of epoch "old".
func twelve(t *testing.T, grace time.Duration) *Mirror {
	t.Helper()
	m := newTestMirror(t, "ipv4")
	m.SetGrace(grace)
	c := whole()
	c.Epoch = "old"
	for n := 2; n <= 13; n++ {
		c.Leases = append(c.Leases, peerLease(n))
	}
	if d := m.Apply(noon, c); len(d) != 12 {
		t.Fatalf("deltas %v", d)
	}
	return m
}

func other(leases ...Lease) Change {
	return Change{Whole: true, Revision: 3, Epoch: "new", Leases: leases}
}

func alive() Change { return Change{Revision: 10} }

// pass lets time go by as it does where the store is heard.
func pass(m *Mirror, from time.Time, d time.Duration) (time.Time, []Delta) {
	var all []Delta
	for end := from.Add(d); from.Before(end); {
		from = from.Add(30 * time.Second)
		all = append(all, m.Apply(from, alive())...)
	}
	return from, all
}

func wantHolds(t *testing.T, m *Mirror, want Holds) {
	t.Helper()
	if got := m.Holds(); got != want {
		t.Errorf("holds %+v, want %+v", got, want)
	}
}

// TestInvariant4DifferentStoreRemovesNoPeerAtOnce: a store that comes back
// different holds the peers for the grace time.
func TestInvariant4DifferentStoreRemovesNoPeerAtOnce(t *testing.T) {
	back := alive()
	back.Whole, back.Epoch, back.Revision = true, "old", 9
	doubted := back
	doubted.Revision, doubted.Different = 11, true
	for name, c := range map[string]Change{"another epoch": other(), "no epoch": {Whole: true, Revision: 11}, "a revision that went back": back, "the store's own word": doubted} {
		t.Run(name, func(t *testing.T) {
			m := twelve(t, testGrace)
			before := peersOf(m)
			if d := m.Apply(noon, c); len(d) != 0 || peersOf(m) != before {
				t.Fatalf("deltas %v, peers %s", d, peersOf(m))
			}
			wantHolds(t, m, Holds{Now: 12})
			at, d := pass(m, noon, testGrace-time.Second-30*time.Second)
			if len(d) != 0 {
				t.Fatalf("before the end: %v", d)
			}
			if _, d = pass(m, at, time.Minute); len(d) != 12 || peersOf(m) != "" {
				t.Errorf("at the end: %d deltas, peers %s", len(d), peersOf(m))
			}
			wantHolds(t, m, Holds{Expired: 12})
			if m.peers != 0 {
				t.Errorf("%d peers are counted", m.peers)
			}
		})
	}
}

func TestNoGraceTakesTheStoreAtItsWord(t *testing.T) {
	m := twelve(t, 0)
	if d := m.Apply(noon, other(peerLease(2))); len(d) != 11 || peersOf(m) != "10.5.2.0-24" {
		t.Errorf("deltas %v", d)
	}
}

func TestHoldEndsWhenTheRecordIsBack(t *testing.T) {
	m := twelve(t, testGrace)
	m.Apply(noon, other())
	same, moved := peerLease(2), peerLease(3)
	same.Created, moved.Created = 4, 5
	moved.Endpoints[V4].PublicIP = peerLease(99).Endpoints[V4].PublicIP
	if d := m.Apply(noon, Change{Revision: 4, Leases: []Lease{same}}); len(d) != 0 {
		t.Errorf("the same again: %v", d)
	}
	if d := m.Apply(noon, Change{Revision: 5, Leases: []Lease{moved}}); len(d) != 1 || d[0].After != moved {
		t.Errorf("the same elsewhere: %v", d)
	}
	wantHolds(t, m, Holds{Now: 10, Returned: 2})
	// Its removal is an ordinary one by now.
	if d := m.Apply(noon, Change{Revision: 6, Gone: []string{"10.5.2.0-24"}}); len(d) != 1 {
		t.Errorf("the removal: %v", d)
	}
	// A record that cannot be read leaves the lease as it was, while it is there.
	m.Apply(noon, Change{Revision: 7, Bad: []BadRecord{{"10.5.4.0-24", "junk"}}})
	pass(m, noon, 2*testGrace)
	if got := peersOf(m); got != "10.5.3.0-24 10.5.4.0-24" {
		t.Errorf("after the grace: %s", got)
	}
	wantHolds(t, m, Holds{Returned: 3, Expired: 9})
}

func TestHoldGivesWayToSomebodysValidRecord(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Lease)
		left   bool
	}{
		"its subnet": {func(l *Lease) { *l = peerLease(2); l.Node = "node50"; l.Endpoints[V4].MAC[0] = 0x52 }, true},
		"its MAC":    {func(l *Lease) { l.Endpoints[V4].MAC = peerLease(2).Endpoints[V4].MAC }, false},
		"its MAC on another subnet of its own": {func(l *Lease) {
			l.Node, l.Endpoints = "node2", peerLease(2).Endpoints
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m := twelve(t, testGrace)
			rival := peerLease(50)
			tc.change(&rival)
			rival.Created = 1000 // Younger than what it displaces.
			broken := rival
			broken.Endpoints[V4].PublicIP = Endpoint{}.PublicIP
			if broken.Subnets != peerLease(2).Subnets {
				m.Apply(noon, other(broken))
				wantHolds(t, m, Holds{Now: 12})
			} else {
				m.Apply(noon, other())
			}
			m.Apply(noon, Change{Revision: 4, Leases: []Lease{rival}})
			if !slices.ContainsFunc(m.Peers(), func(l Lease) bool { return l == rival }) {
				t.Errorf("the rival is no peer: %v, %v", m.Peers(), m.Problems())
			}
			if has := strings.Contains(peersOf(m), "10.5.2.0-24"); has != tc.left || m.Holds().Now != 11 {
				t.Errorf("peers %s, holds %+v", peersOf(m), m.Holds())
			}
		})
	}
	t.Run("this node's own", func(t *testing.T) {
		m := twelve(t, testGrace)
		own := peerLease(2)
		own.Node = "node1"
		m.Apply(noon, other(own))
		if strings.Contains(peersOf(m), "10.5.2.0-24") {
			t.Errorf("peers %s", peersOf(m))
		}
	})
}

func TestMostPeersGoneAtOnceAreHeld(t *testing.T) {
	keys := func(from, to int) (out []string) {
		for n := from; n <= to; n++ {
			out = append(out, peerLease(n).Subnets.Key())
		}
		return out
	}
	for name, tc := range map[string]struct {
		first, then []string
		held        int
	}{
		"one":                     {nil, keys(2, 2), 0},
		"half":                    {nil, keys(2, 7), 0},
		"more than half":          {nil, keys(2, 8), 7},
		"all":                     {nil, keys(2, 13), 12},
		"more than half of ten":   {keys(2, 3), keys(4, 9), 6},
		"all of nine":             {keys(2, 4), keys(5, 13), 0},
		"and one more afterwards": {keys(2, 9), keys(10, 10), 8},
	} {
		t.Run(name, func(t *testing.T) {
			m := twelve(t, testGrace)
			m.Apply(noon, Change{Revision: 11, Gone: tc.first})
			m.Apply(noon, Change{Revision: 12, Gone: tc.then})
			wantHolds(t, m, Holds{Now: tc.held})
			m = twelve(t, testGrace)
			for _, gone := range [][]string{tc.first, tc.then} {
				c := Change{Whole: true, Revision: 12, Epoch: "old"}
				for _, p := range m.Peers() {
					if key := p.Subnets.Key(); !slices.Contains(gone, key) && !slices.Contains(tc.first, key) {
						c.Leases = append(c.Leases, p)
					}
				}
				m.Apply(noon, c)
			}
			wantHolds(t, m, Holds{Now: tc.held})
		})
	}
}

// TestHoldOutlivesAnotherListing: what is held lacks in every listing.
func TestHoldOutlivesAnotherListing(t *testing.T) {
	m := twelve(t, testGrace)
	m.Apply(noon, other(peerLease(2)))
	at, _ := pass(m, noon, 4*time.Minute)
	c := other(peerLease(2))
	c.Revision = 20
	m.Apply(at, c)
	wantHolds(t, m, Holds{Now: 11})
	// Yet another store: the time begins anew, for everybody.
	c.Epoch = "newer"
	m.Apply(at, c)
	if at, _ = pass(m, at, 4*time.Minute); m.Holds().Now != 11 {
		t.Errorf("holds %+v", m.Holds())
	}
	pass(m, at, time.Minute)
	wantHolds(t, m, Holds{Expired: 11})
}

// TestStoreAwayDoesNotCountAsGrace: nobody can claim meanwhile.
func TestStoreAwayDoesNotCountAsGrace(t *testing.T) {
	m := twelve(t, testGrace)
	m.Apply(noon, other())
	at, _ := pass(m, noon, 4*time.Minute)
	at = at.Add(time.Hour)
	if d := m.Apply(at, alive()); len(d) != 0 {
		t.Errorf("after the hour: %v", d)
	}
	pass(m, at, time.Minute)
	wantHolds(t, m, Holds{Expired: 12})
}

func TestRestoredMirrorGoesOn(t *testing.T) {
	old := twelve(t, testGrace)
	old.Apply(noon, other(peerLease(2), peerLease(3), peerLease(4), peerLease(5)))
	restore := func() *Mirror {
		m := newTestMirror(t, "ipv4")
		m.SetGrace(testGrace)
		epoch, rev, peers := old.Save()
		m.Restore(epoch, rev, peers)
		if peersOf(m) != peersOf(old) || m.Holds() != old.Holds() || m.peers != 12 {
			t.Fatalf("peers %s, holds %+v", peersOf(m), m.Holds())
		}
		return m
	}
	later := noon.Add(24 * time.Hour)
	t.Run("with the same store", func(t *testing.T) {
		m := restore()
		c := other(peerLease(2), peerLease(3), peerLease(4))
		c.Revision = 50
		d := m.Apply(later, c) // One left while nobody looked; the held are held.
		if len(d) != 1 || d[0].Before.Node != "node5" {
			t.Errorf("deltas %v", d)
		}
		wantHolds(t, m, Holds{Now: 8})
		if later, _ := pass(m, later, 4*time.Minute); m.Holds().Now != 8 {
			t.Errorf("holds %+v", m.Holds())
		} else {
			pass(m, later, 2*time.Minute)
		}
		wantHolds(t, m, Holds{Expired: 8})
	})
	t.Run("with another store", func(t *testing.T) {
		m := restore()
		c := other()
		c.Epoch = "newer"
		if d := m.Apply(later, c); len(d) != 0 {
			t.Errorf("deltas %v", d)
		}
		wantHolds(t, m, Holds{Now: 12})
	})
}

// TestAfterTheGracePeersAreAFreshMirrors: whatever came in whatever order, once
// the grace is over nothing is left of it, and the deltas add up to the peers.
func TestAfterTheGracePeersAreAFreshMirrors(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		m, sum := newTestMirror(t, "dual"), map[Subnets]Lease{}
		m.SetGrace(testGrace)
		now, at, epoch := map[string]Lease{}, noon, 0
		apply := func(c Change) {
			c.Epoch = fmt.Sprint(epoch)
			for _, d := range m.Apply(at, c) {
				if !sum[subnetsOf(d)].SameContent(d.Before) {
					t.Fatalf("seed %d: before is %+v, was told %+v", seed, d.Before, sum[subnetsOf(d)])
				}
				sum[subnetsOf(d)] = d.After
			}
			if n := len(m.Peers()); m.peers != n {
				t.Fatalf("seed %d: %d peers are counted, there are %d", seed, m.peers, n)
			}
		}
		for step := range 80 {
			l := randomLease(r)
			c := Change{Revision: int64(step), Leases: []Lease{l}}
			now[l.Subnets.Key()] = l
			switch r.IntN(8) {
			case 0:
				c = Change{Revision: int64(step), Gone: []string{l.Subnets.Key()}}
				delete(now, l.Subnets.Key())
			case 1: // Everything, or what another store has of it.
				c.Whole, c.Leases = true, nil
				if r.IntN(2) == 0 {
					epoch++
					for key := range now {
						if r.IntN(2) == 0 {
							delete(now, key)
						}
					}
				}
				for _, l := range now {
					c.Leases = append(c.Leases, l)
				}
			case 2:
				at = at.Add(time.Duration(r.IntN(int(6 * time.Minute))))
			}
			apply(c)
		}
		for range 12 {
			at = at.Add(30 * time.Second)
			apply(Change{Revision: 80})
		}
		fresh := newTestMirror(t, "dual")
		var all []Lease
		for _, l := range now {
			all = append(all, l)
		}
		fresh.Apply(noon, whole(all...))
		if peersOf(m) != peersOf(fresh) || fmt.Sprint(m.Problems()) != fmt.Sprint(fresh.Problems()) || m.Holds().Now != 0 {
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

// BenchmarkReturn is the coming back of 60,000 peers, one by one, after all were
// held: what is still held may not be looked at for each.
func BenchmarkReturn(b *testing.B) {
	const peers = 60_000
	var c Change
	for n := range peers {
		l := peerLease(2)
		l.Node = fmt.Sprint("node", n+2)
		l.Subnets[V4] = addrPrefix(n)
		l.Endpoints[V4] = Endpoint{netip.AddrFrom4([4]byte{192, byte(n >> 16), byte(n >> 8), byte(n)}), 1, MAC{2, 0, 0, byte(n >> 16), byte(n >> 8), byte(n)}, false}
		c.Leases = append(c.Leases, l)
	}
	c.Whole, c.Epoch = true, "old"
	for b.Loop() {
		m := NewMirror(mustConfig(b, `{"Network":"10.0.0.0/8"}`), Identity{Node: "node1"}, nil)
		m.SetGrace(testGrace)
		m.Apply(noon, c)
		m.Apply(noon, other())
		if m.Holds().Now != peers {
			b.Fatal(m.Holds())
		}
		for _, l := range c.Leases {
			m.Apply(noon, Change{Revision: 4, Leases: []Lease{l}})
		}
		if m.Holds().Returned != peers {
			b.Fatal(m.Holds())
		}
	}
}

func addrPrefix(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + n>>8), byte(n), 0}), 24)
}

// subnetsOf is the lease that a delta is about.
func subnetsOf(d Delta) Subnets {
	if d.After.Subnets == (Subnets{}) {
		return d.Before.Subnets
	}
	return d.After.Subnets
}
