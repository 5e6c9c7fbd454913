package converge

import (
	"context"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend/backendtest"
)

// BenchmarkOneAfterAnother is how long a change takes that comes 2 ms after
// another, in a loop that runs.
func BenchmarkOneAfterAnother(b *testing.B) {
	l := New(backendtest.NewFake(), zap.NewNop())
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	l.Update(1, nil, farOwed(100))
	one, revision := far(101), int64(1)
	var took time.Duration
	for b.Loop() {
		time.Sleep(2 * time.Millisecond)
		began := time.Now()
		if revision++; revision%2 == 0 {
			l.Update(revision, nil, one)
		} else {
			l.Update(revision, one, nil)
		}
		if err := l.WaitFor(ctx, revision); err != nil {
			b.Fatal(err)
		}
		took += time.Since(began)
	}
	b.ReportMetric(float64(took.Microseconds())/float64(b.N), "µs/change")
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
