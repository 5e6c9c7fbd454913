package kernel

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// TestSurvey: what is others' and in the network is found, and what is ours is
// not but for our devices' addresses; nothing is changed by it.
func TestSurvey(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	kerneltest.Do(t, ns, func() error {
		// What the kernel gives to a new interface by itself comes when it pleases.
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("1"), 0); err != nil {
			return err
		}
		up := func(l netlink.Link, addrs ...string) error {
			err := netlink.LinkAdd(l)
			for _, a := range addrs {
				err = errors.Join(err, netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: 0x02})) // IFA_F_NODAD
			}
			return errors.Join(err, netlink.LinkSetUp(l))
		}
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		vx := func(name string, vni, port int, local string) *netlink.Vxlan {
			return &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: name}, VxlanId: vni, Port: port, SrcAddr: net.ParseIP(local), Learning: true}
		}
		err := errors.Join(
			up(br, "10.5.200.1/24", "192.0.2.1/24", "fd00:10:5:9::1/64"),
			up(vx("flannel.9", 9, 8472, "192.0.2.1"), "10.5.9.0/32"),
			netlink.LinkAdd(vx("vx6", 1, 4789, "2001:db8::1")),
			netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "any"}, FlowBased: true, Port: 6081}),
		)
		if err != nil {
			return err
		}
		onlink := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.0.0.0/8")), LinkIndex: br.Index, Gw: net.IP{192, 0, 2, 9}, Protocol: 4}
		both := []*netlink.NexthopInfo{{LinkIndex: br.Index, Gw: net.IP{192, 0, 2, 9}}, {LinkIndex: br.Index, Gw: net.IP{192, 0, 2, 8}}}
		return errors.Join(
			netlink.RouteAdd(onlink),
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.5.201.0/24")), MultiPath: both}),
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.5.202.0/24")), Type: 6}), // RTN_BLACKHOLE
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.6.0.0/16")), LinkIndex: br.Index, Gw: net.IP{192, 0, 2, 9}}),
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), LinkIndex: br.Index, Gw: net.IP{192, 0, 2, 9}}),
		)
	})
	want := peers(2, false)
	want.Put(backend.Address{Dev: "ripstop.1", Prefix: netip.MustParsePrefix("10.5.7.0/32")})
	reach(t, k, want)
	kerneltest.Addressed(t, ns)
	heard := listen(t, k)
	got, err := k.Survey(t.Context(), []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16"), netip.MustParsePrefix("fd00:10:5::/48")})
	if err != nil {
		t.Fatal(err)
	}
	if n := heard().caused; n != 0 {
		t.Errorf("the survey made %d events", n)
	}
	gateway := netip.MustParseAddr("192.0.2.9")
	for _, r := range []backend.HostRoute{
		{Dst: netip.MustParsePrefix("10.5.200.0/24"), Dev: "br0", Protocol: 2},
		{Dst: netip.MustParsePrefix("10.0.0.0/8"), Dev: "br0", Gateway: gateway, Protocol: 4},
		{Dst: netip.MustParsePrefix("10.5.201.0/24"), Dev: "br0", Protocol: 3},
		{Dst: netip.MustParsePrefix("10.5.202.0/24"), Protocol: 3, Nowhere: true},
		{Dst: netip.MustParsePrefix("fd00:10:5:9::/64"), Dev: "br0", Protocol: 2},
	} {
		if !slices.Contains(got.Routes, r) {
			t.Errorf("no route %+v", r)
		}
	}
	if len(got.Routes) != 5 {
		t.Errorf("routes are %+v, want 5", got.Routes)
	}
	ours := false
	for _, a := range got.Addresses {
		ours = ours || a.Ours && a.Dev == "ripstop.1"
	}
	for _, a := range []backend.HostAddress{
		{Prefix: netip.MustParsePrefix("10.5.200.1/24"), Dev: "br0"},
		{Prefix: netip.MustParsePrefix("10.5.9.0/32"), Dev: "flannel.9"},
		{Prefix: netip.MustParsePrefix("fd00:10:5:9::1/64"), Dev: "br0"},
	} {
		if !slices.Contains(got.Addresses, a) {
			t.Errorf("no address %+v in %+v", a, got.Addresses)
		}
	}
	if !ours || len(got.Addresses) != 4 {
		t.Errorf("addresses are %+v, want 4, one of them ours", got.Addresses)
	}
	tunnels := []backend.Tunnel{
		{Name: "flannel.9", VNI: 9, Port: 8472}, {Name: "vx6", VNI: 1, Port: 4789, V6: true}, {Name: "any", Port: 6081, Exclusive: true, Odd: "collects metadata"},
	}
	for i := range got.Tunnels {
		if got.Tunnels[i].MAC == (backend.MAC{}) {
			t.Errorf("%s has no MAC", got.Tunnels[i].Name)
		}
		got.Tunnels[i].MAC = backend.MAC{} // The kernel's choice.
	}
	if !slices.Equal(got.Tunnels, tunnels) {
		t.Errorf("tunnels are %+v, want %+v", got.Tunnels, tunnels)
	}
}

