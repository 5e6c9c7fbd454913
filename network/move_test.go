package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/network/underlay"
	"github.com/ripstop-net/ripstop/subnet"
)

// isAt tells whether device, record, presence and subnet file say that the node is
// at an address with an MTU of the underlay's.
func (r *rig) isAt(address string, mtu int) bool {
	a := netip.MustParseAddr(address)
	dev, ok := r.kernel.State().Device("ripstop.1")
	_, own := r.own()
	known, living, err := r.store.Known(r.t.Context(), subnet.Living{Token: "another", Node: r.opts.Name})
	env, _ := os.ReadFile(r.opts.SubnetFile)
	return ok && dev.Local == a && dev.MTU == mtu-50 && own.Endpoints[0].PublicIP == a && own.MTU == mtu-50 &&
		err == nil && living && known.Addresses[0] == a && strings.Contains(string(env), fmt.Sprintf("FLANNEL_MTU=%d\n", mtu-50))
}

// renumber gives the rig's interface other addresses.
func (r *rig) renumber(addresses ...string) {
	r.host.become(func() {
		r.host.host[0].Addresses = nil
		for _, a := range addresses {
			r.host.host[0].Addresses = append(r.host.host[0].Addresses, netip.MustParseAddr(a))
		}
	})
}

// anotherAt has another machine known as living at an address.
func (r *rig) anotherAt(node, address string) {
	r.t.Helper()
	other := subnet.Living{Token: "other", Node: node}
	other.Addresses[0] = netip.MustParseAddr(address)
	if _, err := r.store.Appear(r.t.Context(), other); err != nil {
		r.t.Fatal(err)
	}
}

// TestFirewallFollowsTheUnderlay: the packet filter is told where peers send to, also
// where the published address is none of the underlay's, before the device is there.
func TestFirewallFollowsTheUnderlay(t *testing.T) {
	r := newRig(t)
	f := &fakeFirewall{rig: r, try: make(chan struct{}), let: map[netip.Addr]int{}}
	close(f.try)
	r.firewall = f
	r.start()
	r.ready()
	at := func(want ...string) func() bool {
		return func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return fmt.Sprint(f.at[subnet.V4]) == fmt.Sprint(want) && len(f.at[subnet.V6]) == 0
		}
	}
	if !at("10.99.0.1")() {
		t.Errorf("at the start: %v", f.at)
	}
	r.renumber("10.99.0.7")
	r.eventually("it knows of the move", at("10.99.0.7"))
	r.stop()
	r.opts.Underlay.PublicIP[subnet.V4] = netip.MustParseAddr("203.0.113.7")
	r.start()
	r.ready()
	if !at("10.99.0.7", "203.0.113.7")() {
		t.Errorf("with another published address: %v", f.at)
	}
}

// TestNodeFollowsItsUnderlay: all that names the address or the MTU follows, the
// device in place; the subnet stays, and no entry of a peer's is touched.
func TestNodeFollowsItsUnderlay(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	key, before := r.own()
	r.eventually("it is where it starts", func() bool { return r.isAt("10.99.0.1", 1500) && r.reaches(second) })
	r.kernel.Ops()
	for _, step := range []struct {
		addresses []string
		mtu       int
		at        string
	}{
		{[]string{"10.99.0.1", "10.99.0.7"}, 1500, "10.99.0.1"}, // The new comes before the old goes.
		{[]string{"10.99.0.7"}, 1500, "10.99.0.7"},
		{nil, 1500, "10.99.0.7"},
		{[]string{"10.99.0.8"}, 1500, "10.99.0.8"},
		{[]string{"10.99.0.8"}, 1400, "10.99.0.8"},
		{[]string{"10.99.0.8"}, 9000, "10.99.0.8"},
		{[]string{"10.99.0.1"}, 1500, "10.99.0.1"},
	} {
		r.host.become(func() { r.host.host[0].MTU = step.mtu })
		r.renumber(step.addresses...)
		r.eventually(fmt.Sprintf("%v, MTU %d", step.addresses, step.mtu), func() bool { return r.isAt(step.at, step.mtu) && r.reaches(second) })
	}
	for _, op := range r.kernel.Ops() {
		if op.Verb != backend.Replace || op.Entry.Kind() != backend.KindDevice {
			t.Errorf("op %s", op)
		}
	}
	after, own := r.own()
	if after != key || own.Created != before.Created || own.ID != before.ID || !own.SameContent(before) {
		t.Errorf("record %s: %s", after, own.Record())
	}
	if r.said("lease lost") {
		t.Errorf("it lost its lease: %v", r.logs.All())
	}
	r.stop()
	_, saved, _, err := SavedLease(r.opts.StateDir)
	if err != nil || saved != own {
		t.Errorf("saved is %+v, %v", saved, err)
	}
}

