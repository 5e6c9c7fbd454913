package network

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/network/underlay"
	"github.com/ripstop-net/ripstop/subnet"
)

// TestStepTo: peers are told first where packets have a way by the old address
// meanwhile and peers can be told; else nothing is waited for that does not mend it.
func TestStepTo(t *testing.T) {
	at := func(four, six string) (s site) {
		for f, a := range []string{four, six} {
			if a != "" {
				s.choice[f].Local, s.choice[f].Public = netip.MustParseAddr(a), netip.MustParseAddr(a)
			}
		}
		return s
	}
	nat := func(s site, public string) site {
		s.choice[subnet.V4].Public = netip.MustParseAddr(public)
		return s
	}
	const a4, b4, a6, b6 = "10.99.0.1", "10.98.0.1", "fd99::1", "fd98::1"
	nic := func(name string, up bool, addresses ...string) backend.Interface {
		i := backend.Interface{Name: name, Up: up, MTU: 1500}
		for _, a := range addresses {
			i.Addresses = append(i.Addresses, netip.MustParseAddr(a))
		}
		return i
	}
	host := func(nics ...backend.Interface) underlay.Host { return underlay.Host{Interfaces: nics} }
	away := func(h underlay.Host) underlay.Host { h.StoreAway = true; return h }
	tentative := func(i backend.Interface) backend.Interface { i.Tentative = true; return i }
	both := host(nic("eth0", true, a4, a6), nic("eth1", true, b4, b6))
	larger := at(a4, a6)
	larger.choice[subnet.V4].MTU = 9000
	for name, tc := range map[string]struct {
		from, to site
		host     underlay.Host
		told     bool
		want     step
	}{
		"another NIC, both serve":                    {at(a4, a6), at(b4, b6), both, false, peersFirst},
		"one family of two":                          {at(a4, a6), at(b4, a6), both, false, peersFirst},
		"IPv6 alone":                                 {at("", a6), at("", b6), both, false, peersFirst},
		"another address of one NIC":                 {at(a4, ""), at(b4, ""), host(nic("eth0", true, a4, b4)), false, peersFirst},
		"the address is on another NIC by now":       {at(a4, ""), at(b4, ""), host(nic("eth0", true), nic("eth1", true, b4, a4)), false, peersFirst},
		"the old address is gone":                    {at(a4, ""), at(b4, ""), host(nic("eth0", true, b4)), false, atOnce},
		"the old NIC is gone":                        {at(a4, ""), at(b4, ""), host(nic("eth1", true, b4)), false, atOnce},
		"the old NIC has no carrier":                 {at(a4, ""), at(b4, ""), host(nic("eth0", false, a4), nic("eth1", true, b4)), false, atOnce},
		"one of two old addresses is gone":           {at(a4, a6), at(b4, b6), host(nic("eth0", true, a4), nic("eth1", true, b4, b6)), false, atOnce},
		"the old one of a family that stays is gone": {at(a4, a6), at(b4, a6), host(nic("eth0", true, a4), nic("eth1", true, b4)), false, peersFirst},
		"another MTU":                                {at(a4, a6), larger, both, false, atOnce},
		"behind a NAT, which peers send to":          {nat(at(a4, ""), "203.0.113.7"), nat(at(b4, ""), "203.0.113.7"), both, false, atOnce},
		"the store is away":                          {at(a4, ""), at(b4, ""), away(both), false, whenStoreAnswers},
		"and the old address is gone":                {at(a4, ""), at(b4, ""), away(host(nic("eth1", true, b4))), false, atOnce},
		"the store is away, another MTU":             {at(a4, a6), larger, away(both), false, atOnce},
		"the new address is looked for on the link":  {at("", a6), at("", b6), host(nic("eth0", true, a6), tentative(nic("eth1", true, b6))), false, whenUnique},
		"and the old one is gone":                    {at("", a6), at("", b6), host(tentative(nic("eth1", true, b6))), false, atOnce},
		"IPv4 beside such a one":                     {at(a4, ""), at(b4, ""), host(nic("eth0", true, a4), tentative(nic("eth1", true, b4, b6))), false, peersFirst},
		"another of the old NIC's":                   {at("", a6), at("", b6), host(tentative(nic("eth0", true, a6)), nic("eth1", true, b6)), false, peersFirst},
		"peers have been told, the store is away":    {at(a4, ""), at(b4, ""), away(both), true, peersFirst},
		"and the new address is looked for":          {at("", a6), at("", b6), away(host(nic("eth0", true, a6), tentative(nic("eth1", true, b6)))), true, whenUnique},
		"behind a NAT, and its old address is gone":  {nat(at(a4, a6), "203.0.113.7"), nat(at(b4, b6), "203.0.113.7"), host(nic("eth0", true, a6), nic("eth1", true, b4, b6)), false, atOnce},
	} {
		if got := stepTo(tc.from, tc.to, subnet.Families[:], tc.host, tc.told); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// movesBeside gives the rig an underlay that goes over to 10.99.0.7 when the host gets
// that, whatever else it has.
func (r *rig) movesBeside() {
	r.opts.Underlay.Ifaces = []string{"10.99.0.7", "eth0"}
}

func (r *rig) deviceAt(address string) func() bool {
	return func() bool {
		d, _ := r.kernel.State().Device("ripstop.1")
		return d.Local.String() == address
	}
}

func (r *rig) recordAt(address string) func() bool {
	return func() bool {
		_, own := r.own()
		return own.Endpoints[subnet.V4].PublicIP.String() == address
	}
}

// next is where the status says that the node is, and what is to come.
func (r *rig) next() (at, next string) {
	u := r.node.Status().Underlay
	if len(u) != 1 {
		return "", ""
	}
	return fmt.Sprint(u[0].Address, " ", u[0].Public), u[0].Next
}

// order gives the first of the given lines in the order in which they were said.
func (r *rig) order(lines ...string) (out []string) {
	for _, e := range r.logs.All() {
		if slices.Contains(lines, e.Message) && !slices.Contains(out, e.Message) {
			out = append(out, e.Message)
		}
	}
	return out
}

// TestPeersAreToldFirst: while the old address serves, the record says the new one and
// has been heard of before the device moves; the packet filter knows of both meanwhile.
func TestPeersAreToldFirst(t *testing.T) {
	r := newRig(t)
	r.movesBeside()
	filter := &fakeFirewall{rig: r, try: make(chan struct{}), let: map[netip.Addr]int{}}
	close(filter.try)
	r.firewall = filter
	second := r.join(2)
	r.start()
	r.ready()
	a := r.asked()
	a.well()
	r.eventually("the peer is reached", func() bool { return r.reaches(second) })
	filter.forget()
	r.kernel.Ops()
	r.renumber("10.99.0.1", "10.99.0.7")
	r.eventually("it is at the new address", func() bool { return r.isAt("10.99.0.7", 1500) })
	want := []string{"underlay is to change", "record rewritten", underlayChanged}
	if got := r.order(want...); !slices.Equal(got, want) {
		t.Errorf("said in this order: %q", got)
	}
	r.eventually("nothing is to come", func() bool { at, next := r.next(); return at == "10.99.0.7 10.99.0.7" && next == "" })
	if got := filter.places(); !slices.Equal(got, []string{"[10.99.0.1 10.99.0.7]", "[10.99.0.7]"}) {
		t.Errorf("the packet filter was told of %v", got)
	}
	for _, op := range r.kernel.Ops() {
		if op.Verb != backend.Replace || op.Entry.Kind() != backend.KindDevice {
			t.Errorf("op %s", op)
		}
	}
	if moves := r.node.Status().UnderlayMoves; moves != 1 {
		t.Errorf("%d moves", moves)
	}
	a.well()
}

// TestMoveWaitsForTheStore: while peers cannot be told, a node stays where it is as long
// as that serves, says so, and goes when the store answers or the old address is gone.
func TestMoveWaitsForTheStore(t *testing.T) {
	for name, back := range map[string]bool{"it answers again": true, "the old address goes": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.movesBeside()
			r.start()
			r.ready()
			r.store.Away(true)
			r.renumber("10.99.0.1", "10.99.0.7")
			const next = "eth0 10.99.0.7 when the store answers, so that peers can be told"
			r.eventually("it says what is to come", func() bool { at, what := r.next(); return at == "10.99.0.1 10.99.0.1" && what == next })
			looks := r.host.looks.Load()
			r.host.become(func() {})
			r.eventually("it has looked again", func() bool { return r.host.looks.Load() > looks+1 })
			if !r.deviceAt("10.99.0.1")() {
				t.Error("its device is at the new address")
			}
			if back {
				r.store.Away(false)
			} else {
				r.renumber("10.99.0.7")
				r.eventually("its device moves at once", r.deviceAt("10.99.0.7"))
				r.store.Away(false)
			}
			r.eventually("it is at the new address", func() bool { return r.isAt("10.99.0.7", 1500) })
			if n := r.count(underlayChanged); n != 1 {
				t.Errorf("said %d times", n)
			}
		})
	}
}

