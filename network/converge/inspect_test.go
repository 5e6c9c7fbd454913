package converge

import (
	"context"
	"errors"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
)

// TestQuestionsAreAnsweredBetweenPasses: before anything is wanted and after,
// without a pass or a change to the kernel being made for them.
func TestQuestionsAreAnsweredBetweenPasses(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		if err := l.Beat(context.Background()); err != nil {
			t.Errorf("before anything is wanted: %v", err)
		}
		l.Update(1, nil, owed(2))
		settle()
		passes := l.Stats().Passes
		facts, err := l.Facts(context.Background(), append(peer(2), peer(3)...))
		if err != nil || len(facts) != 8 {
			t.Fatalf("%v, %v", facts, err)
		}
		for i, f := range facts {
			if (f != Fact{Present: i < 4}) {
				t.Errorf("fact %d: %+v", i, f)
			}
		}
		if now := l.Stats().Passes; now != passes {
			t.Errorf("%d passes, %d before the question", now, passes)
		}
		r := l.Report()
		if r.Wanted != 5 || len(r.Devices) != 1 || r.Devices[0].Problem != "" || len(r.Problems) != 0 || r.Times.Count == 0 || r.Ended.IsZero() {
			t.Errorf("report %+v", r)
		}
	})
}

// TestQuestionEndsWithItsContext where nobody can answer.
func TestQuestionEndsWithItsContext(t *testing.T) {
	l := New(backendtest.NewFake(), zap.NewNop())
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := l.Beat(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if _, err := l.Facts(ctx, peer(2)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// stuck is a kernel of which a dump takes as long as the test wants.
type stuck struct {
	backend.Kernel
	release chan struct{}
	once    sync.Once
}

func (s *stuck) Dump(ctx context.Context) (*backend.State, error) {
	s.once.Do(func() { <-s.release })
	return s.Kernel.Dump(ctx)
}

// TestBusyLoopGivesNoBeatAndStillReports.
func TestBusyLoopGivesNoBeatAndStillReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &stuck{Kernel: backendtest.NewFake(), release: make(chan struct{})}
		l := New(k, zap.NewNop())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- l.Run(ctx) }()
		l.Update(1, nil, owed(2))
		settle()
		soon, end := context.WithTimeout(ctx, time.Minute)
		if err := l.Beat(soon); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a loop that is stuck gives a beat: %v", err)
		}
		end()
		if r := l.Report(); r.Passes != 0 {
			t.Errorf("report %+v", r)
		}
		close(k.release)
		if err := l.Beat(ctx); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestReportNamesWhatFailsFirst, and what waits for it after that; not more than
// its bound.
func TestReportNamesWhatFailsFirst(t *testing.T) {
	fake := backendtest.NewFake()
	fake.FailOps(func(op backend.Op) error {
		if f, ok := op.Entry.(backend.FDB); ok && f.MAC == peer(2)[0].(backend.FDB).MAC {
			return syscall.EPERM
		}
		return nil
	})
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		r := l.Report()
		if r.Failing != 3 || len(r.Problems) != 3 || r.Problems[0].Entry != peer(2)[0] || !strings.Contains(r.Problems[0].Reason, "not permitted") {
			t.Errorf("problems: %+v", r.Problems)
		}
		facts, err := l.Facts(context.Background(), peer(2)[:1])
		if err != nil || facts[0].Present || facts[0].Failing == "" {
			t.Errorf("%+v, %v", facts, err)
		}
		fake.FailOps(func(op backend.Op) error {
			if op.Entry.Kind() == backend.KindRoute {
				return syscall.EPERM
			}
			return nil
		})
		var all []backend.Entry
		for n := range byte(100) {
			all = append(all, peer(n+10)...)
		}
		l.Update(2, nil, all)
		settle()
		if r := l.Report(); len(r.Problems) != mostProblems || r.Failing < 100 {
			t.Errorf("%d problems of %d", len(r.Problems), r.Failing)
		}
		fake.FailOps(nil)
		time.Sleep(2 * longestRetry)
		if r := l.Report(); len(r.Problems) != 0 || r.Failing != 0 {
			t.Errorf("once all is well: %+v", r.Problems)
		}
	})
}
