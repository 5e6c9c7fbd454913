package kernel

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// TestListenerIsNotPolled: the runtime's poller, which each of the thousands of
// announcements of peers' entries would wake, does not have it. It is told all the same.
func TestListenerIsNotPolled(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	l, err := dialListener(k.ns, listenerBuffer)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.close() }()
	if err := l.sock.file.SetReadDeadline(time.Time{}); !errors.Is(err, os.ErrNoDeadline) {
		t.Errorf("the poller has it: %v", err)
	}
	if err := l.join(watchGroups...); err != nil {
		t.Fatal(err)
	}
	told := make(chan bool, 1)
	go func() { told <- l.await() }()
	reach(t, k, peers(1, false))
	if !<-told {
		t.Error("not told")
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
