package subnettest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// hold starts a Hold. Both stop and wait return what it returned.
func hold(t *testing.T, s subnet.Store, l subnet.Lease) (stop, wait func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Hold(ctx, l, nil) }()
	wait = sync.OnceValue(func() error {
		defer cancel()
		return within(done)
	})
	stop = func() error {
		cancel()
		return wait()
	}
	t.Cleanup(func() { _ = stop() })
	return stop, wait
}

// settle gives a Hold the time to begin. What a test asks for must hold
// however far the Hold is; it only is a better test when the Hold has begun.
const settle = 100 * time.Millisecond

func holdCancel(t *testing.T, h Harness) {
	s := h.Open(t)
	l := mustWrite(t, s, testLease(1))
	stop, _ := hold(t, s, l)
	time.Sleep(settle)
	if err := stop(); err != nil {
		t.Errorf("Hold on cancel: %v", err)
	}
	if got := mustList(t, s); len(got.Leases) != 1 || got.Leases[0] != l {
		t.Errorf("after Hold: %+v, want %+v", got.Leases, l)
	}
	stop, _ = hold(t, s, l) // As after a restart.
	time.Sleep(settle)
	if err := stop(); err != nil {
		t.Errorf("second Hold: %v", err)
	}
}

func holdLost(t *testing.T, h Harness) {
	for _, c := range []struct {
		name string
		lose func(key string)
	}{
		{"expired", h.Hand.Expire},
		{"deleted", h.Hand.Delete},
		{"overwritten by another", func(key string) { h.Hand.Put(key, testLease(9).Record(), true) }},
		{"overwritten by a reservation of the same", func(key string) { h.Hand.Put(key, testLease(1).Record(), false) }},
	} {
		for _, pause := range []time.Duration{0, settle} {
			t.Run(fmt.Sprintf("%s after %s", c.name, pause), func(t *testing.T) {
				s := h.Open(t)
				l := mustWrite(t, s, testLease(1))
				t.Cleanup(func() { h.Hand.Delete(l.Subnets.Key()) })
				_, wait := hold(t, s, l)
				time.Sleep(pause)
				c.lose(l.Subnets.Key())
				if err := wait(); !errors.Is(err, subnet.ErrLeaseLost) {
					t.Errorf("Hold: %v, want ErrLeaseLost", err)
				}
			})
		}
	}
}

func holdOwnRewrite(t *testing.T, h Harness) {
	s := h.Open(t)
	l := mustWrite(t, s, testLease(1))
	stop, _ := hold(t, s, l)
	time.Sleep(settle)
	l.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr("192.0.2.100")
	mustWrite(t, s, l)
	time.Sleep(settle)
	if err := stop(); err != nil {
		t.Errorf("Hold across the holder's own write: %v", err)
	}
}

func holdReservation(t *testing.T, h Harness) {
	s := h.Open(t)
	h.Hand.Put("10.5.1.0-24", testLease(1).Record(), false)
	l := mustList(t, s).Leases[0]
	stop, _ := hold(t, s, l)
	time.Sleep(settle)
	if err := stop(); err != nil {
		t.Errorf("Hold of a reservation on cancel: %v", err)
	}
	_, wait := hold(t, s, l)
	time.Sleep(settle)
	h.Hand.Delete(l.Subnets.Key())
	if err := wait(); !errors.Is(err, subnet.ErrLeaseLost) {
		t.Errorf("Hold of a deleted reservation: %v, want ErrLeaseLost", err)
	}
}

func holdSilent(t *testing.T, h Harness) {
	s := h.Open(t)
	l := mustWrite(t, s, testLease(1))
	r := Record(t, h.Open(t))
	r.Next()
	// The store may be others' too, whose leases end when they end; a Hold that writes
	// does so each time.
	for tries := 1; ; tries++ {
		before := mustList(t, s).Revision
		stop, _ := hold(t, s, l)
		r.Silent(500 * time.Millisecond)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		r.Silent(settle)
		got := mustList(t, s).Revision
		if got == before {
			return
		}
		if tries == 20 {
			t.Fatalf("holding moved the store from revision %d to %d, as each time", before, got)
		}
	}
}

func holdUntil(t *testing.T, h Harness) {
	s := h.Open(t)
	l := mustWrite(t, s, testLease(1))
	h.Hand.Put("10.5.2.0-24", testLease(2).Record(), false)
	reserved := mustList(t, s).Leases[1]
	told := make(chan time.Time, 100)
	began := time.Now()
	for _, l := range []subnet.Lease{l, reserved} {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() {
			done <- s.Hold(ctx, l, func(until time.Time) {
				if l.Reservation() {
					t.Error("a reservation is told to end")
				}
				told <- until
			})
		}()
		if l.Reservation() {
			time.Sleep(settle)
		} else {
			select {
			case until := <-told:
				if until.Before(began) || until.After(time.Now().Add(subnet.DefaultLeaseTTL)) {
					t.Errorf("kept until %s, now is %s", until, time.Now())
				}
			case <-time.After(patience):
				t.Error("it is not told")
			}
		}
		cancel()
		if err := within(done); err != nil {
			t.Error(err)
		}
	}
}

// claimants lets 50 nodes claim at once, each by its own client.
func claimants(t *testing.T, h Harness, config string, fail int) {
	const nodes = 50
	cfg, err := subnet.ParseConfig([]byte("{" + config + "}"))
	if err != nil {
		t.Fatal(err)
	}
	stores := make([]subnet.Store, nodes)
	for i := range stores {
		stores[i] = h.Open(t)
	}
	got, errs := make([]subnet.Lease, nodes), make([]error, nodes)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	begin := make(chan struct{})
	var wg sync.WaitGroup
	for i, s := range stores {
		like := testLease(i + 1)
		id := subnet.Identity{Node: like.Node}
		for _, f := range subnet.Families {
			id.PublicIP[f] = like.Endpoints[f].PublicIP
		}
		wg.Go(func() {
			<-begin
			got[i], errs[i] = subnet.Claim(ctx, s, cfg, subnet.Request{Self: id, Backend: "vxlan", Endpoints: like.Endpoints})
		})
	}
	close(begin)
	wg.Wait()
	holder := map[netip.Prefix]string{}
	failed := 0
	for i := range stores {
		var exhausted *subnet.ExhaustedError
		if errors.As(errs[i], &exhausted) {
			failed++
			continue
		}
		if errs[i] != nil {
			t.Fatalf("claimant %d: %v", i, errs[i])
		}
		for _, f := range cfg.Families() {
			p := got[i].Subnets[f]
			if other, taken := holder[p]; taken {
				t.Fatalf("%s and %s both hold %s", other, got[i].Node, p)
			}
			holder[p] = got[i].Node
		}
	}
	if failed != fail {
		t.Fatalf("%d claimants found no subnet, want %d", failed, fail)
	}
	listed := mustList(t, stores[0])
	if len(listed.Leases) != nodes-fail {
		t.Fatalf("%d leases are listed, want %d", len(listed.Leases), nodes-fail)
	}
	for _, l := range listed.Leases {
		if holder[l.Subnets[subnet.V4]] != l.Node {
			t.Errorf("%s is %s's, but was given to %s", l.Subnets, l.Node, holder[l.Subnets[subnet.V4]])
		}
	}
}
