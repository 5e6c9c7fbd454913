package etcd

import (
	"context"
	"errors"
	"net/netip"
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

// TestCancelledClaimEndsSoon: a claim that waits for its turn, or for an etcd
// that hangs, ends within a second of being told to, whatever it has begun.
func TestCancelledClaimEndsSoon(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}})
	other, unlock, err := s.lockClaim(t.Context())
	if err != nil || unlock == nil {
		t.Fatalf("lock: %v %v", other, err)
	}
	defer unlock()
	for _, paused := range []bool{false, true} {
		for _, after := range []time.Duration{5 * time.Millisecond, 100 * time.Millisecond, 700 * time.Millisecond} {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				_, err := s.Write(ctx, pairLease())
				done <- err
			}()
			if paused {
				time.Sleep(after / 2)
				if err := srv.Pause(); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(after)
			began := time.Now()
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("paused=%t, cancelled after %s: ended only after %s", paused, after, took)
			}
			if paused {
				if err := srv.Resume(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestClaimantThatDiedUnderTheLockHoldsOthersUpForAWhileOnly: its lock runs out.
func TestClaimantThatDiedUnderTheLockHoldsOthersUpForAWhileOnly(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix})
	if _, unlock, err := s.lockClaim(t.Context()); err != nil || unlock == nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := s.Write(t.Context(), pairLease()); err != nil {
		t.Fatal(err)
	}
	t.Logf("went on after %s", time.Since(began))
}

// TestLockThatWasLostFencesTheWrite: who was stopped for so long that the lock
// went to another must not write.
func TestLockThatWasLostFencesTheWrite(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	s, h := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix}), newHand(t, shared.URL(), prefix)
	mine, unlock, err := s.lockClaim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if _, err := h.c.Delete(t.Context(), s.claimLockKey()); err != nil {
		t.Fatal(err)
	}
	resp, err := h.c.Txn(t.Context()).If(mine).Commit()
	if err != nil || resp.Succeeded {
		t.Errorf("the lock still counts as held: %v, %v", resp, err)
	}
}

// TestIPv6AloneIsClaimedInTurn: a pair that holds the IPv6 subnet has another key,
// so that it is free can be said only while nobody else claims.
func TestIPv6AloneIsClaimedInTurn(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	s, h := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix}), newHand(t, shared.URL(), prefix)
	alone := pairLease()
	alone.Node, alone.Subnets[subnet.V4] = "n2", netip.Prefix{}
	_, unlock, err := s.lockClaim(t.Context())
	if err != nil || unlock == nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := s.Write(t.Context(), alone)
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("claimed out of turn: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	h.Put(pairLease().Subnets.Key(), pairLease().Record(), true)
	unlock()
	if err := <-done; !errors.Is(err, subnet.ErrConflict) {
		t.Errorf("got %v, want ErrConflict", err)
	}
	h.Delete(pairLease().Subnets.Key())
	if _, err := s.Write(t.Context(), alone); err != nil {
		t.Error(err)
	}
	if _, err := s.Write(t.Context(), pairLease()); !errors.Is(err, subnet.ErrConflict) {
		t.Errorf("a pair beside it: %v, want ErrConflict", err)
	}
}
