package subnet

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestHistoryTellsAnotherStore: a listing that contradicts what was told is of a
// store with another history, though epoch and revision fit.
func TestHistoryTellsAnotherStore(t *testing.T) {
	written := func(n int, created, modified int64) Lease {
		l := peerLease(n)
		l.ID, l.Created, l.Modified = int64(100+n), created, modified
		return l
	}
	moved := func(l Lease, id int64) Lease { l.ID = id; return l }
	for name, tc := range map[string]struct {
		leases []Lease
		bad    []BadRecord
		want   bool
	}{
		"the same":                         {leases: []Lease{written(2, 2, 2), written(3, 3, 8)}},
		"none is left":                     {},
		"rewritten":                        {leases: []Lease{written(2, 2, 11)}},
		"made anew":                        {leases: []Lease{written(2, 11, 12)}},
		"moved to another lease":           {leases: []Lease{moved(written(2, 2, 11), 7)}},
		"a new one":                        {leases: []Lease{written(4, 11, 11)}},
		"cannot be read":                   {bad: []BadRecord{{"10.5.2.0-24", "junk"}}},
		"could not be read":                {leases: []Lease{written(5, 5, 7)}},
		"as it was before it was told":     {leases: []Lease{written(3, 3, 3)}, want: true},
		"another lease in the same write":  {leases: []Lease{moved(written(2, 2, 2), 7)}, want: true},
		"made before, but not as was told": {leases: []Lease{written(2, 3, 12)}, want: true},
		"there, though it was told gone":   {leases: []Lease{written(6, 6, 6)}, want: true},
		"and rewritten since":              {leases: []Lease{written(6, 6, 12)}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := newTestMirror(t, "ipv4")
			m.SetGrace(testGrace)
			m.Apply(noon, Change{Whole: true, Revision: 6, Epoch: "old", Leases: []Lease{written(2, 2, 2), written(3, 3, 3), written(6, 6, 6)}})
			m.Apply(noon, Change{Revision: 7, Bad: []BadRecord{{"10.5.5.0-24", "junk"}}})
			m.Apply(noon, Change{Revision: 8, Leases: []Lease{written(3, 3, 8)}})
			m.Apply(noon, Change{Revision: 9, Gone: []string{"10.5.6.0-24"}})
			m.Apply(noon, Change{Revision: 10})
			c := Change{Whole: true, Revision: 20, Epoch: "old", Leases: tc.leases, Bad: tc.bad}
			if got := m.different(c); got != tc.want {
				t.Fatalf("different %t, want %t", got, tc.want)
			}
			restored := newTestMirror(t, "ipv4")
			restored.SetGrace(testGrace)
			restored.Restore(m.Save())
			// What is no peer is not saved, so of others nothing is known then.
			want := tc.want && len(tc.leases) == 1 && tc.leases[0].Subnets != peerLease(6).Subnets
			if got := restored.different(c); got != want {
				t.Errorf("after a restart: different %t, want %t", got, want)
			}
			m.Apply(noon, c)
			if held := m.Holds().Now; (held > 0) != tc.want {
				t.Errorf("%d peers are held", held)
			}
		})
	}
}

// TestOneHistoryIsNoOtherStore: whatever happened to the records, and whichever
// part of it was told by a listing, a store is never taken for another.
func TestOneHistoryIsNoOtherStore(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 5))
		m, records, bad := newTestMirror(t, "ipv4"), map[Subnets]Lease{}, map[Subnets]bool{}
		told := false
		for revision := int64(1); revision < 100; revision++ {
			l := peerLease(1 + r.IntN(8))
			s := l.Subnets
			l.ID, l.Created, l.Modified = int64(r.IntN(5)), revision, revision
			if old, ok := records[s]; ok {
				l.Created = old.Created
			}
			c := Change{Revision: revision}
			switch delete(bad, s); r.IntN(4) {
			case 0:
				c.Gone = []string{s.Key()}
				delete(records, s)
			case 1:
				c.Bad = []BadRecord{{s.Key(), "junk"}}
				records[s], bad[s] = l, true
			default:
				c.Leases = []Lease{l}
				records[s] = l
			}
			if !told || r.IntN(5) == 0 {
				for range r.IntN(3) { // What nobody watches has revisions too.
					revision++
				}
				c = Change{Whole: true, Revision: revision}
				for _, l := range slices.Collect(maps.Values(records)) {
					if bad[l.Subnets] {
						c.Bad = append(c.Bad, BadRecord{l.Subnets.Key(), "junk"})
					} else {
						c.Leases = append(c.Leases, l)
					}
				}
				if m.different(c) {
					t.Fatalf("seed %d, revision %d: %+v", seed, revision, c)
				}
			} else if r.IntN(5) == 0 {
				told = false // The watch is lost, and this is not told.
				continue
			}
			told = true
			m.Apply(noon, c)
			if r.IntN(10) == 0 {
				again := newTestMirror(t, "ipv4")
				again.Restore(m.Save())
				m, told = again, false
				if r.IntN(2) == 0 {
					clear(bad) // Another version of the program reads them all.
				}
			}
		}
	}
}