// TestMoveWaitsForTheAddress: where another machine is known at the new address, pods are
// reached by the old one, and the node is ready, until the other is gone, the old address
// is, or the new one.
func TestMoveWaitsForTheAddress(t *testing.T) {
	const taken = "public address 10.99.0.7 is still that of node7"
	for name, end := range map[string]func(*rig, asked){
		"the other goes": func(r *rig, _ asked) {
			r.store.Vanish("node7")
			r.eventually("it is at the new address", func() bool { return r.isAt("10.99.0.7", 1500) })
			want := []string{"underlay is to change", "record rewritten", underlayChanged}
			if got := r.order(want...); !slices.Equal(got, want) {
				r.t.Errorf("said in this order: %q", got)
			}
		},
		"the old address goes": func(r *rig, a asked) {
			r.renumber("10.99.0.7")
			r.eventually("its device moves at once", r.deviceAt("10.99.0.7"))
			a.fails(taken, status.Undisputed)
			if !r.recordAt("10.99.0.1")() {
				r.t.Error("the record names another's address")
			}
		},
		"the new address goes": func(r *rig, _ asked) {
			r.renumber("10.99.0.1")
			r.eventually("nothing is to come", func() bool { at, next := r.next(); return at == "10.99.0.1 10.99.0.1" && next == "" })
			r.eventually("it waits for nothing", func() bool { return r.node.Status().Waiting == nil })
			if !r.isAt("10.99.0.1", 1500) || r.count(underlayChanged) != 0 {
				r.t.Error("it is elsewhere")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.movesBeside()
			r.store.Renew(10 * time.Millisecond)
			r.tune = func(n *Node) { n.pendingFor = 2 * patience }
			r.start()
			r.ready()
			a := r.asked()
			a.well()
			r.anotherAt("node7", "10.99.0.7")
			r.renumber("10.99.0.1", "10.99.0.7")
			r.eventually("it says what it waits for", func() bool {
				w := r.node.Status().Waiting
				_, next := r.next()
				return w != nil && strings.Contains(w.Reason, taken) && next == "eth0 10.99.0.7 when peers know of it"
			})
			a.well()
			if !r.deviceAt("10.99.0.1")() || !r.recordAt("10.99.0.1")() {
				t.Error("device or record are at the new address")
			}
			end(r, a)
		})
	}
}

