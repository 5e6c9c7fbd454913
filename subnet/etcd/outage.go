package etcd

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet"
)

// outage logs the loss of etcd once and its return once, and counts the
// failures in between.
type outage struct {
	log  *zap.Logger
	task string

	mu       sync.Mutex
	since    time.Time
	failures int
	reason   string
	count    uint64
	refused  bool
}

func newOutage(log *zap.Logger, task string) *outage { return &outage{log: log, task: task} }

// lost counts a failure. It asks why only for the first, whose answer is
// logged: to find out takes time.
func (o *outage) lost(why func() error) {
	o.mu.Lock()
	o.failures++
	first := o.failures == 1
	if first {
		o.since, o.reason = time.Now(), ""
		o.count++
	}
	o.mu.Unlock()
	if !first {
		return
	}
	err := why()
	o.mu.Lock()
	o.reason = err.Error()
	o.mu.Unlock()
	o.log.Warn("store lost, trying on", zap.String("task", o.task), zap.Error(err))
}

// refuse counts a failure of which the store itself says the reason: that is
// logged once more, for who waits for etcd's return does not look for it.
func (o *outage) refuse(why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures++; o.failures == 1 {
		o.since = time.Now()
		o.count++
	}
	if !o.refused {
		o.reason = why.Error()
		o.refused = true
		o.log.Warn("store refuses, trying on", zap.String("task", o.task), zap.Error(why))
	}
}

func (o *outage) back() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures == 0 {
		return
	}
	o.log.Info("store is back", zap.String("task", o.task),
		zap.Duration("after", time.Since(o.since)), zap.Int("failures", o.failures))
	o.failures, o.refused = 0, false
}

// Outage tells whether Watch gets through; see [subnet.Reporter].
func (s *Store) Outage() (subnet.Outage, bool) {
	o := s.watching.Load()
	if o == nil {
		return subnet.Outage{}, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return subnet.Outage{Since: o.since, Reason: o.reason, Failures: o.failures, Count: o.count}, o.failures > 0
}
