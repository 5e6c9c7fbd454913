package kernel

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// TestOverflowIsDoubt has a receive buffer that is too small for what an
// outside hand does.
func TestOverflowIsDoubt(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	k.listen = 4 << 10
	reach(t, k, peers(0, false))
	calls, end := watched(t, k)
	defer end()
	<-calls
	if _, doubt := k.Changes(); !doubt {
		t.Fatal("no doubt at the beginning")
	}
	calm(k)
	reach(t, openAt(t, k.ns), peers(500, false))
	if changes, doubt := k.Changes(); !doubt || len(changes) > 0 {
		t.Fatalf("doubt %t, %d changes when some were lost", doubt, len(changes))
	}
	if _, doubt := k.Changes(); doubt {
		t.Fatal("doubt twice")
	}
	for len(calls) > 0 {
		<-calls
	}
	run(t, openAt(t, k.ns), backend.Delete, device(false))
	select {
	case <-calls:
	case <-time.After(patience):
		t.Fatal("watch fell silent")
	}
}

// TestLargeApplyOverflowsNothing: an Apply reads its own echoes as it goes on.
func TestLargeApplyOverflowsNothing(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	k.listen = 1 << 20
	want := peers(5000, false)
	reach(t, k, peers(0, false))
	_, end := watched(t, k)
	defer end()
	have, err := k.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	calm(k)
	for _, f := range backend.Execute(t.Context(), k, have.Clone(), backend.Diff(have, want)) {
		t.Fatal(f)
	}
	changes, doubt := k.Changes()
	if _, more := have.Correct(changes); doubt || more || !have.Equal(want) {
		t.Fatalf("doubt %t, %d changes", doubt, len(changes))
	}
}

// calm waits until there has been no doubt for longer than the kernel takes to
// announce the state of a new device's carrier (linkwatch_event, HZ).
func calm(k *Kernel) {
	for last := time.Now(); time.Since(last) < 1200*time.Millisecond; time.Sleep(5 * time.Millisecond) {
		if _, doubt := k.Changes(); doubt {
			last = time.Now()
		}
	}
}

// watched runs Watch until end, which must be called. It returns once Watch has
// subscribed.
func watched(t *testing.T, k *Kernel) (calls <-chan struct{}, end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	kicks, done := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		done <- k.Watch(ctx, func() {
			select {
			case kicks <- struct{}{}:
			default:
			}
		})
	}()
	kicks <- <-kicks
	return kicks, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestOverflowIsSeen(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	s, err := dial(k.ns, 4<<10)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	if err := s.join(watchGroups...); err != nil {
		t.Fatal(err)
	}
	reach(t, k, peers(500, false))
	if _, err := s.receive(t.Context()); !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("error is %v, want ENOBUFS", err)
	}
}
