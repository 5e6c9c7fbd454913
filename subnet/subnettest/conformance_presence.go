package subnettest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// testLiving is the n-th node, n from 1 to 250.
func testLiving(n int) subnet.Living {
	return subnet.Living{
		Token: fmt.Sprint("token-", n), Node: fmt.Sprint("node-", n),
		Addresses: subnet.PerFamily[netip.Addr]{netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), netip.MustParseAddr(fmt.Sprintf("fd99::%x", n))},
	}
}

func mustAppear(t *testing.T, p subnet.Presence, n subnet.Living) int64 {
	t.Helper()
	id, err := p.Appear(t.Context(), n)
	if err != nil || id == 0 {
		t.Fatalf("Appear: %d, %v", id, err)
	}
	return id
}

// staying starts a Stay. Both leave and wait return what it returned.
func staying(t *testing.T, p subnet.Presence, id int64) (leave, wait func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Stay(ctx, id) }()
	wait = sync.OnceValue(func() error {
		defer cancel()
		return within(done)
	})
	leave = func() error {
		cancel()
		return wait()
	}
	t.Cleanup(func() { _ = leave() })
	return leave, wait
}

func appearTwin(t *testing.T, h Harness) {
	s, twin := h.Open(t), h.Open(t)
	first := testLiving(1)
	mustAppear(t, s, first)
	named, at4, at6 := testLiving(2), testLiving(3), testLiving(4)
	named.Node = first.Node
	at4.Addresses[subnet.V4] = first.Addresses[subnet.V4]
	at6.Addresses[subnet.V6] = first.Addresses[subnet.V6]
	for n, what := range map[*subnet.Living]string{&named: "name", &at4: "public address 192.0.2.1", &at6: "public address fd99::1"} {
		_, err := twin.Appear(t.Context(), *n)
		var refused *subnet.TwinError
		if !errors.As(err, &refused) || refused.First != first || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), "node-1 (192.0.2.1, fd99::1)") {
			t.Errorf("%v: Appear: %v", n, err)
		}
	}
	mustAppear(t, twin, testLiving(5))
	// What was refused left nothing behind.
	for n := 2; n <= 4; n++ {
		mustAppear(t, twin, testLiving(n))
	}
	h.Hand.Vanish(first.Node)
	mustAppear(t, twin, named)
}

// refusals lets a node try to appear, again and again, beside another. It returns
// once stop says so of the last refusal, nil where there was none.
func refusals(t *testing.T, p subnet.Presence, n subnet.Living, stop func(*subnet.TwinError) bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(settle / 4) {
		_, err := p.Appear(t.Context(), n)
		var twin *subnet.TwinError
		if err != nil && !errors.As(err, &twin) {
			t.Fatalf("Appear: %v", err)
		}
		if stop(twin) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("Appear is still refused so: %v", err)
		}
	}
}

// appearBesideTheLiving: the first refusal cannot tell whether the other lives, a
// later one does, and says what to do.
func appearBesideTheLiving(t *testing.T, h Harness) {
	first := testLiving(1)
	s := h.Open(t)
	staying(t, s, mustAppear(t, s, first))
	named, at4 := testLiving(2), testLiving(3)
	named.Node = first.Node
	at4.Addresses[subnet.V4] = first.Addresses[subnet.V4]
	for n, advice := range map[*subnet.Living]string{&named: "--node-name", &at4: "--public-ip"} {
		p, tries := h.Open(t), 0
		refusals(t, p, *n, func(twin *subnet.TwinError) bool {
			tries++
			switch {
			case twin == nil:
				t.Fatal("let in beside one that stays")
			case tries == 1 && twin.Lives:
				t.Error("life is taken for proven by one look")
			case twin.Lives && (twin.First != first || !strings.Contains(twin.Error(), advice)):
				t.Errorf("refused by %v", twin)
			}
			return twin.Lives
		})
		if _, err := p.Appear(t.Context(), *n); err == nil || !strings.Contains(err.Error(), advice) {
			t.Errorf("what was proven is forgotten: %v", err)
		}
	}
}

// appearAfterTheDead: one that gives no sign of life is never said to live.
func appearAfterTheDead(t *testing.T, h Harness) {
	dead := testLiving(1)
	s := h.Open(t)
	leave, _ := staying(t, s, mustAppear(t, s, dead))
	time.Sleep(settle)
	if err := leave(); err != nil {
		t.Fatal(err)
	}
	reborn := dead
	reborn.Token = "after the reboot"
	began := time.Now()
	refusals(t, h.Open(t), reborn, func(twin *subnet.TwinError) bool {
		if twin != nil && twin.Lives {
			t.Fatalf("refused by %v", twin)
		}
		if time.Since(began) > 4*time.Second { // Long enough for a renewal.
			h.Hand.Vanish(dead.Node)
		}
		return twin == nil
	})
}

