package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

func testLease() subnet.Lease {
	l := subnet.Lease{Node: "n1", Backend: "vxlan"}
	l.Subnets[subnet.V4] = netip.MustParsePrefix("10.5.1.0/24")
	l.Endpoints[subnet.V4] = subnet.Endpoint{PublicIP: netip.MustParseAddr("192.0.2.1"), VNI: 1, MAC: subnet.MAC{2, 0, 0, 0, 0, 1}}
	return l
}

func mustWrite(t *testing.T, s *Store, l subnet.Lease) subnet.Lease {
	t.Helper()
	got, err := s.Write(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// holding starts a Hold that ends with the test at the latest.
func holding(t *testing.T, s *Store, l subnet.Lease) <-chan error {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		done <- s.Hold(ctx, l, nil)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return done
}

func wantLost(t *testing.T, done <-chan error, limit time.Duration) {
	t.Helper()
	select {
	case err := <-done:
		if !errors.Is(err, subnet.ErrLeaseLost) {
			t.Errorf("Hold: %v, want ErrLeaseLost", err)
		}
	case <-time.After(limit):
		t.Error("Hold goes on")
	}
}

func wantHeld(t *testing.T, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Errorf("Hold ended: %v", err)
	default:
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	eventuallyIn(t, time.Minute, what, ok)
}

func eventuallyIn(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// TestRestartUnderWatchAndHold kills etcd and starts it again: nothing is
// missed, nothing is lost, and the log has one line for each of loss and return.
func TestRestartUnderWatchAndHold(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	core, logs := observer.New(zap.DebugLevel)
	o := Options{Endpoints: []string{srv.URL()}, LeaseTTL: 6 * time.Second, RequestTimeout: quick}
	holder := open(t, o)
	o.Log = zap.New(core)
	s := open(t, o)
	l := mustWrite(t, holder, testLease())
	done := holding(t, holder, l)
	r := subnettest.Record(t, s)
	whole := r.Next()
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a word on the loss", func() bool { return logs.Len() > 0 })
	if err := srv.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	h := newHand(t, srv.URL(), DefaultPrefix)
	h.Put("10.5.2.0-24", []byte("{"), false)
	c := r.Next()
	t.Logf("watch went on after %s", time.Since(began))
	if c.Whole || len(c.Bad) != 1 || c.Revision != whole.Revision+1 {
		t.Errorf("after the restart came %+v", c)
	}
	eventually(t, "a word on the return", func() bool { return logs.Len() > 1 })
	for _, e := range logs.All() {
		t.Logf("%s %s %v", e.Level, e.Message, e.ContextMap())
	}
	if said := fmt.Sprint(logs.All()[0].ContextMap()); !strings.Contains(said, "connection refused") {
		t.Errorf("the loss is told as %s", said)
	}
	time.Sleep(7 * time.Second) // Longer than the lease lives by itself.
	wantHeld(t, done)
	if logs.Len() != 2 {
		t.Errorf("%d lines are logged, want 2: %v", logs.Len(), logs.All())
	}
	h.Delete("10.5.1.0-24")
	wantLost(t, done, time.Minute)
}

// TestHoldWipedStore: it is found on the return of the connection, also where
// no Watch runs, and not by a renewal, which is an hour away.
func TestHoldWipedStore(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}, RequestTimeout: quick})
	done := holding(t, s, mustWrite(t, s, testLease()))
	time.Sleep(200 * time.Millisecond)
	if err := srv.Wipe(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantLost(t, done, time.Minute)
}

func TestWatchWipedStore(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}})
	s.checkEvery = time.Hour
	mustWrite(t, s, testLease())
	r := subnettest.Record(t, s)
	if c := r.Next(); len(c.Leases) != 1 {
		t.Fatalf("first change is %+v", c)
	}
	if err := srv.Wipe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := r.Next(); !c.Whole || len(c.Leases) != 0 {
		t.Errorf("after the wipe came %+v", c)
	}
}

func TestHoldAwayForTheWholeTime(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}, LeaseTTL: 6 * time.Second, RequestTimeout: quick})
	done := holding(t, s, mustWrite(t, s, testLease()))
	time.Sleep(300 * time.Millisecond)
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	wantLost(t, done, time.Minute)
	if d := time.Since(began); d < time.Second {
		t.Errorf("Hold gave up after %s", d)
	}
}

