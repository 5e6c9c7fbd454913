package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

func TestSignsOfLife(t *testing.T) {
	at := func(seconds int) time.Time { return time.Unix(0, 0).Add(time.Duration(seconds) * time.Second) }
	one, two, elsewhere := raftTerm{1, 5}, raftTerm{1, 6}, raftTerm{2, 5}
	of := func(seconds int, left int64, before, after raftTerm) look {
		return look{token: "a", lease: 7, left: left, before: before, after: after, at: at(seconds)}
	}
	moved := func(l look, lease clientv3.LeaseID, token string) look {
		l.lease, l.token = lease, token
		return l
	}
	for name, tc := range map[string]struct {
		looks []look
		lives bool
	}{
		"one look":                {[]look{of(1, 40, one, one)}, false},
		"time passes":             {[]look{of(1, 40, one, one), of(11, 30, one, one), of(31, 10, one, one)}, false},
		"time stands still":       {[]look{of(1, 40, one, one), of(31, 40, one, one)}, false},
		"renewed":                 {[]look{of(1, 40, one, one), of(11, 30, one, one), of(16, 59, one, one)}, true},
		"renewed a little":        {[]look{of(1, 40, one, one), of(11, 30, one, one), of(16, 31, one, one)}, true},
		"proven for good":         {[]look{of(1, 40, one, one), of(6, 50, one, one), of(9, 47, two, two), of(11, 45, two, two)}, true},
		"last words":              {[]look{of(1, 40, one, one), of(2, 59, one, one), of(11, 50, one, one)}, false},
		"renewed after them":      {[]look{of(1, 40, one, one), of(2, 59, one, one), of(11, 50, one, one), of(14, 59, one, one)}, true},
		"new leader":              {[]look{of(1, 40, one, one), of(11, 60, two, two), of(21, 50, two, two)}, false},
		"new leader at the look":  {[]look{of(1, 40, one, one), of(11, 60, one, two), of(21, 50, two, two)}, false},
		"new leader at the first": {[]look{of(1, 40, one, two), of(11, 60, two, two)}, false},
		"renewed under a new one": {[]look{of(1, 40, one, one), of(11, 60, two, two), of(21, 50, two, two), of(24, 59, two, two)}, true},
		"not asked by the leader": {[]look{of(1, 1<<33, one, one), of(11, 50, one, one), of(21, 40, one, one)}, false},
		"back from a backup":      {[]look{of(1, 40, one, one), moved(of(11, 60, elsewhere, elsewhere), 6, "a"), moved(of(21, 50, elsewhere, elsewhere), 6, "a")}, false},
		"another cluster":         {[]look{of(1, 40, one, one), of(11, 60, elsewhere, elsewhere)}, false},
		"appeared anew":           {[]look{of(1, 40, one, one), moved(of(11, 60, one, one), 8, "a")}, true},
		"anew, new leader":        {[]look{of(1, 40, one, one), moved(of(11, 60, two, two), 8, "a")}, true},
		"anew with its last word": {[]look{of(1, 40, one, one), moved(of(2, 60, one, one), 8, "a"), moved(of(9, 53, one, one), 8, "a")}, false},
		"a third machine":         {[]look{of(1, 40, one, one), moved(of(11, 60, one, one), 8, "b"), moved(of(21, 50, one, one), 8, "b")}, false},
	} {
		var s sighting
		for _, l := range tc.looks {
			s = s.then(l)
		}
		if s.lives != tc.lives {
			t.Errorf("%s: lives is %t", name, s.lives)
		}
	}
}

func TestSightingsAreBounded(t *testing.T) {
	var s sightings
	for i := range 1000 {
		s.add(string(rune('a'+i)), look{token: "a"})
	}
	if n := len(s.by); n > maxSightings {
		t.Errorf("%d are remembered", n)
	}
}

