package etcd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// TestRedialRidesOn: connections that are given up are made again at once, a watch
// goes on over the new one, and none is kept in mind that is closed.
func TestRedialRidesOn(t *testing.T) {
	t.Parallel()
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: newPrefix()})
	ctx, cancel := context.WithCancel(t.Context())
	heard, done := make(chan subnet.Change, 100), make(chan error, 1)
	go func() { done <- s.Watch(ctx, func(c subnet.Change) { heard <- c }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	hear := func(what string, is func(subnet.Change) bool) {
		t.Helper()
		limit := time.After(time.Minute)
		for {
			select {
			case c := <-heard:
				if is(c) {
					return
				}
			case <-limit:
				t.Fatalf("not heard: %s", what)
			}
		}
	}
	hear("the listing", func(c subnet.Change) bool { return c.Whole })
	known := func() (n int) {
		s.dialer.mu.Lock()
		defer s.dialer.mu.Unlock()
		return len(s.dialer.open)
	}
	for i := range 5 {
		if n := known(); n != 1 {
			t.Errorf("%d connections are known", n)
		}
		closed := 0
		s.dialer.giveUp(func(local, remote netip.AddrPort) bool {
			closed++
			return !stale(local, remote) // What is right as it is stands for what is not.
		})
		s.client.ActiveConnection().ResetConnectBackoff()
		if closed != 1 {
			t.Errorf("%d connections were looked at", closed)
		}
		l := testLease()
		l.Subnets[subnet.V4] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i + 1), 0}), 24)
		mustWrite(t, s, l)
		hear("what was written after it", func(c subnet.Change) bool { return len(c.Leases) == 1 && c.Leases[0].Subnets == l.Subnets })
		s.Redial() // Of which nothing is stale.
	}
	if o, away := s.Outage(); away || o.Count > 0 {
		t.Errorf("it counts as an outage: %+v", o)
	}
}

// TestStale: a connection is so whose address is not what the host would take now.
func TestStale(t *testing.T) {
	port := func(a string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), 9) }
	for _, tc := range []struct {
		local, remote string
		want          bool
	}{
		{"127.0.0.1", "127.0.0.1", false},
		{"127.0.0.2", "127.0.0.1", true}, // The host has it, and would take another.
		{"192.0.2.1", "127.0.0.1", true}, // The host does not have it.
		{"127.0.0.1", "0.0.0.0", false},  // Which stands for this host.
		{"::1", "::1", false},
		{"2001:db8::1", "::1", true},
	} {
		if got := stale(port(tc.local), port(tc.remote)); got != tc.want {
			t.Errorf("from %s to %s: %v", tc.local, tc.remote, got)
		}
	}
}

// TestGiveUpEndsTries: a try to connect may wait for an answer that goes elsewhere. Where
// the host connects from where it did, the try has its time, however often it is looked.
func TestGiveUpEndsTries(t *testing.T) {
	t.Parallel()
	d := newDialer()
	began := make(chan struct{})
	d.connect = func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := d.note(ctx, network, address, nil); err != nil {
			return nil, err
		}
		close(began)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	done := make(chan error, 1)
	go func() {
		_, err := d.dial(t.Context(), "127.0.0.1:2379")
		done <- err
	}()
	<-began
	for range 200 {
		if d.giveUp(stale) {
			t.Fatal("given up though nothing has changed")
		}
	}
	select {
	case err := <-done:
		t.Fatalf("the try ended: %v", err)
	default:
	}
	d.mu.Lock()
	d.sources[netip.MustParseAddrPort("127.0.0.1:2379")] = netip.MustParseAddr("192.0.2.1") // Where it was.
	d.mu.Unlock()
	if !d.giveUp(stale) {
		t.Error("it is not given up")
	}
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the try goes on")
	}
	if len(d.trying) != 0 {
		t.Errorf("%d tries are known", len(d.trying))
	}
}

// TestAddresses: literal addresses are those that are written, names are looked up.
func TestAddresses(t *testing.T) {
	o := Options{Endpoints: []string{"http://10.0.0.1:2379", "http://[fd99::1]:2379", "http://localhost:2379"}}
	got, err := o.Addresses(t.Context())
	if err != nil || len(got) < 3 || got[0] != netip.MustParseAddr("10.0.0.1") || got[1] != netip.MustParseAddr("fd99::1") || !got[2].IsLoopback() {
		t.Errorf("got %v, %v", got, err)
	}
	o.Endpoints = []string{"http://nowhere.invalid:2379", "http://10.0.0.1:2379"}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if got, err = o.Addresses(ctx); err == nil || len(got) != 1 {
		t.Errorf("got %v, %v", got, err)
	}
}

// TestCutIsAskedAgain: a read that waits for its answer when the node gives up the
// connection goes on over the next one. Where etcd itself is gone, it fails.
func TestCutIsAskedAgain(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}, Prefix: newPrefix()})
	read := func() error {
		ctx, cancel := s.limited(t.Context())
		defer cancel()
		_, err := s.readAll(ctx, clientv3.OpGet(s.epochKey()), clientv3.OpGet(s.ConfigKey()))
		return err
	}
	do := func(what func() error) {
		t.Helper()
		if err := what(); err != nil {
			t.Fatal(err)
		}
	}
	do(read)
	do(srv.Pause)
	done := make(chan error, 1)
	go func() { done <- read() }()
	select {
	case err := <-done:
		t.Fatalf("answered by a store that does not run: %v", err)
	case <-time.After(100 * time.Millisecond): // Most likely it is on its way.
	}
	s.dialer.giveUp(func(_, _ netip.AddrPort) bool { return true })
	s.client.ActiveConnection().ResetConnectBackoff()
	do(srv.Resume)
	if err := <-done; err != nil {
		t.Errorf("what the node cut itself counts as a failure: %v", err)
	}
	do(srv.Kill)
	if err := read(); err == nil {
		t.Error("read from a store that is dead")
	}
}
