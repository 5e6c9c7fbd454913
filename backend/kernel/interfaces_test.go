package kernel

import (
	"errors"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// TestAddressesToBeGivenUp are an interface's last choice.
func TestAddressesToBeGivenUp(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	add := func(address string, deprecated bool) {
		t.Helper()
		kerneltest.Do(t, ns, func() error {
			link, err := netlink.LinkByName("br0")
			if err != nil {
				br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
				err, link = netlink.LinkAdd(br), br
			}
			a := &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(address)), Flags: unix.IFA_F_NODAD}
			if deprecated {
				a.ValidLft = 1000 // And preferred for no time.
			}
			return errors.Join(err, netlink.AddrAdd(link, a))
		})
	}
	has := func(want ...string) {
		t.Helper()
		all, err := k.Interfaces(t.Context())
		i := slices.IndexFunc(all, func(i backend.Interface) bool { return i.Name == "br0" })
		if err != nil || i < 0 {
			t.Fatalf("%v, %v", all, err)
		}
		var got []string
		for _, a := range all[i].Addresses {
			got = append(got, a.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("addresses are %v, want %v", got, want)
		}
	}
	add("192.0.2.5/24", true)
	add("2001:db8::5/64", true)
	has("192.0.2.5", "2001:db8::5")
	add("2001:db8::6/64", false)
	has("192.0.2.5", "2001:db8::6")
	add("192.0.2.6/24", false)
	has("192.0.2.6", "2001:db8::6")
}

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
			// Everybody's by the operator's word.
			netlink.AddrAdd(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}}, &netlink.Addr{
				IPNet: ipNet(netip.MustParsePrefix("192.0.2.200/32")), Broadcast: net.IP{192, 0, 2, 127}}),
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
			// Inside what is on the link: through a gateway, out of another link,
			// nowhere, and on the same link after all.
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.0/25")), LinkIndex: index["eth0"], Gw: net.IP{192, 0, 2, 1}}),
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.16/28")), LinkIndex: index["eth0"], Scope: netlink.SCOPE_LINK}),
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("192.0.2.128/25")), LinkIndex: index["br0"], Scope: netlink.SCOPE_LINK}),
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("198.51.100.128/25")), Type: 7}), // RTN_UNREACHABLE
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("2001:db8::8000:0:0:0/65")), LinkIndex: index["eth0"], Gw: net.ParseIP("2001:db8::1")}),
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
	for end := time.Now().Add(patience); !by["eth0"].Up && time.Now().Before(end); {
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
	kerneltest.Do(t, ns, func() error { // What they are for: the kernel takes none for a gateway.
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		to := netlink.Route{Dst: ipNet(netip.MustParsePrefix("10.7.0.0/24")), LinkIndex: eth0.Attrs().Index}
		for _, b := range by["eth0"].Broadcasts {
			if to.Gw = b.AsSlice(); netlink.RouteAdd(&to) == nil {
				t.Errorf("%s is taken for a gateway", b)
			}
		}
		to.Gw = net.IP{192, 0, 2, 0}
		return netlink.RouteAdd(&to)
	})
	if eth1 := by["eth1"]; !eth1.Tentative || len(eth1.Addresses) != 1 {
		t.Errorf("eth1: %+v", eth1)
	}
	for _, want := range []backend.Interface{
		{Name: "lo", Up: true, MTU: 65536, Broadcasts: []netip.Addr{netip.MustParseAddr("127.255.255.255")}},
		{Name: "eth0", Up: true, MTU: 9000, DefaultV4: true, DefaultV6: true, Addresses: []netip.Addr{
			netip.MustParseAddr("192.0.2.5"), netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("192.0.2.4"), netip.MustParseAddr("2001:db8::5"),
		}, OnLink: prefixes("192.0.2.0/25", "203.0.113.128/25", "203.0.113.16/28", "2001:db8::/65"), Broadcasts: []netip.Addr{netip.MustParseAddr("192.0.2.127"), netip.MustParseAddr("192.0.2.255")}},
		{Name: "br0", MTU: 1500, DefaultV4: true, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
			OnLink: prefixes("192.0.2.128/25", "198.51.100.0/25"), Broadcasts: []netip.Addr{netip.MustParseAddr("198.51.100.255")}},
		{Name: "br1", MTU: 1500},
	} {
		if want.Name == "br0" { // Without a port it is down, but for a moment.
			want.Up = by[want.Name].Up
		}
		slices.SortFunc(by[want.Name].OnLink, netip.Prefix.Compare)
		slices.SortFunc(want.OnLink, netip.Prefix.Compare)
		if !reflect.DeepEqual(by[want.Name], want) {
			t.Errorf("have %+v\nwant %+v", by[want.Name], want)
		}
	}
}

// TestOnLinkInALargeTable: what is aside is heeded also where the main table has
// more routes than are kept.
func TestOnLinkInALargeTable(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	kerneltest.Do(t, ns, func() error {
		br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		err := errors.Join(netlink.LinkAdd(br), netlink.LinkSetUp(br), netlink.AddrAdd(br, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix("203.0.113.1/24"))}),
			netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.128/25")), LinkIndex: br.Index, Gw: net.IP{203, 0, 113, 9}}))
		h, failed := netlink.NewHandle()
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		defer h.Close()
		a := netip.MustParseAddr("198.18.0.0")
		for range mostAside + 1 {
			err = errors.Join(err, h.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(a, 32)), Type: unix.RTN_BLACKHOLE}))
			a = a.Next()
		}
		return err
	})
	got, err := k.Interfaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range got {
		if i.Name == "br0" && !slices.Equal(i.OnLink, prefixes("203.0.113.0/25")) {
			t.Errorf("on the link are %v", i.OnLink)
		}
	}
}

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}
