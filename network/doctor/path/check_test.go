package path

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

func peersOf(n int) []subnet.Lease {
	var out []subnet.Lease
	for i := range n {
		var l subnet.Lease
		l.Node = fmt.Sprintf("node%d", i)
		l.Subnets[subnet.V4] = netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", i))
		l.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i))
		out = append(out, l)
	}
	return out
}

// TestPeersAreFoundByWhatPeopleKnow: by name, by public address, by a pod's.
func TestPeersAreFoundByWhatPeopleKnow(t *testing.T) {
	chosen, absent := choose(Choice{Peers: []string{"node2", "10.0.0.3", "10.5.4.77", "node9", "10.9.9.9"}}, slices.Values(peersOf(6)), silentBy(nil), "the store")
	var names []string
	for _, l := range chosen {
		names = append(names, l.Node)
	}
	if !slices.Equal(names, []string{"node2", "node3", "node4"}) {
		t.Errorf("chose %v", names)
	}
	if len(absent) != 2 || absent[0].Peer != "node9" || absent[1].Peer != "10.9.9.9" || absent[0].Severity != doctor.Failure {
		t.Errorf("absent %+v", absent)
	}
}

// TestSomeAreAnyPeers: those taken at random are different ones, none is asked for, and
// none is left out for ever.
func TestSomeAreAnyPeers(t *testing.T) {
	times := map[string]int{}
	for range 600 {
		chosen, _ := choose(Choice{Peers: []string{"node0"}, Some: 3}, slices.Values(peersOf(9)), silentBy(nil), "the store")
		seen := map[string]bool{}
		for _, l := range chosen {
			seen[l.Node] = true
			times[l.Node]++
		}
		if len(seen) != 4 || chosen[0].Node != "node0" {
			t.Fatalf("chose %v", chosen)
		}
	}
	for _, l := range peersOf(9)[1:] {
		if n := times[l.Node]; n < 150 || n > 300 { // 225 of 600 on average.
			t.Errorf("%s was chosen %d times of 600", l.Node, n)
		}
	}
	if few, _ := choose(Choice{Some: 5}, slices.Values(peersOf(2)), silentBy(nil), ""); len(few) != 2 {
		t.Errorf("chose %d of 2", len(few))
	}
}

// TestSilentPeersComeFirst: those that do not answer the daemon's probing are looked at
// before any other; there may be more of them than are looked at, or fewer.
func TestSilentPeersComeFirst(t *testing.T) {
	peers := peersOf(40)
	silent := func(nodes ...int) *status.Status {
		var s status.Status
		for _, n := range nodes {
			for _, layer := range []string{"underlay", "overlay"} {
				s.Probing.Silent = append(s.Probing.Silent, status.SilentPeer{Node: peers[n].Node, Subnets: []netip.Prefix{peers[n].Subnets[subnet.V4]}, Layer: layer})
			}
		}
		return &s
	}
	others := map[string]int{}
	for range 400 {
		chosen, _ := choose(Choice{Peers: []string{"node7"}, Some: 3}, slices.Values(peers), silentBy(silent(31, 38)), "the store")
		names := map[string]bool{}
		for _, l := range chosen {
			names[l.Node] = true
		}
		if len(names) != 4 || !names["node7"] || !names["node31"] || !names["node38"] {
			t.Fatalf("chose %v", names)
		}
		others[chosen[3].Node]++
		if chosen, _ = choose(Choice{Some: 3}, slices.Values(peers), silentBy(silent(1, 5, 9, 30, 35)), "the store"); len(chosen) != 3 {
			t.Fatalf("chose %d", len(chosen))
		}
		for _, l := range chosen {
			if !slices.Contains([]string{"node1", "node5", "node9", "node30", "node35"}, l.Node) {
				t.Fatalf("chose %s, and others are silent", l.Node)
			}
		}
	}
	// Each of 37 has 11 of 400 on average.
	if len(others) < 30 || others["node0"] > 60 || others["node39"] > 60 {
		t.Errorf("beside silent ones were chosen %v", others)
	}
}

// lives is a store that knows who lives, and counts who asks.
type lives struct {
	doctor.Store
	alive map[string]bool
	err   error
	asked int
}

func (l *lives) Alive(_ context.Context, nodes []string) (map[string]bool, error) {
	l.asked++
	return l.alive, l.err
}

// TestStoreIsAskedOnceWhoLives, of however many peers.
func TestStoreIsAskedOnceWhoLives(t *testing.T) {
	peers := peersOf(40)
	flannel := peersOf(41)[40]
	flannel.Node = ""
	l := &lives{alive: map[string]bool{"node3": true}}
	of := livesOf(t.Context(), doctor.Sources{Store: l}, append(peers, flannel))
	if of(peers[3]) != Living || of(peers[4]) != NoSign || of(flannel) != LifeUnknown {
		t.Errorf("%v %v %v", of(peers[3]), of(peers[4]), of(flannel))
	}
	if l.asked != 1 {
		t.Errorf("the store was asked %d times", l.asked)
	}
	l.err = errors.New("it is away")
	if of := livesOf(t.Context(), doctor.Sources{Store: l}, peers); of(peers[3]) != LifeUnknown {
		t.Errorf("of a store that does not answer: %v", of(peers[3]))
	}
}
