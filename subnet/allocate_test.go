package subnet

import (
	"fmt"
	"testing"
)

func TestSeededOrderVisitsEachSubnetOnce(t *testing.T) {
	for _, n := range []uint64{1, 2, 3, 4, 6, 12, 50, 255, 256, 1000, 65535, 65536} {
		for _, seed := range []string{"node-a", "node-b", ""} {
			seen := make([]bool, n)
			count := uint64(0)
			for i := range seededOrder(seed, n) {
				if i >= n || seen[i] {
					t.Fatalf("n=%d seed=%q: %d is out of range or came twice", n, seed, i)
				}
				seen[i] = true
				count++
			}
			if count != n {
				t.Errorf("n=%d seed=%q: %d visited", n, seed, count)
			}
		}
	}
}

func TestSeededOrderIsTheNodesOwn(t *testing.T) {
	const n, nodes = 65536, 1000
	first := map[uint64]int{}
	for node := range nodes {
		for i := range seededOrder(fmt.Sprint("node", node), n) {
			first[i]++
			break
		}
	}
	// A thousand nodes in 65,536 places: about 8 pairs meet by chance.
	if met := nodes - len(first); met > 30 {
		t.Errorf("%d of %d nodes look first where another does", met, nodes)
	}
	for range 2 {
		for i := range seededOrder("node-a", n) {
			for j := range seededOrder("node-a", n) {
				if i != j {
					t.Errorf("the same node begins at %d and at %d", i, j)
				}
				break
			}
			break
		}
	}
}

func TestSeededOrderOfAHugeRange(t *testing.T) {
	count := 0
	for i := range seededOrder("node-a", 1<<62) {
		if i >= 1<<62 {
			t.Fatalf("%d is out of range", i)
		}
		if count++; count == 1000 {
			break
		}
	}
}