// TestHoldOutlivesItsTime holds longer than the lease lives by itself, on a
// server that stays.
func TestHoldOutlivesItsTime(t *testing.T) {
	t.Parallel()
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: newPrefix(), LeaseTTL: 6 * time.Second})
	l := mustWrite(t, s, testLease())
	done := holding(t, s, l)
	time.Sleep(13 * time.Second)
	wantHeld(t, done)
	got, err := s.List(t.Context())
	if err != nil || len(got.Leases) != 1 || got.Leases[0] != l {
		t.Errorf("List: %+v, %v", got, err)
	}
}

// TestRecordOutlivesItsLease: should etcd lose a lease and keep its keys, the
// record gets a fresh one, for nothing else would ever end it.
func TestRecordOutlivesItsLease(t *testing.T) {
	t.Parallel()
	type held = <-chan error
	for name, goOn := range map[string]func(*testing.T, *Store, subnet.Lease, held){
		"while it is held": func(t *testing.T, _ *Store, _ subnet.Lease, done held) {
			t.Cleanup(func() { wantHeld(t, done) })
		},
		"when it is claimed again": func(t *testing.T, s *Store, l subnet.Lease, _ held) {
			cfg, err := subnet.ParseConfig([]byte(`{"Network":"10.5.0.0/16"}`))
			if err != nil {
				t.Fatal(err)
			}
			l, err = subnet.Claim(t.Context(), s, cfg, subnet.Request{Self: subnet.Identity{Node: l.Node}, Backend: l.Backend, Endpoints: l.Endpoints})
			if err != nil {
				t.Fatal(err)
			}
			holding(t, s, l)
		},
		"when something else is written": func(t *testing.T, s *Store, l subnet.Lease, _ held) {
			l.Endpoints[subnet.V4].VNI = 7
			if got := mustWrite(t, s, l); got.ID == l.ID || got.Created != l.Created {
				t.Errorf("wrote %+v over %+v", got, l)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := etcdserver.ForTest(t, etcdserver.Options{})
			s := open(t, Options{Endpoints: []string{srv.URL()}, LeaseTTL: 20 * time.Second})
			l := mustWrite(t, s, testLease())
			var done held
			if name == "while it is held" {
				done = holding(t, s, l)
			}
			if err := srv.ForgetLeases(t.Context()); err != nil {
				t.Fatal(err)
			}
			h := newHand(t, srv.URL(), DefaultPrefix)
			if h.lease(l.Subnets.Key()) != clientv3.LeaseID(l.ID) {
				t.Fatal("the record is not there")
			}
			if ttl, err := h.c.TimeToLive(t.Context(), clientv3.LeaseID(l.ID)); err != nil || ttl.TTL != -1 {
				t.Fatalf("the lease is there: %+v, %v", ttl, err)
			}
			goOn(t, s, l, done)
			eventually(t, "a fresh lease", func() bool {
				id := h.lease(l.Subnets.Key())
				ttl, err := h.c.TimeToLive(t.Context(), id)
				return err == nil && id != clientv3.LeaseID(l.ID) && ttl.TTL > 0
			})
		})
	}
}

// TestHoldChangesTime takes up a lease that lives longer, as flannel leaves one
// behind: it is moved to one of the store's own time, once.
func TestHoldChangesTime(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	old := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix, LeaseTTL: time.Hour})
	l := mustWrite(t, old, testLease())
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix, LeaseTTL: 8 * time.Second})
	r := subnettest.Record(t, s)
	r.Next()
	done := holding(t, s, l)
	c := r.Next()
	if len(c.Leases) != 1 || !c.Leases[0].SameContent(l) || c.Leases[0].ID == l.ID || c.Leases[0].Created != l.Created {
		t.Fatalf("the move is told as %+v", c)
	}
	ttl, err := raw(t, shared.URL()).TimeToLive(t.Context(), clientv3.LeaseID(c.Leases[0].ID))
	if err != nil || ttl.GrantedTTL != 8 {
		t.Errorf("the new lease: %+v, %v", ttl, err)
	}
	eventually(t, "the old lease's end", func() bool {
		ttl, err := raw(t, shared.URL()).TimeToLive(t.Context(), clientv3.LeaseID(l.ID))
		return err == nil && ttl.TTL == -1
	})
	r.Silent(10 * time.Second)
	wantHeld(t, done)
	newHand(t, shared.URL(), prefix).Expire(l.Subnets.Key())
	wantLost(t, done, time.Minute)
}