// TestUnderlayThatIsGoneIsKept: the status names it, nothing is torn down, and what
// comes then is followed.
func TestUnderlayThatIsGoneIsKept(t *testing.T) {
	for name, tc := range map[string]struct {
		harm, mend func(*fakeHost)
		why        string
		at         string
	}{
		"no address": {
			func(h *fakeHost) { h.host[0].Addresses = nil },
			func(h *fakeHost) { h.host[0].Addresses = []netip.Addr{netip.MustParseAddr("10.99.0.9")} },
			"eth0 has the default route and no global IPv4 address", "10.99.0.9",
		},
		"no default route": {func(h *fakeHost) { h.host[0].DefaultV4 = false }, func(h *fakeHost) { h.host[0].DefaultV4 = true }, "there is no IPv4 default route", "10.99.0.1"},
		"no interface": {
			func(h *fakeHost) { h.host = nil },
			func(h *fakeHost) {
				h.host = []backend.Interface{{Name: "eth5", Up: true, MTU: 1500, Addresses: []netip.Addr{netip.MustParseAddr("10.99.0.5")}, DefaultV4: true}}
			}, "there is no IPv4 default route: name an interface with --iface", "10.99.0.5",
		},
		"down":          {func(h *fakeHost) { h.host[0].Up = false }, func(h *fakeHost) { h.host[0].Up = true }, "eth0 is down or has no carrier", "10.99.0.1"},
		"MTU too small": {func(h *fakeHost) { h.host[0].MTU = 600 }, func(h *fakeHost) { h.host[0].MTU = 1500 }, "interface eth0: MTU 550 is below", "10.99.0.1"},
		"address among the pods'": {
			func(h *fakeHost) { h.host[0].Addresses = []netip.Addr{netip.MustParseAddr("10.5.200.1")} },
			func(h *fakeHost) { h.host[0].Addresses = []netip.Addr{netip.MustParseAddr("10.99.0.3")} },
			"10.5.200.1 is inside the network", "10.99.0.3",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			second := r.join(2)
			r.start()
			r.ready()
			a := r.asked()
			a.well()
			r.eventually("the peer is reached", func() bool { return r.reaches(second) })
			before := r.kernel.State()
			r.kernel.Ops()
			r.host.become(func() { tc.harm(r.host) })
			a.fails(tc.why, status.UnderlayThere)
			a.fails("going on with 10.99.0.1 on eth0", status.UnderlayThere)
			if ops := r.kernel.Ops(); len(ops) != 0 || !r.kernel.State().Equal(before) || !r.isAt("10.99.0.1", 1500) {
				t.Errorf("ops %v", ops)
			}
			r.host.become(func() { tc.mend(r.host) })
			a.well()
			r.eventually("it is where the host is", func() bool { return r.isAt(tc.at, 1500) })
			if gone, back := r.count("underlay does not serve: going on with what it was"), r.count("underlay serves again"); gone != 1 || back != 1 {
				t.Errorf("said %d and %d times", gone, back)
			}
		})
	}
}

// TestMoveWhileTheStoreIsAway: the device follows at once, and the record as soon as
// the store is back.
func TestMoveWhileTheStoreIsAway(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	r.store.Away(true)
	r.renumber("10.99.0.7")
	r.eventually("the device follows", func() bool { d, _ := r.kernel.State().Device("ripstop.1"); return d.Local.String() == "10.99.0.7" })
	r.renumber("10.99.0.8")
	r.eventually("the device follows again", func() bool { d, _ := r.kernel.State().Device("ripstop.1"); return d.Local.String() == "10.99.0.8" })
	r.store.Away(false)
	r.eventually("record and presence follow", func() bool { return r.isAt("10.99.0.8", 1500) })
}