// appearBesideTheReturned: one that made itself known anew lives.
func appearBesideTheReturned(t *testing.T, h Harness) {
	first := testLiving(1)
	s := h.Open(t)
	mustAppear(t, s, first)
	twin := first
	twin.Token = "twin"
	refusals(t, h.Open(t), twin, func(refused *subnet.TwinError) bool {
		mustAppear(t, s, first)
		return refused != nil && refused.Lives
	})
}

func knownNodes(t *testing.T, h Harness) {
	s := h.Open(t)
	first := testLiving(1)
	expect := func(n subnet.Living, want subnet.Living, there bool) {
		t.Helper()
		if got, ok, err := s.Known(t.Context(), n); err != nil || ok != there || got != want {
			t.Errorf("known as %v: %v, %t, %v", n, got, ok, err)
		}
	}
	expect(first, subnet.Living{}, false)
	mustAppear(t, s, first)
	expect(first, first, true)
	named, at6 := testLiving(2), testLiving(3)
	named.Node = first.Node
	at6.Addresses[subnet.V6] = first.Addresses[subnet.V6]
	expect(named, first, true)
	expect(at6, first, true)
	expect(testLiving(4), subnet.Living{}, false)
	// Its name is its own, its address another's.
	mustAppear(t, s, testLiving(3))
	expect(at6, first, true)
	h.Hand.Vanish(first.Node)
	expect(first, subnet.Living{}, false)
}

func appearAgain(t *testing.T, h Harness) {
	n := testLiving(1)
	old := h.Open(t)
	oldID := mustAppear(t, old, n)
	// After a restart, then with another address: it is the same machine.
	s := h.Open(t)
	mustAppear(t, s, n)
	moved := n
	moved.Addresses[subnet.V4] = netip.MustParseAddr("192.0.2.77")
	id := mustAppear(t, s, moved)
	if _, wait := staying(t, old, oldID); !errors.Is(wait(), subnet.ErrLeaseLost) {
		t.Error("what was taken over stays")
	}
	leave, _ := staying(t, s, id)
	time.Sleep(settle)
	// The old address is free now, or soon.
	other := testLiving(2)
	other.Addresses[subnet.V4] = n.Addresses[subnet.V4]
	mustAppear(t, h.Open(t), other)
	if err := leave(); err != nil {
		t.Errorf("Stay on cancel: %v", err)
	}
	// Its name is kept for it while it is restarted, and no longer.
	heir := moved
	heir.Token = "another"
	var twin *subnet.TwinError
	if _, err := h.Open(t).Appear(t.Context(), heir); !errors.As(err, &twin) {
		t.Errorf("another takes the name of one that has just ended: %v", err)
	}
	h.Hand.Vanish(moved.Node)
	mustAppear(t, h.Open(t), heir)
}

func appearRace(t *testing.T, h Harness) {
	const twins = 8
	var wg sync.WaitGroup
	errs := make([]error, twins)
	for i := range twins {
		s, n := h.Open(t), testLiving(1)
		n.Token = fmt.Sprint("twin-", i)
		wg.Go(func() { _, errs[i] = s.Appear(t.Context(), n) })
	}
	wg.Wait()
	refused := 0
	for _, err := range errs {
		var twin *subnet.TwinError
		if errors.As(err, &twin) {
			refused++
		} else if err != nil {
			t.Error(err)
		}
	}
	if refused != twins-1 {
		t.Errorf("%d of %d twins were refused", refused, twins)
	}
}

func stayEnds(t *testing.T, h Harness) {
	s := h.Open(t)
	id := mustAppear(t, s, testLiving(1))
	h.Hand.Vanish("node-1")
	if _, wait := staying(t, s, id); !errors.Is(wait(), subnet.ErrLeaseLost) {
		t.Error("Stay of what is gone goes on")
	}
}

func presenceSilent(t *testing.T, h Harness) {
	s := h.Open(t)
	r := Record(t, h.Open(t))
	r.Next()
	leave, _ := staying(t, s, mustAppear(t, s, testLiving(1)))
	r.Silent(settle)
	if err := leave(); err != nil {
		t.Error(err)
	}
	r.Silent(settle)
	if l := mustList(t, s); len(l.Leases)+len(l.Bad) != 0 {
		t.Errorf("presence lists as %+v", l)
	}
}
