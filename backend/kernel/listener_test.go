package kernel

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// TestBurstWakesOnce: nobody is woken by each of the thousands of announcements that
// peers' entries make, as long as none was read.
func TestBurstWakesOnce(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	l, err := dialListener(k.ns, listenerBuffer)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.close() }()
	if err := l.join(watchGroups...); err != nil {
		t.Fatal(err)
	}
	woken := make(chan bool, 1)
	go func() { woken <- l.await() }()
	// The process's threads go to sleep for something else now and then.
	sleeps := func() int64 {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			t.Fatal(err)
		}
		return r.Nvcsw
	}
	const n = 3000 // Of each kind of entry.
	before := sleeps()
	reach(t, k, peers(n, false))
	if slept := sleeps() - before; slept > n {
		t.Errorf("threads went to sleep %d times while %d changes were announced", slept, 4*n)
	}
	if !<-woken {
		t.Error("not woken")
	}
}

// TestListenerEnds: an end that comes before the wait, or while it lasts, ends it.
func TestListenerEnds(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	for name, end := range map[string]func(*listener){
		"end": (*listener).end, "close": func(l *listener) { _ = l.close() },
	} {
		for _, early := range []bool{false, true} {
			l, err := dialListener(k.ns, listenerBuffer)
			if err != nil {
				t.Fatal(err)
			}
			woken := make(chan bool, 1)
			if early {
				end(l)
			}
			go func() { woken <- l.await() }()
			if !early {
				time.Sleep(20 * time.Millisecond)
				end(l)
			}
			select {
			case told := <-woken:
				if told {
					t.Errorf("%s: told of something", name)
				}
			case <-time.After(patience):
				t.Fatalf("%s: waits on", name)
			}
			if err := l.close(); err != nil && !errors.Is(err, os.ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}
