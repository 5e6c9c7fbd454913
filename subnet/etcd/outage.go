package etcd

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

// outage logs the loss of etcd once and its return once, and counts the
// failures in between.
type outage struct {
	log  *zap.Logger
	task string

	mu       sync.Mutex
	since    time.Time
	failures int
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
		o.since = time.Now()
	}
	o.mu.Unlock()
	if first {
		o.log.Warn("store lost, trying on", zap.String("task", o.task), zap.Error(why()))
	}
}

// refuse counts a failure of which the store itself says the reason: that is
// logged once more, for who waits for etcd's return does not look for it.
func (o *outage) refuse(why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failures++; o.failures == 1 {
		o.since = time.Now()
	}
	if !o.refused {
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