// TestForwardingOverNetlink: links that do not forward are found, made to, and what
// a hand changes in /proc/sys is announced, as is a link that comes.
func TestForwardingOverNetlink(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	setForwarding := func(link, value string) {
		kerneltest.Do(t, ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/"+link+"/forwarding", []byte(value), 0) })
	}
	setForwarding("default", "0")
	bridge := func(name string) {
		kerneltest.Do(t, ns, func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}) })
	}
	reach(t, k, peers(1, false))
	bridge("br0")
	kick := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- k.WatchSettings(ctx, func() {
			select {
			case kick <- struct{}{}:
			default:
			}
		})
	}()
	kicked := func(what string) {
		t.Helper()
		select {
		case <-kick:
		case <-time.After(patience):
			t.Fatalf("not told: %s", what)
		}
	}
	links := func(want ...string) {
		t.Helper()
		all, err := k.Links(t.Context())
		var got []string
		for _, l := range all {
			if l.NoForwarding {
				got = append(got, l.Name)
			}
		}
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("links that do not forward are %v, want %v: %v", got, want, err)
		}
	}
	kicked("at first")
	links("br0")
	if err := k.Forward(t.Context(), "br0"); err != nil {
		t.Fatal(err)
	}
	links()
	if err := k.Forward(t.Context(), "gone0"); err != nil {
		t.Errorf("a link that is not there: %v", err)
	}
	bridge("br1")
	kicked("a link came")
	links("br1")
	if err := k.Forward(t.Context(), "br1"); err != nil {
		t.Fatal(err)
	}
	for len(kick) > 0 {
		<-kick
	}
	setForwarding("br0", "0")
	kicked("a hand turned it off")
	links("br0")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestLinks: what they are, whose parts, and what addresses they have; ours are left
// out, and the loopback.
func TestLinks(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	reach(t, k, peers(1, false))
	kerneltest.Do(t, ns, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: "eth0", MasterIndex: br.Index})
		veth.PeerName = "eth1"
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		var errs []error
		for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64", "fe80::7/64"} {
			errs = append(errs, netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a))}))
		}
		return errors.Join(errs...)
	})
	links, err := k.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]backend.Link{}
	for _, l := range links {
		got[l.Name] = l
	}
	br0 := got["br0"]
	slices.SortFunc(br0.Addresses, netip.Addr.Compare)
	if want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}; len(got) != 3 || br0.Kind != "bridge" || br0.Port || !slices.Equal(br0.Addresses, want) {
		t.Errorf("links are %+v", got)
	}
	if a, b := got["eth0"], got["eth1"]; a.Kind != "veth" || !a.Port || b.Port || len(b.Addresses) != 0 {
		t.Errorf("links are %+v", got)
	}
}

// TestAdvertised finds links by which a default route by advertisement leaves, and
// no others.
func TestAdvertised(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	kerneltest.Do(t, ns, func() error {
		for i, protocol := range []netlink.RouteProtocol{9, 3} { // RTPROT_RA, RTPROT_BOOT
			br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: []string{"br0", "br1"}[i]}}
			addr := &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix([]string{"2001:db8::1/64", "2001:db8:1::1/64"}[i])), Flags: 0x02}
			err := errors.Join(netlink.LinkAdd(br), netlink.LinkSetUp(br), netlink.AddrAdd(br, addr))
			route := &netlink.Route{
				Dst: ipNet(netip.MustParsePrefix("::/0")), LinkIndex: br.Index, Gw: net.ParseIP([]string{"2001:db8::9", "2001:db8:1::9"}[i]),
				Protocol: protocol, Priority: 1024 + i,
			}
			if err = errors.Join(err, netlink.RouteAdd(route)); err != nil {
				return err
			}
		}
		return nil
	})
	got, err := k.Advertised(t.Context())
	if err != nil || !slices.Equal(got, []string{"br0"}) {
		t.Errorf("links are %v: %v", got, err)
	}
}
