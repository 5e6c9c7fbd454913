package subnet

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestNewsOfProblemsIsAllOfIt: who looks only at what is new knows as much as who
// looks at all.
func TestNewsOfProblemsIsAllOfIt(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		m := newTestMirror(t, "dual")
		now, bad := map[string]Lease{}, map[string]string{}
		known, unread := map[string]string{}, []Subnets(nil)
		for step := range 60 {
			l := randomLease(r)
			key := l.Subnets.Key()
			c := Change{Revision: int64(step)}
			delete(now, key)
			delete(bad, key)
			switch r.IntN(6) {
			case 0:
				c.Gone = []string{key}
			case 1:
				bad[key] = fmt.Sprint("junk ", r.IntN(2))
				c.Bad = []BadRecord{{key, bad[key]}}
			case 2:
				c.Whole, c.Leases = true, slices.Collect(maps.Values(now))
				for key, why := range bad {
					c.Bad = append(c.Bad, BadRecord{key, why})
				}
			default:
				now[key] = l
				c.Leases = []Lease{l}
			}
			m.Apply(noon, c)
			if m.NewUnread() {
				unread = m.Unread()
			}
			for _, key := range m.NewProblems() {
				if known[key] = m.Problem(key); known[key] == "" {
					delete(known, key)
				}
			}
			if !maps.Equal(known, m.Problems()) || !slices.Equal(unread, m.Unread()) {
				t.Fatalf("seed %d step %d: %+v\ntold %v, it is %v\nunread %v, it is %v", seed, step, c, known, m.Problems(), unread, m.Unread())
			}
		}
	}
}
