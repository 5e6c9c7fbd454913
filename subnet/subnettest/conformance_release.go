package subnettest

import (
	"context"
	"errors"
	"testing"

	"github.com/ripstop-net/ripstop/subnet"
)

// release: the record goes, others stay, a Hold of it ends, and a second time is
// no error.
func release(t *testing.T, h Harness) {
	s, other := h.Open(t), h.Open(t)
	mine, theirs := mustWrite(t, s, testLease(1)), mustWrite(t, other, testLease(2))
	held := make(chan error, 1)
	go func() { held <- s.Hold(t.Context(), mine, nil) }()

	changed := mine
	changed.Endpoints[subnet.V4].MAC[5]++
	mustWrite(t, s, changed) // A rewrite in between is no hindrance.
	if err := other.Release(t.Context(), mine); err != nil {
		t.Fatalf("release: %v", err)
	}
	if l := mustList(t, s); len(l.Leases) != 1 || l.Leases[0] != theirs {
		t.Errorf("left: %+v", l.Leases)
	}
	if err := <-held; !errors.Is(err, subnet.ErrLeaseLost) {
		t.Errorf("hold of what was released: %v", err)
	}
	if err := s.Release(t.Context(), mine); err != nil {
		t.Errorf("a second time: %v", err)
	}
	again := mustWrite(t, s, testLease(1))
	if err := s.Release(t.Context(), mine); !errors.Is(err, subnet.ErrConflict) {
		t.Errorf("one that was claimed anew: %v", err)
	}
	if l := mustList(t, s); len(l.Leases) != 2 || l.Leases[0].ID != again.ID {
		t.Errorf("left: %+v", l.Leases)
	}
}

func releaseForeign(t *testing.T, h Harness) {
	s := h.Open(t)
	mine := mustWrite(t, s, testLease(1))
	thief := testLease(1)
	thief.Node = "thief"
	h.Hand.Put(mine.Subnets.Key(), thief.Record(), true)
	reserved := testLease(2)
	h.Hand.Put(reserved.Subnets.Key(), reserved.Record(), false)
	h.Hand.Put(testLease(3).Subnets.Key(), []byte("{"), true)
	unread := testLease(3)
	unread.ID = mine.ID
	before := mustList(t, s)
	for what, tc := range map[string]struct {
		l    subnet.Lease
		want error
	}{
		"another's record":            {mine, subnet.ErrConflict},
		"a reservation":               {reserved, subnet.ErrReserved},
		"a record that is unreadable": {unread, subnet.ErrConflict},
	} {
		if err := s.Release(t.Context(), tc.l); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", what, err, tc.want)
		}
	}
	if after := mustList(t, s); after.Revision != before.Revision {
		t.Errorf("revision went from %d to %d", before.Revision, after.Revision)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Release(ctx, mine); !errors.Is(err, context.Canceled) {
		t.Errorf("with a ctx that has ended: %v", err)
	}
}

func noOutage(t *testing.T, h Harness) {
	s := h.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	heard, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- s.Watch(ctx, func(subnet.Change) {
			select {
			case heard <- struct{}{}:
			default:
			}
		})
	}()
	<-heard
	if o, away := s.Outage(); away || o.Count != 0 {
		t.Errorf("an outage of a store that answers: %+v", o)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("watch: %v", err)
	}
}
