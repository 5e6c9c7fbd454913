package backendtest

import (
	"context"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
)

// patience is how long is waited for what must come: far longer than it takes, also on a
// machine that is busy with other tests.
const patience = time.Minute

// watched runs Watch and returns a channel that has something after each call
// of changed, and a function that ends it.
func (s *suite) watched() (changed <-chan struct{}, end func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	kicks, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- s.Kernel.Watch(ctx, func() {
			select {
			case kicks <- struct{}{}:
			default:
			}
		})
	}()
	return kicks, func() {
		s.t.Helper()
		cancel()
		select {
		case err := <-done:
			if err != nil {
				s.t.Errorf("watch: %v", err)
			}
		case <-time.After(patience):
			s.t.Error("watch did not end with its ctx")
		}
	}
}

func testWatch(t *testing.T, s *suite) {
	s.reach(world(2))
	changed, end := s.watched()
	defer end()
	await := func(what string) {
		t.Helper()
		defer s.Kernel.Changes()
		select {
		case <-changed:
		case <-time.After(patience):
			t.Fatalf("watch is silent about: %s", what)
		}
		for quiet := false; !quiet; { // The rest of what it makes known.
			select {
			case <-changed:
				_, _ = s.Kernel.Changes()
			case <-time.After(30 * time.Millisecond):
				quiet = true
			}
		}
	}
	await("the beginning")
	for _, o := range overlays {
		for _, e := range []backend.Entry{o.address(50), o.fdb(9), o.neighbour(9), o.nexthop(9), o.route(9)} {
			s.by(s.Hand.Put(e))
			await("put " + e.String())
		}
		for _, e := range []backend.Entry{o.route(9), o.nexthop(9), o.neighbour(9), o.fdb(9), o.address(50)} {
			s.by(s.Hand.Remove(e))
			await("remove " + e.String())
		}
		d := o.device()
		d.MTU = 1333
		s.by(s.Hand.Put(d))
		await("put " + d.String())
		s.by(s.Hand.Down(o.dev))
		await("down " + o.dev)
		s.by(s.Hand.Remove(o.device()))
		await("remove " + o.dev)
		s.by(s.Hand.Put(o.device()))
		await("put " + o.dev)
		s.by(s.Hand.Put(o.fdb(9)))
		await("put on a new device " + o.fdb(9).String())
	}
}

func testWatchEnds(t *testing.T, s *suite) {
	changed, end := s.watched()
	select {
	case <-changed:
	case <-time.After(patience):
		t.Fatal("changed is not called at the beginning")
	}
	end()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Kernel.Watch(ctx, func() {}); err != nil {
		t.Fatalf("watch with a ctx that has ended: %v", err)
	}
}
