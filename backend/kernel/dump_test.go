package kernel

import (
	"testing"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// TestDumpAllocatesLittle: nothing for each entry, but what holds them all as it
// grows.
func TestDumpAllocatesLittle(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			const entries = 4 * 5000
			k := openAt(t, kerneltest.Namespace(t))
			reach(t, k, peers(entries/4, v6))
			allocs := testing.AllocsPerRun(3, func() {
				if _, err := k.Dump(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			t.Logf("%.0f allocations for %d entries", allocs, entries)
			if allocs > entries/10 {
				t.Errorf("a dump of %d entries makes %.0f allocations", entries, allocs)
			}
			reach(t, k, &backend.State{})
		})
	}
}
