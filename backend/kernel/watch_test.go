package kernel

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

func TestWatchOpensAFailedSocketAgain(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls, socks, done := make(chan struct{}, 10), make(chan *listener, 10), make(chan error, 1)
	tries := 0
	subscribe := func(ctx context.Context) (*events, error) {
		if tries++; tries == 2 {
			return nil, unix.EMFILE
		}
		e, err := k.subscribe(ctx)
		if err == nil {
			socks <- e.sock
		}
		return e, err
	}
	go func() { done <- k.watch(ctx, subscribe, func() { calls <- struct{}{} }) }()
	await := func(what string) {
		t.Helper()
		select {
		case <-calls:
		case <-time.After(patience):
			t.Fatalf("no call: %s", what)
		}
	}
	await("at the beginning")
	_ = (<-socks).close()
	await("when it has failed")
	await("when it has subscribed again")
	if _, doubt := k.Changes(); !doubt {
		t.Error("no doubt after a time without a socket")
	}
	run(t, k, backend.Add, device(false))
	await("on a change after that")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestWatchBeginsAfterWhatPasses: what comes of the moment does not end the
// daemon, nor does it make a busy loop.
func TestWatchBeginsAfterWhatPasses(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	passing := []error{fmt.Errorf("dump devices: %w", errInterrupted), fmt.Errorf("receive netlink answer: %w", unix.ENOBUFS)}
	var tries []time.Time
	subscribe := func(ctx context.Context) (*events, error) {
		tries = append(tries, time.Now())
		if n := len(tries); n <= len(passing) {
			return nil, passing[n-1]
		}
		return k.subscribe(ctx)
	}
	calls, done := make(chan struct{}, 10), make(chan error, 1)
	go func() { done <- k.watch(ctx, subscribe, func() { calls <- struct{}{} }) }()
	for _, what := range []string{"when it has subscribed", "on a change after that"} {
		select {
		case <-calls:
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		case <-time.After(patience):
			t.Fatalf("no call %s", what)
		}
		if _, doubt := k.Changes(); !doubt {
			t.Errorf("no doubt %s", what)
		}
		run(t, k, backend.Add, device(false))
		k.Changes()
		run(t, k, backend.Delete, device(false))
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if len(tries) != len(passing)+1 || tries[1].Sub(tries[0]) < reopenAfter || tries[2].Sub(tries[1]) < 2*reopenAfter {
		t.Errorf("tried at %v", tries)
	}
}

func TestWatchSaysWhyItCannotBegin(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	err := k.watch(t.Context(), func(context.Context) (*events, error) { return nil, unix.EMFILE }, nil)
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("error is %v", err)
	}
}

// TestChangesAreSilentAboutOthers makes changes of others' and then one of ours:
// just that one may be told of.
func TestChangesAreSilentAboutOthers(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	e, err := k.subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer k.unsubscribe(e)
	if _, doubt := k.Changes(); !doubt {
		t.Fatal("no doubt at the beginning")
	}
	kerneltest.Do(t, ns, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		return errors.Join(netlink.LinkAdd(br), netlink.LinkSetUp(br),
			netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(peerPrefix)}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: ipNet(peerPrefix.Masked()), Protocol: unix.RTPROT_STATIC, Priority: 7}),
			netlink.LinkDel(br))
	})
	if !e.sock.await() {
		t.Fatal("nothing was told")
	}
	if changes, doubt := k.Changes(); doubt || len(changes) > 0 {
		t.Fatalf("told of others' things: %v, doubt %t", changes, doubt)
	}
	run(t, k, backend.Add, device(false))
	if _, doubt := k.Changes(); !doubt || len(e.ours) != 1 {
		t.Fatalf("silent about our own device; knows %d devices of ours", len(e.ours))
	}
	kerneltest.Do(t, ns, func() error { // Renamed away, and no longer ours.
		l, err := netlink.LinkByName(device(false).Name)
		if err == nil {
			err = netlink.LinkSetName(l, "away")
		}
		return err
	})
	if _, doubt := k.Changes(); !doubt || len(e.ours) != 0 {
		t.Fatalf("silent about the renaming; knows %d devices of ours", len(e.ours))
	}
}

// TestRouteTakenByAnotherIsTold: a REPLACE by another protocol is announced as
// that one's, and is the end of ours.
func TestRouteTakenByAnotherIsTold(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			ns := kerneltest.Namespace(t)
			k := openAt(t, ns)
			reach(t, k, peers(2, v6))
			e, err := k.subscribe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer k.unsubscribe(e)
			have, err := k.Dump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			calm(k)
			var ours backend.Route
			for r := range have.OfKind(backend.KindRoute) {
				ours = r.(backend.Route)
			}
			kerneltest.Do(t, ns, func() error {
				return netlink.RouteReplace(&netlink.Route{LinkIndex: 1, Dst: ipNet(ours.Dst), Protocol: unix.RTPROT_STATIC})
			})
			changes, doubt := k.Changes()
			if _, doubt2 := have.Correct(changes); doubt || doubt2 || have.Has(ours) {
				t.Fatalf("doubt %t, changes %v", doubt, changes)
			}
			if now, err := k.Dump(t.Context()); err != nil || !now.Equal(have) {
				t.Fatalf("dump (%v) has\n%s\nmirror has\n%s", err, now, have)
			}
		})
	}
}

// TestDumpAmidChanges dumps while another hand is at work all the time.
func TestDumpAmidChanges(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	reach(t, k, peers(1200, false))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	other := openAt(t, k.ns)
	if _, err := other.Dump(t.Context()); err != nil {
		t.Fatal(err)
	}
	go func() {
		var err error
		hop := backend.Nexthop{Dev: "ripstop.1", Gateway: peerPrefix.Addr()}
		route := backend.Route{Dst: peerPrefix.Masked(), Via: hop}
		for err == nil && ctx.Err() == nil {
			for _, op := range []backend.Op{{Entry: hop}, {Entry: route}, {Verb: backend.Delete, Entry: route}, {Verb: backend.Delete, Entry: hop}} {
				err = errors.Join(err, other.Apply(context.Background(), []backend.Op{op})[0])
			}
		}
		done <- err
	}()
	for range 15 {
		have, err := k.Dump(t.Context())
		if err != nil {
			t.Errorf("dump: %v", err)
			break
		}
		for e := range peers(1200, false).All() {
			if !have.Has(e) {
				t.Fatalf("dump lacks %s", e)
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatalf("outside hand: %v", err)
	}
}
