package converge

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
)

// direct is what the n-th peer owes on the link.
func direct(n byte) backend.Entry {
	return backend.Route{
		Dst: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, n, 0}), 24), Plain: true,
		Via: backend.Nexthop{Dev: "eth0", Gateway: netip.AddrFrom4([4]byte{10, 99, 0, n})},
	}
}

// TestPlainRoutesAreBackWithTheirLink: however long the link was away, and so the
// pause before the next try has become.
func TestPlainRoutesAreBackWithTheirLink(t *testing.T) {
	for _, deeds := range [][2]backendtest.Deed{{backendtest.SetDown, backendtest.SetUp}, {backendtest.Destroy, backendtest.Make}, {backendtest.FlushAddresses, ""}} {
		fake := backendtest.NewFake()
		do := func(d backendtest.Deed) {
			t.Helper()
			if err := fake.Link("eth0", d); err != nil {
				t.Fatal(err)
			}
		}
		do(backendtest.Make)
		want := append(owed(2), direct(3), direct(4))
		loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
			l.Update(1, nil, want)
			settle()
			holds(t, fake, want...)
			do(deeds[0])
			if deeds[1] != "" {
				time.Sleep(5 * time.Minute)
				synctest.Wait()
				holds(t, fake, owed(2)...)
				if n := logs.FilterMessage("change failed, will be tried again").Len(); n != 2 {
					t.Errorf("%s: said %d times: %v", deeds[0], n, logs.All())
				}
				do(deeds[1])
			}
			time.Sleep(50 * time.Millisecond)
			synctest.Wait()
			holds(t, fake, want...)
		})
	}
}

// TestSwitchBetweenTunnelAndLinkIsInPlace: the route is replaced once what it
// needs is there, and what it needs no longer goes after that.
func TestSwitchBetweenTunnelAndLinkIsInPlace(t *testing.T) {
	fake := backendtest.NewFake()
	if err := fake.Link("eth0", backendtest.Make); err != nil {
		t.Fatal(err)
	}
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		settle()
		tunnel := peer(2)
		fake.Ops()
		l.Update(2, tunnel, []backend.Entry{direct(2)})
		settle()
		l.Update(3, []backend.Entry{direct(2)}, tunnel)
		settle()
		holds(t, fake, owed(2, 3)...)
		want := []backend.Op{
			{Verb: backend.Replace, Entry: direct(2)},
			{Verb: backend.Delete, Entry: tunnel[2]}, {Verb: backend.Delete, Entry: tunnel[1]}, {Verb: backend.Delete, Entry: tunnel[0]},
			{Verb: backend.Add, Entry: tunnel[0]}, {Verb: backend.Add, Entry: tunnel[1]}, {Verb: backend.Add, Entry: tunnel[2]},
			{Verb: backend.Replace, Entry: tunnel[3]},
		}
		got := fake.Ops()
		if len(got) != len(want) {
			t.Fatalf("ops %v", got)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("op %d is %s, want %s", i, got[i], want[i])
			}
		}
	})
}
