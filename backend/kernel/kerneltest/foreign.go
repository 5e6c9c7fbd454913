package kerneltest

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ForeignLink is an interface that FillWithForeign makes.
const ForeignLink = "foreign0"

// FillWithForeign makes a host full of what others may have: devices that look
// like ours, VXLAN devices of theirs, routes, nexthops, FDB entries, rules.
func FillWithForeign(t testing.TB, ns *os.File) {
	t.Helper()
	// What the kernel gives to a new interface by itself comes when it pleases.
	Do(t, ns, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("1"), 0o644)
	})
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	add := func(l netlink.Link, addrs ...string) netlink.Link {
		t.Helper()
		must(h.LinkAdd(l))
		must(h.LinkSetUp(l))
		for _, a := range addrs {
			parsed, err := netlink.ParseAddr(a)
			must(err)
			parsed.Flags |= unix.IFA_F_NODAD
			must(h.AddrAdd(l, parsed))
		}
		return l
	}
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	eth := add(&netlink.Veth{LinkAttrs: attrs(ForeignLink), PeerName: "foreign1"}, "10.97.0.1/24", "fd97::1/64")
	far, err := h.LinkByName("foreign1")
	must(err)
	must(h.LinkSetUp(far))
	add(&netlink.Bridge{LinkAttrs: attrs("cni0")}, "10.6.1.1/24", "fd00:6::1/64")
	add(&netlink.Bridge{LinkAttrs: attrs("ripstop.5")}, "10.7.1.1/24") // Our name, and no VXLAN device.
	mac := func(n byte) net.HardwareAddr { return net.HardwareAddr{2, 9, 9, 9, 9, n} }
	for i, name := range []string{"flannel.7", "ripstop.x", "vxlan9"} {
		dev := add(&netlink.Vxlan{LinkAttrs: attrs(name), VxlanId: 7 + i, Port: 8472, SrcAddr: net.ParseIP("10.97.0.1")}, fmt.Sprintf("10.8.%d.0/32", i))
		for n := range byte(20) {
			remote, gateway := net.IPv4(10, 97, 1, n), net.IPv4(10, 8, 100+byte(i), n)
			must(h.NeighSet(&netlink.Neigh{LinkIndex: dev.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT, IP: remote, HardwareAddr: mac(n)}))
			must(h.NeighSet(&netlink.Neigh{LinkIndex: dev.Attrs().Index, State: netlink.NUD_PERMANENT, IP: gateway, HardwareAddr: mac(n)}))
			must(h.RouteAdd(&netlink.Route{
				LinkIndex: dev.Attrs().Index, Gw: gateway, Flags: int(netlink.FLAG_ONLINK), Dst: &net.IPNet{IP: net.IPv4(10, 20+byte(i), n, 0), Mask: net.CIDRMask(24, 32)},
			}))
		}
	}
	for n, protocol := range []int{unix.RTPROT_STATIC, unix.RTPROT_KERNEL, 80, 81, 83, 84, 99} {
		for _, table := range []int{unix.RT_TABLE_MAIN, 100} {
			for _, dst := range []string{fmt.Sprintf("10.30.%d.0/24", n), fmt.Sprintf("fd30:%d::/64", n)} {
				_, prefix, err := net.ParseCIDR(dst)
				must(err)
				must(h.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Dst: prefix, Protocol: netlink.RouteProtocol(protocol), Table: table}))
			}
		}
	}
	rule := netlink.NewRule()
	rule.Table, rule.Priority = 100, 500
	must(h.RuleAdd(rule))
	Do(t, ns, func() error {
		for n, protocol := range []byte{unix.RTPROT_STATIC, 80, 84, 0} {
			if err := AddNexthop(uint32(1+n), protocol, eth.Attrs().Index, net.IPv4(10, 97, 0, byte(9+n))); err != nil {
				return err
			}
		}
		return nil
	})
}

// AddNexthop makes an object as another program does.
func AddNexthop(id uint32, protocol byte, index int, gateway net.IP) error {
	r := nl.NewNetlinkRequest(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	r.AddData(raw{unix.AF_INET, 0, protocol, 0, 0, 0, 0, 0})
	r.AddData(nl.NewRtAttr(unix.NHA_ID, nl.Uint32Attr(id)))
	r.AddData(nl.NewRtAttr(unix.NHA_OIF, nl.Uint32Attr(uint32(index))))
	r.AddData(nl.NewRtAttr(unix.NHA_GATEWAY, gateway.To4()))
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