// untilLetIn tries to appear until that succeeds, and returns how long it took.
// Life must not be taken for proven.
func untilLetIn(t *testing.T, s *Store, n subnet.Living, meanwhile func(waited time.Duration)) time.Duration {
	t.Helper()
	began := time.Now()
	eventuallyIn(t, 2*time.Minute, "the other's end", func() bool {
		_, err := s.Appear(t.Context(), n)
		var twin *subnet.TwinError
		if errors.As(err, &twin) && twin.Lives {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		meanwhile(time.Since(began))
		return err == nil
	})
	return time.Since(began)
}

// TestNewLeaderIsNoSignOfLife: it gives a dead node's presence its full time again.
func TestNewLeaderIsNoSignOfLife(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}, RequestTimeout: quick})
	s.presenceTTL = 12 * time.Second
	n := subnet.Living{Token: "one", Node: "n1"}
	if _, err := s.Appear(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	n.Token = "two"
	restarted := false
	took := untilLetIn(t, s, n, func(waited time.Duration) {
		if waited > 6*time.Second && !restarted {
			restarted = true
			if err := srv.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
	if took < 17*time.Second {
		t.Errorf("let in after %s: the restart gave nothing back", took)
	}
}

// TestPauseOfEtcdIsNoSignOfLife: neither what a dead node left nor its time grows.
func TestPauseOfEtcdIsNoSignOfLife(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}, RequestTimeout: quick})
	s.presenceTTL = 8 * time.Second
	n := subnet.Living{Token: "one", Node: "n1"}
	if _, err := s.Appear(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	n.Token = "two"
	paused := false
	untilLetIn(t, s, n, func(waited time.Duration) {
		if waited > 3*time.Second && !paused {
			paused = true
			if err := srv.Pause(); err != nil {
				t.Fatal(err)
			}
			time.AfterFunc(2*time.Second, func() { _ = srv.Resume() })
		}
	})
}

// TestPresenceOnNoLeaseIsNobodys: it would never lapse.
func TestPresenceOnNoLeaseIsNobodys(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix})
	n := subnet.Living{Token: "one", Node: "n1", Addresses: subnet.PerFamily[netip.Addr]{netip.MustParseAddr("192.0.2.1")}}
	value, err := encodeLiving(subnet.Living{Token: "two", Node: "n1", Addresses: n.Addresses})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range s.presenceKeys(n) {
		if _, err := raw(t, shared.URL()).Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	if known, ok, err := s.Known(t.Context(), n); ok || err != nil {
		t.Errorf("known is %v, %v", known, err)
	}
	if _, err := s.Appear(t.Context(), n); err != nil {
		t.Error(err)
	}
}

// TestStayLooksWhenTheConnectionIsBack: what was forgotten meanwhile is noticed
// then, and not when the next renewal is due. No Watch runs that could tell.
func TestStayLooksWhenTheConnectionIsBack(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}, RequestTimeout: quick})
	s.presenceTTL = time.Hour
	id, err := s.Appear(t.Context(), subnet.Living{Token: "one", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Stay(ctx, id) }()
	defer cancel()
	time.Sleep(300 * time.Millisecond) // The first sign of life is given.
	if err := srv.Wipe(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantLost(t, done, time.Minute)
}

// TestWhoLivesIsAskedAtOnce: of more names than one transaction may ask for, and a
// presence that nothing would end is none.
func TestWhoLivesIsAskedAtOnce(t *testing.T) {
	t.Parallel()
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: newPrefix()})
	var names []string
	for i := range 2*mostNames + 7 {
		names = append(names, fmt.Sprintf("node%d", i))
	}
	alive := []string{names[0], names[mostNames], names[2*mostNames+6]}
	for i, node := range alive {
		if _, err := s.Appear(t.Context(), subnet.Living{Token: node, Node: node, Addresses: subnet.PerFamily[netip.Addr]{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := raw(t, shared.URL()).Put(t.Context(), s.nodeKey(names[5]), `{"Token":"x","Node":"node5"}`); err != nil {
		t.Fatal(err)
	}
	got, err := s.Alive(t.Context(), names)
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range names {
		if got[node] != slices.Contains(alive, node) {
			t.Errorf("%s lives: %t", node, got[node])
		}
	}
}