// TestMoveToTheAddressOfAnother: while another machine is known there, the record
// stays as it is, and the node says so.
func TestMoveToTheAddressOfAnother(t *testing.T) {
	r := newRig(t)
	r.store.Renew(10 * time.Millisecond)
	r.start()
	r.ready()
	a := r.asked()
	a.well()
	r.anotherAt("node7", "10.99.0.7")
	r.renumber("10.99.0.7")
	a.fails("public address 10.99.0.7 is still that of node7", status.Undisputed)
	if _, own := r.own(); own.Endpoints[0].PublicIP.String() != "10.99.0.1" {
		t.Errorf("record: %s", own.Record())
	}
	if n := r.count("not ready: the address that this node has now is another machine's"); n != 1 {
		t.Errorf("said %d times", n)
	}
	r.eventually("its name stays its own", func() bool {
		clone := subnet.Living{Token: "clone", Node: "node1"}
		clone.Addresses[0] = netip.MustParseAddr("10.99.0.8")
		_, err := r.store.Appear(t.Context(), clone)
		var twin *subnet.TwinError
		if err == nil {
			t.Fatal("a clone has taken it")
		}
		return errors.As(err, &twin) && twin.Lives
	})
	r.renumber("10.99.0.1")
	r.eventually("back at its own address it is what it was", func() bool { return r.isAt("10.99.0.1", 1500) })
	a.well()
	r.renumber("10.99.0.7")
	a.fails("public address 10.99.0.7 is still that of node7", status.Undisputed)
	r.store.Vanish("node7")
	r.eventually("it follows once the other is gone", func() bool { return r.isAt("10.99.0.7", 1500) })
	a.well()
}

