package network

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// TestGraceOfAMovedPeer: the address that a peer has left is let in for a time, and no
// longer where the peer goes, or where nothing proves that it is the same; and for as
// long as another is at it.
func TestGraceOfAMovedPeer(t *testing.T) {
	const a, b, c = "198.18.0.1", "198.18.7.7", "198.18.8.8"
	moved := func(peer int, to string) subnet.Lease {
		l := oneOfMany(peer)
		l.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr(to)
		return l
	}
	another := moved(1, b)
	another.Node = "another"
	nameless := moved(1, b)
	nameless.Node = ""
	gone := subnet.Change{Gone: []string{oneOfMany(1).Subnets.Key()}}
	is := func(l ...subnet.Lease) subnet.Change { return subnet.Change{Leases: l} }
	type step struct {
		change subnet.Change
		after  time.Duration // Of rest.
		want   string
	}
	const half = movedGrace / 2
	for name, steps := range map[string][]step{
		"moves":                      {{is(moved(1, b)), 0, "a1 b1"}, {is(), movedGrace - 1, "a1 b1"}, {is(), 1, "b1"}},
		"moves twice":                {{is(moved(1, b)), half, "a1 b1"}, {is(moved(1, c)), half, "b1 c1"}, {is(), half, "c1"}},
		"moves and comes back":       {{is(moved(1, b)), half, "a1 b1"}, {is(moved(1, a)), 0, "a2 b1"}, {is(), half, "a1 b1"}, {is(), half, "a1"}},
		"moves and goes":             {{is(moved(1, b)), half, "a1 b1"}, {gone, 0, ""}},
		"another comes where it was": {{is(moved(1, b)), half, "a1 b1"}, {is(moved(2, a)), 0, "a2 b1"}, {is(), half, "a1 b1"}},
		"another in its place":       {{is(another), 0, "b1"}},
		"one without a name":         {{is(nameless), 0, "b1"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, kernel := followerAmongMany(t)
				filter := &fakeFirewall{rig: &rig{kernel: kernel}, let: map[netip.Addr]int{}}
				f.firewall = filter
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- f.graces(ctx) }()
				defer func() {
					cancel()
					if err := <-done; err != nil {
						t.Error(err)
					}
				}()
				f.follow(subnet.Change{Whole: true, Revision: 1, Leases: []subnet.Lease{oneOfMany(1)}})
				for i, s := range steps {
					s.change.Revision = int64(i + 2)
					f.follow(s.change)
					time.Sleep(s.after)
					synctest.Wait()
					got := ""
					for _, at := range []struct{ name, addr string }{{"a", a}, {"b", b}, {"c", c}} {
						if n := filter.lent(at.addr); n > 0 {
							got += fmt.Sprint(" ", at.name, n)
						}
					}
					if got != "" {
						got = got[1:]
					}
					if got != s.want {
						t.Errorf("step %d: it lets in %q, want %q", i+1, got, s.want)
					}
				}
			})
		})
	}
}

// TestGracesAreBounded: a whole network that moves at once fills no more than there is
// room for, and nothing is kept when all is over.
func TestGracesAreBounded(t *testing.T) {
	f, kernel := followerAmongMany(t)
	filter := &fakeFirewall{rig: &rig{kernel: kernel}, let: map[netip.Addr]int{}}
	f.firewall = filter
	const mostMoved, more = 1024, 200
	f.mostMoved = mostMoved
	listing := func(network byte, revision int64) subnet.Change {
		c := subnet.Change{Whole: true, Revision: revision}
		for n := range mostMoved + more {
			l := oneOfMany(n)
			at := l.Endpoints[subnet.V4].PublicIP.As4()
			at[1] = network
			l.Endpoints[subnet.V4].PublicIP = netip.AddrFrom4(at)
			c.Leases = append(c.Leases, l)
		}
		return c
	}
	f.follow(listing(18, 1))
	f.follow(listing(19, 2))
	if len(filter.let) != 2*mostMoved+more || len(f.left) != mostMoved {
		t.Errorf("it lets in %d addresses, and %d wait", len(filter.let), len(f.left))
	}
	was := func(n int) netip.Addr { return listing(18, 1).Leases[n].Endpoints[subnet.V4].PublicIP }
	if filter.let[was(0)] != 0 || filter.let[was(mostMoved+more-1)] != 1 {
		t.Error("it is not those that waited for longest that are shut out")
	}
	f.storeAway = func() bool { return true }
	if next := f.endGraces(time.Now().Add(movedGrace)); next.IsZero() || len(f.left) != mostMoved {
		t.Errorf("while peers may not be heard of, %d wait until %s", len(f.left), next)
	}
	f.storeAway = func() bool { return false }
	next := f.endGraces(time.Now())
	if wait := time.Until(next); wait <= 0 || wait > movedGrace {
		t.Errorf("the first ends in %s", wait)
	}
	if next := f.endGraces(time.Now().Add(movedGrace)); !next.IsZero() || f.left != nil || len(filter.let) != mostMoved+more {
		t.Errorf("at the end it lets in %d addresses, and %d wait until %s", len(filter.let), len(f.left), next)
	}
}
