package converge

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
)

// TestAuditTakesASmallShare: one that takes long comes seldom.
func TestAuditTakesASmallShare(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct{ every, took, mean time.Duration }{
		{DefaultAuditEvery, 0, DefaultAuditEvery},
		{DefaultAuditEvery, 10 * time.Millisecond, DefaultAuditEvery},
		{DefaultAuditEvery, 600 * time.Millisecond, 30 * time.Minute},
		{DefaultAuditEvery, time.Minute, time.Hour},
		{24 * time.Hour, time.Minute, 24 * time.Hour},
	} {
		l := New(backendtest.NewFake(), zap.NewNop())
		l.AuditEvery(tc.every)
		l.auditTook = tc.took
		for range 100 {
			l.planAudit(now)
			if in := l.audit.Sub(now); in < tc.mean/2 || in > tc.mean*3/2 {
				t.Fatalf("%+v: the next is in %s", tc, in)
			}
		}
	}
}

// TestAuditNotesWhatItTook with the comparison that follows on it.
func TestAuditNotesWhatItTook(t *testing.T) {
	fake := backendtest.NewFake()
	l := New(fake, zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	watch, subscribed := make(chan error, 1), make(chan struct{}, 1)
	go func() {
		watch <- fake.Watch(ctx, func() {
			select {
			case subscribed <- struct{}{}:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-watch; err != nil {
			t.Error(err)
		}
	}()
	<-subscribed
	l.planAudit(time.Now())
	l.Update(1, nil, farOwed(5000))
	for range 3 {
		l.pass(t.Context())
	}
	if l.auditTook != 0 {
		t.Fatalf("%s before any audit", l.auditTook)
	}
	l.audit = time.Now()
	mirror := l.have
	// One that finds nothing leaves nothing to compare or to replace.
	if looked := l.pass(t.Context()); looked || l.have != mirror || l.Stats().Dumps.Audit != 1 {
		t.Errorf("looked: %v, mirror kept: %v, stats: %+v", looked, l.have == mirror, l.Stats())
	}
	if l.auditTook <= 0 || !l.audit.After(time.Now()) {
		t.Errorf("took %s, the next is %s", l.auditTook, l.audit)
	}
}

// TestKernelIsReadBeforeTheWantIsKnown: a restart waits for the slower of store
// and kernel, not for one after the other.
func TestKernelIsReadBeforeTheWantIsKnown(t *testing.T) {
	fake := backendtest.NewFake()
	fake.Hand(func(s *backend.State) {
		for _, e := range owed(2, 3) {
			s.Put(e)
		}
	})
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		settle()
		if n := fake.Dumps(); n != 1 {
			t.Errorf("%d dumps before anything is wanted", n)
		}
		fake.Hand(func(s *backend.State) { s.Drop(peer(2)[3]) })
		settle()
		l.Update(1, nil, owed(2, 3))
		settle()
		if n := fake.Dumps(); n != 1 {
			t.Errorf("%d dumps", n)
		}
		if ops := fake.Ops(); len(ops) != 1 || ops[0].Entry != peer(2)[3] {
			t.Errorf("ops %v", ops)
		}
	})
}

// TestAuditThatCannotReadIsTriedAgain: soon, and meanwhile what is known is as sound
// as before.
func TestAuditThatCannotReadIsTriedAgain(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		time.Sleep(time.Hour) // By then nothing but an audit reads the kernel.
		fake.FailDump(errors.New("no buffer"))
		for end := time.Now().Add(time.Hour); l.Stats().Dumps.Failed == 0; time.Sleep(time.Second) {
			if time.Now().After(end) {
				t.Fatal("no audit")
			}
		}
		if r := l.Report(); r.Unread != "" {
			t.Errorf("a sound mirror is in doubt: %s", r.Unread)
		}
		fake.Silently(func(s *backend.State) { s.Drop(peer(2)[0]) })
		fake.FailDump(nil)
		time.Sleep(longestRetry + 2*longestConfirm)
		synctest.Wait()
		holds(t, fake, owed(2, 3)...)
		if s := l.Stats(); s.Findings != 1 {
			t.Errorf("stats: %+v", s)
		}
	})
}