// TestPeersAreJudgedAgain: who is on the underlay's link, and whose address is this
// node's own, changes with the underlay. Routes change in place.
func TestPeersAreJudgedAgain(t *testing.T) {
	for name, config := range map[string]string{
		"direct":  `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}`,
		"host-gw": `{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.onLink()
			if err := r.kernel.Link("eth1", backendtest.Make); err != nil {
				t.Fatal(err)
			}
			r.store.SetConfig([]byte(config))
			join := func(n int, public string) subnet.Lease {
				l := r.join(n)
				l.Endpoints[0].PublicIP = netip.MustParseAddr(public)
				if name == "host-gw" {
					return r.beside("host-gw", n, public)
				}
				r.store.Put(l.Subnets.Key(), l.Record(), true)
				return l
			}
			near, far, same := join(2, "10.99.0.2"), join(3, "10.98.0.3"), join(4, "10.98.0.1")
			elsewhere := func(l subnet.Lease) bool { // Where it is not on the link.
				if name == "direct" {
					return r.reaches(l)
				}
				return !r.kernel.State().Has(directly(l, 0)) && strings.Contains(fmt.Sprint(r.node.Status().Peers.Records), l.Subnets.Key())
			}
			r.start()
			r.ready()
			r.eventually("each by its way", func() bool {
				return r.kernel.State().Has(directly(near, 0)) && elsewhere(far) && elsewhere(same)
			})
			r.kernel.Ops()
			r.host.become(func() {
				r.host.host[0] = backend.Interface{
					Name: "eth1", Up: true, MTU: 1500, DefaultV4: true,
					Addresses: []netip.Addr{netip.MustParseAddr("10.98.0.1")}, OnLink: []netip.Prefix{netip.MustParsePrefix("10.98.0.0/24")},
				}
			})
			over := directly(far, 0)
			over.Via.Dev = "eth1"
			r.eventually("each by the other way", func() bool {
				return r.kernel.State().Has(over) && elsewhere(near) && !r.reaches(same) &&
					strings.Contains(fmt.Sprint(r.node.Status().Peers.Records), "public address 10.98.0.1 is this node's own")
			})
			for _, op := range r.kernel.Ops() {
				of := op.Entry
				if e, ok := of.(backend.Route); ok && e.Dst != same.Subnets[0] && op.Verb != backend.Replace && name == "direct" {
					t.Errorf("not in place: %s", op)
				}
			}
			r.host.become(func() {
				r.host.host[0] = backend.Interface{
					Name: "eth0", Up: true, MTU: 1500, DefaultV4: true,
					Addresses: []netip.Addr{netip.MustParseAddr("10.99.0.1")}, OnLink: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")},
				}
			})
			r.eventually("each by its way again", func() bool {
				return r.kernel.State().Has(directly(near, 0)) && elsewhere(far) && elsewhere(same)
			})
		})
	}
}

// TestSubnetFileThatCannotBeWrittenIsShown, and written once it can be.
func TestSubnetFileThatCannotBeWrittenIsShown(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	a := r.asked()
	a.well()
	// A folder in the file's place cannot be replaced by a file.
	env, err := os.ReadFile(r.opts.SubnetFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(r.opts.SubnetFile), os.MkdirAll(filepath.Join(r.opts.SubnetFile, "full"), 0o755)); err != nil {
		t.Fatal(err)
	}
	r.host.become(func() { r.host.host[0].MTU = 1400 })
	r.eventually("it is said", func() bool {
		return r.count("subnet file not written: new pods get an MTU that is not the underlay's") == 1
	})
	if err := errors.Join(os.RemoveAll(r.opts.SubnetFile), os.WriteFile(r.opts.SubnetFile, env, 0o644)); err != nil {
		t.Fatal(err)
	}
	a.fails("write the subnet file", status.SubnetFile)
	r.eventuallyIn(3*fileAgain, "it is written", func() bool { return r.isAt("10.99.0.1", 1400) })
	a.well()
}

// TestMovesAreRationed: an underlay that goes to and fro costs the store a bounded
// number of writes.
func TestMovesAreRationed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := ration{mostMoves, time.Now()}
		moves := 0
		for began := time.Now(); time.Since(began) < time.Minute; {
			if wait := r.take(time.Now()); wait > 0 {
				time.Sleep(wait)
				continue
			}
			moves++
		}
		if want := mostMoves + int(time.Minute/moveEvery); moves < want-1 || moves > want+1 {
			t.Errorf("%d moves in a minute, want about %d", moves, want)
		}
		time.Sleep(time.Minute)
		for range mostMoves {
			if wait := r.take(time.Now()); wait > 0 {
				t.Errorf("after a calm minute it waits for %s", wait)
			}
		}
	})
}

// TestHostThatCannotBeReadIsSaidOnce, and is looked at again.
func TestHostThatCannotBeReadIsSaidOnce(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	r.host.become(func() { r.host.failing = errors.New("no buffer") })
	r.eventually("it is said", func() bool { return r.said("underlay cannot be looked at, trying on") })
	r.host.become(func() {})
	r.host.become(func() { r.host.host[0].Addresses = []netip.Addr{netip.MustParseAddr("10.99.0.7")} })
	r.host.mu.Lock()
	r.host.failing = nil // Nobody is told.
	r.host.mu.Unlock()
	r.eventually("it follows", func() bool { return r.isAt("10.99.0.7", 1500) })
	if n := r.count("underlay cannot be looked at, trying on"); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// redialled is a store that counts how often its connections were to be given up.
type redialled struct {
	counting
	times atomic.Int32
}

func (s *redialled) Redial() { s.times.Add(1) }

// TestPodsThatComeAreNoNews: hundreds of interfaces with addresses and routes of their
// own, some of the underlay's prefix, have a node with tunnels plan nothing and say nothing,
// whether its underlay serves or not.
func TestPodsThatComeAreNoNews(t *testing.T) {
	for name, gone := range map[string]bool{"serves": false, "gone": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.onLink()
			second := r.join(2)
			r.start()
			r.ready()
			r.eventually("the peer is reached", func() bool { return r.reaches(second) })
			if gone {
				r.host.become(func() { r.host.host[0].DefaultV4 = false })
				r.eventually("it is said", func() bool { return r.said("underlay does not serve") })
			}
			r.eventually("the loop has said what it did", func() bool { return r.count("forwarding state changed") == 1 })
			lines := r.logs.Len()
			r.kernel.Ops()
			for i := range 200 {
				looks := r.host.looks.Load()
				r.host.become(func() {
					pod := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 0, byte(20 + i)}), 32)
					r.host.host = append(r.host.host, backend.Interface{
						Name: fmt.Sprint("veth", i), Up: true, MTU: 1500, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{169, 254, 1, byte(i)})}, OnLink: []netip.Prefix{pod},
					})
					r.host.host[0].OnLink = append(r.host.host[0].OnLink, pod) // It is another with each.
				})
				if i%20 == 19 { // So that it looks at some of them, however many come in between.
					r.eventually("it has looked", func() bool { return r.host.looks.Load() > looks })
				}
			}
			time.Sleep(2 * settling)
			if ops := r.kernel.Ops(); len(ops) > 0 || r.logs.Len() != lines { // A move is a line.
				t.Errorf("%d ops, lines: %v", len(ops), r.logs.All()[lines:])
			}
		})
	}
}

// TestFamiliesMoveApart: a site that one family cannot use does not hold up the other.
func TestFamiliesMoveApart(t *testing.T) {
	c, err := parseConfig([]byte(`{"EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:10:5::/48"}`))
	if err != nil {
		t.Fatal(err)
	}
	m := &mover{n: &Node{}, p: prepared{config: c.config, options: c.options}}
	host := func(four, six string, mtu int) underlay.Host {
		return underlay.Host{Interfaces: []backend.Interface{
			{Name: "eth0", Up: true, MTU: 1500, Addresses: []netip.Addr{netip.MustParseAddr(four)}, DefaultV4: true},
			{Name: "eth1", Up: true, MTU: mtu, Addresses: []netip.Addr{netip.MustParseAddr(six)}, DefaultV6: true},
		}}
	}
	start := host("10.99.0.1", "fd99::1", 1500)
	choice, err := underlay.Choose(underlay.Wish{}, c.config.Families(), start)
	if err != nil {
		t.Fatal(err)
	}
	before, err := newSite(plan.Self{Node: "node1"}, c.config, c.options, choice)
	if err != nil {
		t.Fatal(err)
	}
	for what, to := range map[string]struct {
		host      underlay.Host
		four, six string
		troubled  subnet.Family
	}{
		"an IPv6 address among the pods'": {host("10.99.0.7", "fd00:10:5:7::1", 1500), "10.99.0.7", "fd99::1", subnet.V6},
		"an MTU too small for IPv6":       {host("10.99.0.7", "fd99::7", 1000), "10.99.0.7", "fd99::1", subnet.V6},
		"an IPv4 address among the pods'": {host("10.5.7.1", "fd99::7", 1500), "10.99.0.1", "fd99::7", subnet.V4},
	} {
		after := m.follow(before, to.host)
		if got := after.public; got != (subnet.PerFamily[netip.Addr]{netip.MustParseAddr(to.four), netip.MustParseAddr(to.six)}) {
			t.Errorf("%s: it is at %v", what, got)
		}
		for _, f := range subnet.Families {
			if is := after.choice[f].Trouble; (is != "") != (f == to.troubled) {
				t.Errorf("%s: %s: trouble %q", what, f, is)
			}
		}
		if back := m.follow(after, start); back.public != before.public || back.choice[subnet.V4].Trouble+back.choice[subnet.V6].Trouble != "" {
			t.Errorf("%s, and back: %+v", what, back.choice)
		}
	}
}

// TestStoreIsRedialled when addresses or routes change: what is connected from an
// address that is gone would not notice for long.
func TestStoreIsRedialled(t *testing.T) {
	r := newRig(t)
	store := &redialled{}
	r.tune = func(n *Node) {
		store.counting = n.store.Store.(counting)
		n.store.Store = store
	}
	r.start()
	r.ready()
	r.eventually("it has looked", func() bool { return store.times.Load() == 1 })
	for i, change := range []func(*backend.Interface){
		func(e *backend.Interface) { e.Addresses = []netip.Addr{netip.MustParseAddr("10.99.0.7")} },
		func(e *backend.Interface) { e.Addresses = nil },
		func(e *backend.Interface) { e.Tentative = true },
		func(e *backend.Interface) { e.Tentative = false },
		func(e *backend.Interface) { e.DefaultV4 = false },
	} {
		r.host.become(func() { change(&r.host.host[0]) })
		r.eventually("it is redialled", func() bool { return store.times.Load() == int32(i+2) })
		r.host.become(func() {}) // Of which nothing comes.
	}
	r.host.become(func() { r.host.host = append(r.host.host, backend.Interface{Name: "eth9"}) })
	r.eventually("it is redialled once more", func() bool { return store.times.Load() == 7 })
}

// TestOneLongLookIsNoRest: what looking takes is bounded where each look takes long, and
// one that waited for a lock delays nothing.
func TestOneLongLookIsNoRest(t *testing.T) {
	var m mover
	const ms = time.Millisecond
	for i, look := range []struct{ took, rest time.Duration }{
		{ms, 0}, {ms, 20 * ms}, {300 * ms, 20 * ms}, {ms, 20 * ms}, {300 * ms, 20 * ms}, {200 * ms, 4 * time.Second}, {time.Second, 4 * time.Second}, {2 * time.Second, longestRest},
	} {
		if rest := m.rest(look.took); rest != look.rest {
			t.Errorf("after look %d, which took %s, a rest of %s, want %s", i, look.took, rest, look.rest)
		}
	}
}
