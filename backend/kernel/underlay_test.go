package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// addNIC makes a link that is up, with an address of each family.
func addNIC(name, four, six string) error {
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := errors.Join(netlink.LinkAdd(link), netlink.LinkSetUp(link)); err != nil {
		return err
	}
	for _, a := range []string{four, six} {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
	}
	return nil
}

func TestWay(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	kerneltest.Do(t, ns, func() error {
		if err := errors.Join(addNIC("eth0", "192.0.2.5/24", "2001:db8::5/64"), addNIC("eth1", "198.51.100.5/24", "2001:db8:1::5/64")); err != nil {
			return err
		}
		eth1, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		var errs []error
		for _, r := range []netlink.Route{
			{Dst: ipNet(netip.MustParsePrefix("203.0.113.0/24")), Gw: net.IP{192, 0, 2, 1}, Src: net.IP{198, 51, 100, 5}},
			{Dst: ipNet(netip.MustParsePrefix("2001:db8:2::/48")), Gw: net.ParseIP("2001:db8:1::1"), LinkIndex: eth1.Attrs().Index},
			{Dst: ipNet(netip.MustParsePrefix("203.0.112.0/24")), Type: unix.RTN_BLACKHOLE},
			{Dst: ipNet(netip.MustParsePrefix("203.0.111.0/24")), Type: unix.RTN_UNREACHABLE},
			{Dst: ipNet(netip.MustParsePrefix("203.0.110.0/24")), Type: unix.RTN_PROHIBIT},
			{Dst: ipNet(netip.MustParsePrefix("2001:db8:3::/48")), Type: unix.RTN_UNREACHABLE},
		} {
			errs = append(errs, netlink.RouteAdd(&r))
		}
		return errors.Join(errs...)
	})
	for to, want := range map[string]backend.Way{
		"192.0.2.9":      {Interface: "eth0", Source: netip.MustParseAddr("192.0.2.5")},
		"2001:db8:1::9":  {Interface: "eth1", Source: netip.MustParseAddr("2001:db8:1::5")},
		"203.0.113.9":    {Interface: "eth0", Source: netip.MustParseAddr("198.51.100.5")},
		"2001:db8:2::9":  {Interface: "eth1", Source: netip.MustParseAddr("2001:db8:1::5")},
		"192.0.2.5":      {Interface: "lo", Source: netip.MustParseAddr("192.0.2.5")},
		"127.0.0.1":      {Interface: "lo", Source: netip.MustParseAddr("127.0.0.1")},
		"203.0.112.9":    {},
		"203.0.111.9":    {},
		"203.0.110.9":    {},
		"2001:db8:3::9":  {},
		"10.0.0.1":       {},
		"2001:db8:99::1": {},
	} {
		got, err := k.Way(t.Context(), netip.MustParseAddr(to))
		if err != nil || got != want {
			t.Errorf("to %s: %+v, %v; want %+v", to, got, err, want)
		}
	}
}