// TestWherePeersKnowTheNode: a device that had to leave the address that the record names
// goes back there when it can, also while the store is away: peers let in nothing from
// elsewhere.
func TestWherePeersKnowTheNode(t *testing.T) {
	r := newRig(t)
	r.movesBeside()
	r.start()
	r.ready()
	r.renumber("10.99.0.1", "10.99.0.7")
	r.eventually("it is at the new address", func() bool { return r.isAt("10.99.0.7", 1500) })
	r.store.Away(true)
	r.renumber("10.99.0.1")
	r.eventually("its device is at the other", r.deviceAt("10.99.0.1"))
	r.renumber("10.99.0.1", "10.99.0.7")
	r.eventually("its device is where peers know it", r.deviceAt("10.99.0.7"))
	r.store.Away(false)
	r.eventually("nothing is to come", func() bool { at, next := r.next(); return at == "10.99.0.7 10.99.0.7" && next == "" })
}

// TestSlowLooksDelayNoMove: what peers were told holds for a while alone, however long it
// takes to look at the host.
func TestSlowLooksDelayNoMove(t *testing.T) {
	r := newRig(t)
	r.movesBeside()
	r.start()
	r.ready()
	r.host.lag.Store(int64(700 * time.Millisecond))
	r.renumber("10.99.0.1", "10.99.0.7")
	r.eventually("the record says the new address", r.recordAt("10.99.0.7"))
	began := time.Now()
	r.eventually("the device is there", r.deviceAt("10.99.0.7"))
	if took := time.Since(began); took > heardLate {
		t.Errorf("the device followed its record after %s", took)
	}
}