// TestHoldAcceptsEtcdsLeastTime: where etcd grants another time than asked,
// there is nothing to move to, and it is not asked again and again.
func TestHoldAcceptsEtcdsLeastTime(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{ElectionTimeout: 2 * time.Second})
	s := open(t, Options{Endpoints: []string{srv.URL()}, LeaseTTL: time.Second})
	l := mustWrite(t, s, testLease())
	r := subnettest.Record(t, s)
	r.Next()
	c := raw(t, srv.URL())
	raftIndex := func() uint64 {
		resp, err := c.Status(t.Context(), srv.URL())
		if err != nil {
			t.Fatal(err)
		}
		return resp.RaftAppliedIndex
	}
	done := holding(t, s, l)
	time.Sleep(500 * time.Millisecond)
	before := raftIndex()
	r.Silent(4 * time.Second)
	wantHeld(t, done)
	if after := raftIndex(); after != before {
		t.Errorf("holding wrote %d entries to etcd's log", after-before)
	}
}

// TestPausedUnderWatch: an etcd that stops without a word is noticed, and
// spoken of, by the connection's own keep-alive.
func TestPausedUnderWatch(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	core, logs := observer.New(zap.DebugLevel)
	s := open(t, Options{Endpoints: []string{srv.URL()}, RequestTimeout: quick, Log: zap.New(core)})
	r := subnettest.Record(t, s)
	r.Next()
	if err := srv.Pause(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventuallyIn(t, 2*time.Minute, "a word on the loss", func() bool { return logs.Len() > 0 })
	t.Logf("noticed after %s", time.Since(began))
	if said := fmt.Sprint(logs.All()[0].ContextMap()); !strings.Contains(said, "nothing answers") {
		t.Errorf("the loss is told as %s", said)
	}
	if err := srv.Resume(); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	mustWrite(t, open(t, Options{Endpoints: []string{srv.URL()}}), testLease())
	if c := r.Next(); len(c.Leases) != 1 {
		t.Errorf("after the pause came %+v", c)
	}
	t.Logf("watch went on after %s", time.Since(began))
}

func TestCompactionBetweenPages(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	prefix := DefaultPrefix
	s, h := open(t, Options{Endpoints: []string{srv.URL()}}), newHand(t, srv.URL(), prefix)
	s.pageSize = 10
	for i := range 95 {
		h.Put(fmt.Sprintf("10.5.%d.0-24", i), testLease().Record(), false)
	}
	if l, err := s.List(t.Context()); err != nil || len(l.Leases) != 95 {
		t.Fatalf("%d leases in pages: %v", len(l.Leases), err)
	}
	// A page of a revision that is gone.
	first, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.Put("10.5.1.0-24", testLease().Record(), false)
	if _, err := h.c.Compact(t.Context(), first.Revision+1); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.nextPage(t.Context(), s.recordsKey(), clientv3.GetPrefixRangeEnd(s.recordsKey()), first.Revision); err == nil {
		t.Fatal("a page of a compacted revision could be read")
	}
	// Compaction all the time: a listing is whole or an error, never a part.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	compacting := make(chan struct{})
	go func() {
		defer close(compacting)
		for ctx.Err() == nil {
			resp, err := h.c.Put(ctx, prefix+"/elsewhere", "")
			if err == nil {
				_, _ = h.c.Compact(ctx, resp.Header.Revision)
			}
			sleep(ctx, 5*time.Millisecond)
		}
	}()
	for range 20 {
		l, err := s.List(t.Context())
		if err == nil && len(l.Leases) != 95 {
			t.Errorf("%d leases are listed, want 95 or an error", len(l.Leases))
		}
		if err != nil && !strings.Contains(err.Error(), "compacted") {
			t.Error(err)
		}
	}
	cancel()
	<-compacting
}

// TestCompactionUnderWatch: what happened while etcd was away is compacted
// before the watch can resume.
func TestCompactionUnderWatch(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	core, logs := observer.New(zap.WarnLevel)
	s := open(t, Options{Endpoints: []string{srv.URL()}, Log: zap.New(core)})
	h := newHand(t, srv.URL(), DefaultPrefix)
	h.Put("10.5.1.0-24", testLease().Record(), false)
	r := subnettest.Record(t, s)
	r.Next()
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a word on the loss", func() bool { return logs.Len() > 0 })
	if err := srv.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := raw(t, srv.URL())
	var rev int64
	for range 50 {
		resp, err := c.Put(t.Context(), DefaultPrefix+"/subnets/10.5.2.0-24", "{")
		if err != nil {
			t.Fatal(err)
		}
		rev = resp.Header.Revision
	}
	if _, err := c.Delete(t.Context(), DefaultPrefix+"/subnets/10.5.1.0-24"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(t.Context(), rev+1); err != nil {
		t.Fatal(err)
	}
	// Whether the watch was faster is a matter of luck; the end is not.
	leases, bad := 1, 0
	eventually(t, "the state of now", func() bool {
		ch := r.Next()
		if ch.Whole {
			leases, bad = len(ch.Leases), len(ch.Bad)
			t.Log("listed again")
		}
		leases -= len(ch.Gone)
		bad = max(bad, len(ch.Bad))
		return leases == 0 && bad == 1
	})
}

// TestFollowCompacted asks for the past directly.
func TestFollowCompacted(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	prefix := DefaultPrefix
	s, h := open(t, Options{Endpoints: []string{srv.URL()}}), newHand(t, srv.URL(), prefix)
	h.SetConfig([]byte("1"))
	listed := make(chan subnet.Change)
	reached, held := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	first := true
	go func() {
		done <- s.Watch(ctx, func(c subnet.Change) {
			if first { // Between the listing and the watch.
				first = false
				close(reached)
				<-held
			}
			select {
			case listed <- c:
			case <-ctx.Done():
			}
		})
	}()
	<-reached
	var rev int64
	for i := range 10 {
		resp, err := h.c.Put(t.Context(), prefix+"/config", fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		rev = resp.Header.Revision
	}
	h.SetConfig([]byte("last"))
	if _, err := h.c.Compact(t.Context(), rev+1); err != nil {
		t.Fatal(err)
	}
	close(held)
	wholes := 0
	// The config's watch may be read again before the records', which lists.
	for got := ""; got != "last" || wholes < 2; {
		select {
		case c := <-listed:
			if c.Whole || c.ConfigSet {
				got = string(c.Config)
			}
			if c.Whole {
				wholes++
			}
		case <-time.After(time.Minute):
			t.Fatalf("the last config and a second listing never came: %q, %d listings", got, wholes)
		}
	}
	if wholes != 2 {
		t.Errorf("%d whole listings, want 2", wholes)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestSetConfig(t *testing.T) {
	t.Parallel()
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: newPrefix()})
	if v, rev, err := s.Config(t.Context()); v != nil || rev != 0 || err != nil {
		t.Fatalf("Config of none: %q %d %v", v, rev, err)
	}
	if err := s.SetConfig(t.Context(), []byte("a"), 0); err != nil {
		t.Fatal(err)
	}
	v, rev, err := s.Config(t.Context())
	if err != nil || string(v) != "a" {
		t.Fatalf("Config: %q %v", v, err)
	}
	for _, wrong := range []int64{0, rev - 1, rev + 1} {
		if err := s.SetConfig(t.Context(), []byte("b"), wrong); !errors.Is(err, subnet.ErrConflict) {
			t.Errorf("SetConfig at %d: %v", wrong, err)
		}
	}
	if err := s.SetConfig(t.Context(), []byte("b"), rev); err != nil {
		t.Error(err)
	}
}

// TestForeignKeys: what merely begins like ours is not ours.
func TestForeignKeys(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	s, c := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix}), raw(t, shared.URL())
	r := subnettest.Record(t, s)
	r.Next()
	for _, key := range []string{"/subnets", "/subnetsx/10.5.1.0-24", "/config/x", "/configx", "/ripstop/epoch"} {
		if _, err := c.Put(t.Context(), prefix+key, "{}"); err != nil {
			t.Fatal(err)
		}
	}
	r.Silent(200 * time.Millisecond)
	if l, err := s.List(t.Context()); err != nil || l.Config != nil || len(l.Leases)+len(l.Bad) != 0 {
		t.Errorf("List: %+v, %v", l, err)
	}
}

// TestWriteRevokesLoser: a lost race leaves no etcd lease behind.
func TestWriteRevokesLoser(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}})
	mustWrite(t, s, testLease())
	for range 3 {
		if _, err := s.Write(t.Context(), testLease()); !errors.Is(err, subnet.ErrConflict) {
			t.Fatal(err)
		}
	}
	if l, err := raw(t, srv.URL()).Leases(t.Context()); err != nil || len(l.Leases) != 1 {
		t.Errorf("etcd leases: %+v, %v", l, err)
	}
}
