package kernel

import (
	"net"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

func TestInterfaces(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	kerneltest.Do(t, ns, func() error {
		index := map[string]int{}
		add := func(l netlink.Link, addrs ...string) error {
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
			index[l.Attrs().Name] = l.Attrs().Index
			for _, a := range addrs {
				addr := &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: 0x02} // IFA_F_NODAD
				if err := netlink.AddrAdd(l, addr); err != nil {
					return err
				}
			}
			return nil
		}
		up := func(name string) error {
			return netlink.LinkSetUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index[name]}})
		}
		dflt := func(via string, metric int, names ...string) error {
			r := &netlink.Route{Dst: ipNet(netip.MustParsePrefix("0.0.0.0/0")), Priority: metric, Gw: netip.MustParseAddr(via).AsSlice()}
			if r.Gw.To4() == nil {
				r.Dst = ipNet(netip.MustParsePrefix("::/0"))
			}
			if len(names) == 1 {
				r.LinkIndex, r.Flags = index[names[0]], int(netlink.FLAG_ONLINK)
				return netlink.RouteAdd(r)
			}
			for _, n := range names {
				r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: index[n], Gw: r.Gw, Flags: int(netlink.FLAG_ONLINK)})
			}
			r.Gw = nil
			return netlink.RouteAdd(r)
		}
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 9000}, PeerName: "eth1"}
		for _, err := range []error{
			add(veth, "192.0.2.5/24", "192.0.2.4/24", "2001:db8::5/64"),
			add(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0", MTU: 1500}}, "198.51.100.1/24"),
			add(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br1", MTU: 1500}}),
			up("eth0"), up("br0"),
		} {
			if err != nil {
				return err
			}
		}
		peer, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(peer); err != nil {
			return err
		}
		for _, err := range []error{
			dflt("192.0.2.1", 50, "br0"),
			dflt("192.0.2.1", 20, "eth0", "br0"),
			dflt("2001:db8::1", 300, "eth0"),
			// On the link by the operator's word, and behind a gateway.
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.0/24")), LinkIndex: index["eth0"], Scope: netlink.SCOPE_LINK}),
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.112.0/24")), LinkIndex: index["eth0"], Gw: net.IP{192, 0, 2, 1}}),
		} {
			if err != nil {
				return err
			}
		}
		return nil
	})
	reach(t, k, peers(1, false))
	kerneltest.Do(t, ns, func() error { // As a host's own addresses come: they are tentative for a second.
		eth1, err := netlink.LinkByName("eth1")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(eth1, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("2001:db8:9::1/64"))})
	})
	by := map[string]backend.Interface{}
	// A carrier is noted a moment later (linkwatch_do_dev).
	for end := time.Now().Add(5 * time.Second); !by["eth0"].Up && time.Now().Before(end); {
		got, err := k.Interfaces(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range got {
			by[i.Name] = i
		}
	}
	if _, ok := by["ripstop.1"]; ok {
		t.Error("our own device is among them")
	}
	if eth1 := by["eth1"]; !eth1.Tentative || len(eth1.Addresses) != 1 {
		t.Errorf("eth1: %+v", eth1)
	}
	for _, want := range []backend.Interface{
		{Name: "lo", Up: true, MTU: 65536},
		{Name: "eth0", Up: true, MTU: 9000, DefaultV4: true, DefaultV6: true, Addresses: []netip.Addr{
			netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("192.0.2.4"), netip.MustParseAddr("2001:db8::5"),
		}, OnLink: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/64")}},
		{Name: "br0", MTU: 1500, DefaultV4: true, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
			OnLink: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
		{Name: "br1", MTU: 1500},
	} {
		if want.Name == "br0" { // Without a port it is down, but for a moment.
			want.Up = by[want.Name].Up
		}
		if !reflect.DeepEqual(by[want.Name], want) {
			t.Errorf("have %+v\nwant %+v", by[want.Name], want)
		}
	}
}
