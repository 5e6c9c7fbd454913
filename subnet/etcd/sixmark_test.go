package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

func pairLease() subnet.Lease {
	l := testLease()
	l.Subnets[subnet.V6] = netip.MustParsePrefix("fd00:10:5:1::/64")
	return l
}

// TestCancelledClaimEndsSoon: a claim of an etcd that hangs ends within a second
// of being told to, whatever it has begun.
func TestCancelledClaimEndsSoon(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}})
	for _, after := range []time.Duration{0, 5 * time.Millisecond, 100 * time.Millisecond, 700 * time.Millisecond} {
		ctx, cancel := context.WithCancel(t.Context())
		if err := srv.Pause(); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			_, err := s.Write(ctx, pairLease())
			done <- err
		}()
		time.Sleep(after)
		began := time.Now()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("cancelled after %s: ended only after %s", after, took)
		}
		if err := srv.Resume(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIPv6SubnetHasOneClaimant: many who ask at once for one IPv6 subnet, each
// beside another IPv4 subnet or alone, so that no two records have one key.
func TestIPv6SubnetHasOneClaimant(t *testing.T) {
	t.Parallel()
	for range 20 {
		s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: newPrefix()})
		var winners []string
		var mu sync.Mutex
		var claims sync.WaitGroup
		for n := range 12 {
			l := pairLease()
			l.Node, l.Subnets[subnet.V4] = fmt.Sprintf("n%d", n), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)
			if n%3 == 0 {
				// All three have the same key, as those of one claimant would.
				l.Subnets[subnet.V4] = netip.Prefix{}
			}
			claims.Go(func() {
				_, err := s.Write(t.Context(), l)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					winners = append(winners, l.Subnets.Key())
				} else if !errors.Is(err, subnet.ErrConflict) {
					t.Error(err)
				}
			})
		}
		claims.Wait()
		if len(winners) != 1 {
			t.Fatalf("%d claimed it: %v", len(winners), winners)
		}
	}
}

// TestMarkOfAnIPv6SubnetCountsWhileItsRecordIsThere: what another wrote after
// the keys were read shows in its mark. One whose record is gone is in nobody's
// way, though its etcd lease may live.
func TestMarkOfAnIPv6SubnetCountsWhileItsRecordIsThere(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	s, h := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix}), newHand(t, shared.URL(), prefix)
	ours, other := pairLease(), pairLease()
	other.Node, other.Subnets = "n2", subnet.Subnets{netip.MustParsePrefix("10.5.2.0/24"), netip.MustParsePrefix("fd00:10:5:2::/64")}
	h.Put(other.Subnets.Key(), other.Record(), true)
	// As if it had not been there yet when the keys were read.
	if _, err := h.c.Put(t.Context(), s.sixMarkKey(ours.Subnets), other.Subnets.Key()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(t.Context(), ours); !errors.Is(err, subnet.ErrConflict) {
		t.Fatalf("got %v, want ErrConflict", err)
	}
	h.Delete(other.Subnets.Key())
	got, err := s.Write(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	s.mark(t, ours.Subnets, got.ID)

	// A record that nobody marked, as flannel's, is seen by its key.
	alone := pairLease()
	alone.Subnets[subnet.V4] = netip.Prefix{}
	h.Delete(ours.Subnets.Key())
	h.Put(alone.Subnets.Key(), alone.Record(), true)
	if _, err := s.Write(t.Context(), ours); !errors.Is(err, subnet.ErrConflict) {
		t.Errorf("a pair beside its half: %v, want ErrConflict", err)
	}
}

// mark checks that an IPv6 subnet's mark is on that etcd lease.
func (s *Store) mark(t *testing.T, of subnet.Subnets, id int64) {
	t.Helper()
	got, err := s.client.Get(t.Context(), s.sixMarkKey(of))
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != of.Key() || got.Kvs[0].Lease != id {
		t.Errorf("mark of %s: %v %v, want %q on %x", of, got, err, of.Key(), id)
	}
}

// TestMarkFollowsItsRecord from one etcd lease to another, and ends with it.
func TestMarkFollowsItsRecord(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	short := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix, LeaseTTL: 20 * time.Second})
	l, err := short.Write(t.Context(), pairLease())
	if err != nil {
		t.Fatal(err)
	}
	short.mark(t, l.Subnets, l.ID)

	// Held for another time to live, it is moved.
	long := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix, LeaseTTL: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	held := make(chan error, 1)
	moved := l
	go func() { held <- long.Hold(ctx, l, nil) }()
	eventually(t, "another etcd lease", func() bool {
		seen, err := long.List(ctx)
		if err == nil && len(seen.Leases) == 1 {
			moved = seen.Leases[0]
		}
		return moved.ID != l.ID
	})
	cancel()
	if err := <-held; err != nil {
		t.Error(err)
	}
	long.mark(t, l.Subnets, moved.ID)

	// Rewritten after its etcd lease ended without it, it gets a fresh one.
	moved.MTU = 1300
	again, err := long.Write(t.Context(), moved)
	if err != nil {
		t.Fatal(err)
	}
	long.mark(t, l.Subnets, again.ID)
	if err := long.Release(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	got, err := long.client.Get(t.Context(), long.sixMarkKey(l.Subnets))
	if err != nil || got.Count != 0 {
		t.Errorf("the mark is left behind: %v %v", got, err)
	}
}