// TestMoveIsGivenUpForAWhile: where the new address is another machine's, the node is kept
// known where it is, so that a record that is lost is claimed again, and tries later.
func TestMoveIsGivenUpForAWhile(t *testing.T) {
	r := newRig(t)
	r.movesBeside()
	r.store.Renew(10 * time.Millisecond)
	r.tune = func(n *Node) { n.pendingFor, n.retryMove = 300*time.Millisecond, time.Second }
	r.start()
	r.ready()
	r.anotherAt("node7", "10.99.0.7")
	r.renumber("10.99.0.1", "10.99.0.7")
	r.eventually("it gives up for a while", func() bool {
		_, next := r.next()
		return next == "eth0 10.99.0.7 later, since peers could not be told"
	})
	key, _ := r.own()
	r.store.Delete(key)
	r.eventually("its record is there again", r.recordAt("10.99.0.1"))
	if !r.deviceAt("10.99.0.1")() {
		t.Error("its device is elsewhere")
	}
	r.store.Vanish("node7")
	r.eventually("it is at the new address", func() bool { return r.isAt("10.99.0.7", 1500) })
	if n := r.count("peers cannot be told that the underlay is to be another: this node stays where it is while that serves"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// TestMoveBackBeforeItIsMade: an underlay that is what it was before the device has moved
// leaves that where it is, and the record says so again.
func TestMoveBackBeforeItIsMade(t *testing.T) {
	r := newRig(t)
	r.movesBeside()
	r.start()
	r.ready()
	moves := r.node.Status().UnderlayMoves
	r.kernel.Ops()
	for range 3 {
		r.renumber("10.99.0.1", "10.99.0.7")
		r.eventually("the record says the new address", r.recordAt("10.99.0.7"))
		r.renumber("10.99.0.1")
		r.eventually("the record says the old one", r.recordAt("10.99.0.1"))
		r.eventually("all is what it was", func() bool { _, next := r.next(); return next == "" && r.isAt("10.99.0.1", 1500) })
	}
	if n := r.node.Status().UnderlayMoves - moves; n > 0 && len(r.kernel.Ops()) == 0 {
		t.Errorf("%d moves and no op", n)
	}
}

// TestMTUOfAMoveThatWaits: until the device has moved, nobody is told of more than both
// interfaces carry.
func TestMTUOfAMoveThatWaits(t *testing.T) {
	mtu := func(n int) (s site) { s.mtu = n; return s }
	for _, tc := range []struct{ at, to, want int }{{1450, 8950, 1450}, {8950, 1450, 1450}} {
		if got := between(mtu(tc.at), mtu(tc.to)); got.mtu != tc.want || !got.between {
			t.Errorf("from %d to %d: %+v", tc.at, tc.to, got)
		}
	}
}
