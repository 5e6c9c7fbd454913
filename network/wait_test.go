package network

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
)

// TestWaitIsToldOfWhileItLasts: what is had, given up or ended is waited for no more,
// whatever else is; of several the one is named that has been waited for longest.
func TestWaitIsToldOfWhileItLasts(t *testing.T) {
	for name, end := range map[string]func(cancel func()) error{
		"had":      func(func()) error { return nil },
		"given up": func(func()) error { return final(errors.New("it will never be")) },
		"ended":    func(cancel func()) error { cancel(); return errors.New("not yet") },
	} {
		synctest.Test(t, func(t *testing.T) {
			n := &Node{log: zap.NewNop()}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			n.view.waits("the oldest", errors.New("odd"))
			n.view.waits("another", errors.New("odd, too"))
			tries := 0
			_ = n.until(ctx, "the oldest", nil, func() error {
				if tries++; tries < 3 {
					return errors.New("not yet")
				}
				if w := n.view.longestWaited(); w == nil || w.For != "the oldest" || w.Reason != "not yet" {
					t.Errorf("%s: while it is waited for: %+v", name, w)
				}
				return end(cancel)
			})
			if w := n.view.longestWaited(); w == nil || w.For != "another" {
				t.Errorf("%s: while another is waited for: %+v", name, w)
			}
			n.view.goesOn("another")
			if w := n.view.longestWaited(); w != nil {
				t.Errorf("%s: after all: %+v", name, w)
			}
		})
	}
}