// TestWatchInterfaces: what may change the choice of an underlay is told, and what
// cannot is not: our own devices and routes, and others' that lead elsewhere.
func TestWatchInterfaces(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	kerneltest.Do(t, ns, func() error { return addNIC("eth0", "192.0.2.5/24", "2001:db8::5/64") })
	kerneltest.Addressed(t, ns) // Which would be news later.
	target := netip.MustParseAddr("203.0.113.9")
	ctx, cancel := context.WithCancel(t.Context())
	calls, done := make(chan struct{}, 1000), make(chan error, 1)
	go func() {
		done <- k.WatchInterfaces(ctx, func(p netip.Prefix) bool { return p.Contains(target) }, func() { calls <- struct{}{} })
	}()
	told := func(within time.Duration) bool {
		select {
		case <-calls:
			for { // All that one deed causes.
				select {
				case <-calls:
				case <-time.After(20 * time.Millisecond):
					return true
				}
			}
		case <-time.After(within):
			return false
		}
	}
	if !told(patience) {
		t.Fatal("it does not begin")
	}
	eth0 := func() netlink.Link {
		var l netlink.Link
		kerneltest.Do(t, ns, func() (err error) { l, err = netlink.LinkByName("eth0"); return err })
		return l
	}()
	route := func(dst string, protocol int) *netlink.Route {
		return &netlink.Route{Dst: ipNet(netip.MustParsePrefix(dst)), Gw: net.IP{192, 0, 2, 1}, Protocol: netlink.RouteProtocol(protocol)}
	}
	addr := func(a string) *netlink.Addr {
		return &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: unix.IFA_F_NODAD}
	}
	for _, step := range []struct {
		name string
		news bool
		do   func() error
	}{
		{"an address comes", true, func() error { return netlink.AddrAdd(eth0, addr("192.0.2.6/24")) }},
		{"an address goes", true, func() error { return netlink.AddrDel(eth0, addr("192.0.2.6/24")) }},
		{"another MTU", true, func() error { return netlink.LinkSetMTU(eth0, 1400) }},
		{"a default route", true, func() error { return netlink.RouteAdd(route("0.0.0.0/0", 3)) }},
		{"the default route goes", true, func() error { return netlink.RouteDel(route("0.0.0.0/0", 3)) }},
		{"a route to a target", true, func() error { return netlink.RouteAdd(route("203.0.113.0/24", 3)) }},
		{"a route elsewhere", false, func() error { return netlink.RouteAdd(route("203.0.112.0/24", 3)) }},
		{"a route of ours", false, func() error { return netlink.RouteAdd(route("203.0.113.8/29", Protocol)) }},
		{"a route to the link", true, func() error {
			return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.111.0/24")), LinkIndex: eth0.Attrs().Index, Scope: netlink.SCOPE_LINK})
		}},
		{"a rule", true, func() error {
			r := netlink.NewRule()
			r.Table, r.Priority, r.Family = 100, 1000, unix.AF_INET
			return netlink.RuleAdd(r)
		}},
		{"another link", true, func() error { return addNIC("eth1", "198.51.100.5/24", "2001:db8:1::5/64") }},
		{"down", true, func() error { return netlink.LinkSetDown(eth0) }},
		{"deleted", true, func() error { return netlink.LinkDel(eth0) }},
	} {
		kerneltest.Do(t, ns, step.do)
		limit := patience
		if !step.news {
			limit = 100 * time.Millisecond
		}
		if told(limit) != step.news {
			t.Errorf("%s: told is %v", step.name, !step.news)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestWatchInterfacesOutlivesLostEvents: what a burst left out counts as a change.
func TestWatchInterfacesOutlivesLostEvents(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	sock, err := dial(ns, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if err := sock.join(interfaceGroups...); err != nil {
		t.Fatal(err)
	}
	kerneltest.Do(t, ns, func() error { return addNIC("eth0", "192.0.2.5/24", "2001:db8::5/64") })
	kerneltest.Do(t, ns, func() error { // Of which none alone is news.
		var errs []error
		for i := range 200 {
			dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i), 0}), 24)
			errs = append(errs, netlink.RouteAdd(&netlink.Route{Dst: ipNet(dst), Gw: net.IP{192, 0, 2, 1}}))
		}
		return errors.Join(errs...)
	})
	ctx, cancel := context.WithCancel(t.Context())
	calls, done := make(chan struct{}, 1000), make(chan struct{})
	go func() {
		defer close(done)
		k.hearInterfaces(ctx, sock, func(netip.Prefix) bool { return false }, func() { calls <- struct{}{} })
	}()
	select {
	case <-calls:
	case <-time.After(patience):
		t.Error("not told")
	}
	kerneltest.Do(t, ns, func() error { return addNIC("eth1", "198.51.100.5/24", "2001:db8:1::5/64") })
	select {
	case <-calls:
	case <-time.After(patience):
		t.Error("not told of what came after it")
	}
	cancel()
	<-done
	_ = sock.close()
}

// TestOurRoutesAreNotTold: of the routes of many peers none comes to who watches the
// host's interfaces; those of others do.
func TestOurRoutesAreNotTold(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	kerneltest.Do(t, ns, func() error { return addNIC("eth0", "192.0.2.5/24", "2001:db8::5/64") })
	kerneltest.Addressed(t, ns)
	sock, err := dial(ns, interfaceBuffer)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sock.close() }()
	if err := errors.Join(sock.passOverRoutes(), sock.join(interfaceGroups...)); err != nil {
		t.Fatal(err)
	}
	reach(t, k, peers(50, false))
	static := netip.MustParsePrefix("10.1.0.0/24")
	change := func(f func(*netlink.Route) error) {
		kerneltest.Do(t, ns, func() error {
			return f(&netlink.Route{Dst: ipNet(static), Gw: net.IP{192, 0, 2, 1}, Protocol: unix.RTPROT_STATIC})
		})
	}
	change(netlink.RouteAdd)
	reach(t, k, backend.NewState())
	change(netlink.RouteDel)
	var told []string
	for {
		b, err := sock.poll()
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for m := range messages(b) {
			if r, ok := parseRoute(m.body); ok && (m.typ == unix.RTM_NEWROUTE || m.typ == unix.RTM_DELROUTE) && (r.protocol == Protocol || r.protocol == unix.RTPROT_STATIC) {
				told = append(told, fmt.Sprint(m.typ == unix.RTM_NEWROUTE, r.dst))
			}
		}
	}
	if want := []string{fmt.Sprint(true, static), fmt.Sprint(false, static)}; !slices.Equal(told, want) {
		t.Errorf("told of %v, want %v", told, want)
	}
}
