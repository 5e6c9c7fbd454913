package converge

import (
	"context"
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// BenchmarkAudit is how long an audit without findings takes on Linux, and what
// changes wait for meanwhile.
func BenchmarkAudit(b *testing.B) {
	for _, n := range []int{1000, 60_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k, err := kernel.OpenAt(kerneltest.Namespace(b), func(name string) bool { return name == dev })
			if err != nil {
				b.Fatal(err)
			}
			l := New(k, zap.NewNop())
			ctx, cancel := context.WithCancel(b.Context())
			watch, subscribed := make(chan error, 1), make(chan struct{}, 1)
			go func() {
				watch <- k.Watch(ctx, func() {
					select {
					case subscribed <- struct{}{}:
					default:
					}
				})
			}()
			<-subscribed
			l.planAudit(time.Now())
			l.Update(1, nil, farOwed(n))
			for l.unread != none || l.Stats().Passes < 4 {
				l.pass(ctx)
			}
			var longest time.Duration
			for b.Loop() {
				l.audit = time.Now()
				began := time.Now()
				l.pass(ctx)
				longest = max(longest, time.Since(began))
			}
			if s := l.Stats(); s.Findings != 0 || s.Dumps.Audit == 0 {
				b.Fatalf("%+v", s)
			}
			b.ReportMetric(float64(longest.Milliseconds()), "ms/pause")
			l.Update(2, farOwed(n), nil) // A device with many peers is slow to go by itself.
			l.pass(ctx)
			cancel()
			if err := <-watch; err != nil {
				b.Fatal(err)
			}
			_ = k.Close()
		})
	}
}
