package backend

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
)

// anyEntry draws an entry of any form, of a universe so small that identities clash.
func anyEntry(r *rand.Rand) Entry {
	dev := []string{"ripstop.1", "ripstop-v6.1", ""}[min(r.IntN(7)/3, 2)]
	addrs := []netip.Addr{
		netip.MustParseAddr("10.5.1.0"), netip.MustParseAddr("10.5.2.0"), netip.MustParseAddr("fd00:5::"),
		netip.MustParseAddr("::ffff:10.5.1.0"), netip.MustParseAddr("::"), {},
	}
	addr := addrs[r.IntN(len(addrs))]
	mac := []MAC{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}, {}, {1: 1}, {3}}[r.IntN(5)]
	stray := []uint32{0, 0, 7}[r.IntN(3)]
	switch r.IntN(6) {
	case 0:
		return Device{Name: dev, VNI: uint32(r.IntN(2))}
	case 1:
		return Address{Dev: dev, Prefix: netip.PrefixFrom(addr, 32)}
	case 2:
		return FDB{Dev: dev, MAC: mac, Remote: addr, Odd: []string{"", "", "port 1"}[r.IntN(3)]}
	case 3:
		return Neighbour{Dev: dev, IP: addr, MAC: mac}
	case 4:
		return Nexthop{Dev: dev, Gateway: addr, Stray: stray}
	default:
		dst := netip.PrefixFrom(addrs[r.IntN(5)], 24)
		return Route{Dst: dst, Table: uint32(r.IntN(3) / 2), TOS: uint8(r.IntN(3) / 2), Via: Nexthop{Dev: dev, Gateway: addr, Stray: stray}}
	}
}

// TestStateIsASetByIdentity compares a state with a map of the entries by
// identity, over entries of every form that a kernel could show.
func TestStateIsASetByIdentity(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		s, model := &State{}, map[Entry]Entry{}
		for range 300 {
			e := anyEntry(r)
			id := Identity(e)
			if r.IntN(3) == 0 {
				s.Drop(e)
				delete(model, id)
			} else {
				s.Put(e)
				model[id] = e
			}
			e = anyEntry(r)
			at, ok := s.At(e)
			if want, there := model[Identity(e)]; ok != there || ok && at != want || s.Has(e) != (there && want == e) {
				t.Fatalf("at %v: %v %v (has %v), want %v %v", e, at, ok, s.Has(e), want, there)
			}
		}
		if s.Len() != len(model) {
			t.Fatalf("%d entries, want %d", s.Len(), len(model))
		}
		var seen []Entry
		for e := range s.All() {
			seen = append(seen, e)
			if model[Identity(e)] != e {
				t.Fatalf("%v is not in the model", e)
			}
		}
		if len(seen) != len(model) {
			t.Fatalf("visited %d entries, want %d", len(seen), len(model))
		}
		checkCounts(t, s, slices.Collect(maps.Values(model)))
		c := s.Clone()
		if !c.Equal(s) || !s.Equal(NewState(seen...)) {
			t.Fatal("a copy is not equal")
		}
		for _, e := range seen {
			s.Drop(e)
		}
		if s.Len() != 0 || len(s.bearers) != 0 || len(s.users) != 0 || len(s.four.nexthops)+len(s.six.nexthops) != 0 || c.Len() != len(model) {
			t.Fatalf("something is left of %d: %s, %v, %v", len(model), s, s.bearers, s.users)
		}
	}
}

// checkCounts counts what uses what anew.
func checkCounts(t *testing.T, s *State, entries []Entry) {
	t.Helper()
	users := map[Nexthop]int{}
	for _, e := range entries {
		if r, ok := e.(Route); ok {
			users[r.Via]++
			if r.Via.Stray != 0 {
				users[r.Via.plain()]++
			}
		}
	}
	for _, e := range entries {
		switch e := e.(type) {
		case Nexthop:
			if got := s.usersOf(e); got != users[e] {
				t.Fatalf("%s has %d users, want %d", e, got, users[e])
			}
		case FDB:
			carries := slices.ContainsFunc(entries, func(n Entry) bool {
				nb, ok := n.(Neighbour)
				return ok && nb.Dev == e.Dev && nb.MAC == e.MAC && users[Nexthop{Dev: nb.Dev, Gateway: nb.IP}] > 0
			})
			if got := s.carries(e); got != carries {
				t.Fatalf("%s carries: %v, want %v", e, got, carries)
			}
		}
	}
}

// manyPeers is a state of n peers.
func manyPeers(n int) *State {
	s := &State{}
	for i := range n {
		base := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		mac, via := MAC{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)}, Nexthop{Dev: "ripstop.1", Gateway: base}
		s.Put(FDB{Dev: "ripstop.1", MAC: mac, Remote: base})
		s.Put(Neighbour{"ripstop.1", base, mac})
		s.Put(via)
		s.Put(Route{Dst: netip.PrefixFrom(base, 32), Via: via})
	}
	return s
}

// TestStateIsSmall: two of these are the larger part of a daemon's memory.
func TestStateIsSmall(t *testing.T) {
	const peers = 60_000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	s := manyPeers(peers)
	per := (heap() - before) / peers
	t.Logf("%d bytes per peer", per)
	if per > 200 {
		t.Errorf("a peer's four entries take %d bytes", per)
	}
	runtime.KeepAlive(s)
}

func BenchmarkState(b *testing.B) {
	for _, n := range []int{1000, 60_000} {
		b.Run(fmt.Sprint("fill/", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				manyPeers(n)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/peer")
		})
	}
}
