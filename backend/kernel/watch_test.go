package kernel

import (
	"context"
	"errors"
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
	calls, socks, done := make(chan struct{}, 10), make(chan *socket, 10), make(chan error, 1)
	tries := 0
	subscribe := func(ctx context.Context) (*watcher, error) {
		if tries++; tries == 2 {
			return nil, unix.EMFILE
		}
		w, err := k.subscribe(ctx)
		if err == nil {
			socks <- w.sock
		}
		return w, err
	}
	go func() { done <- watch(ctx, subscribe, func() { calls <- struct{}{} }) }()
	await := func(what string) {
		t.Helper()
		select {
		case <-calls:
		case <-time.After(5 * time.Second):
			t.Fatalf("no call: %s", what)
		}
	}
	await("at the beginning")
	_ = (<-socks).close()
	await("when it has subscribed again")
	run(t, k, backend.Add, device(false))
	await("on a change after that")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestWatchSaysWhyItCannotBegin(t *testing.T) {
	err := watch(t.Context(), func(context.Context) (*watcher, error) { return nil, unix.EMFILE }, nil)
	if !errors.Is(err, unix.EMFILE) {
		t.Fatalf("error is %v", err)
	}
}

// TestWatchIsSilentAboutOthers makes changes of others' and then one of ours:
// just that one may be heard.
func TestWatchIsSilentAboutOthers(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	w, err := k.subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.sock.close() }()
	kerneltest.Do(t, ns, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		return errors.Join(netlink.LinkAdd(br), netlink.LinkSetUp(br),
			netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(peerPrefix)}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: ipNet(peerPrefix.Masked()), Protocol: unix.RTPROT_STATIC, Priority: 7}),
			netlink.LinkDel(br))
	})
	heard, all := 0, 0
	count := func() {
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			stop := w.sock.until(ctx, 0)
			b, err := w.sock.receive(ctx)
			stop()
			cancel()
			if err != nil {
				return
			}
			if all++; w.concerns(b) {
				heard++
			}
		}
	}
	count()
	if all < 5 || heard > 0 {
		t.Fatalf("of %d datagrams about others' things %d concern us", all, heard)
	}
	run(t, k, backend.Add, device(false))
	if count(); heard == 0 {
		t.Fatal("silent about our own device")
	}
	if len(w.ours) != 1 {
		t.Fatalf("knows %d devices of ours", len(w.ours))
	}
	kerneltest.Do(t, ns, func() error { // Renamed away, and no longer ours.
		l, err := netlink.LinkByName(device(false).Name)
		if err == nil {
			err = netlink.LinkSetName(l, "away")
		}
		return err
	})
	before := heard
	if count(); heard == before || len(w.ours) != 0 {
		t.Fatalf("heard of the renaming: %t; knows %d devices of ours", heard > before, len(w.ours))
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
