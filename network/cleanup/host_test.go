package cleanup

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// tables is all that a namespace's kernel says of links, addresses, neighbours,
// FDB entries, nexthops, routes and rules, as bytes. What counts packets or time
// is left out, and so are neighbours that the kernel found by itself.
func tables(t *testing.T, ns *os.File) []string {
	t.Helper()
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS: those of IPv6.
	var out []string
	for _, part := range []struct {
		name   string
		get    int
		family byte
		size   int
		counts []uint16
	}{
		{"link", unix.RTM_GETLINK, 0, 16, []uint16{unix.IFLA_STATS, unix.IFLA_STATS64}},
		{"address", unix.RTM_GETADDR, 0, 8, []uint16{unix.IFA_CACHEINFO}},
		{"neighbour", unix.RTM_GETNEIGH, 0, 12, []uint16{unix.NDA_CACHEINFO}},
		{"fdb", unix.RTM_GETNEIGH, unix.AF_BRIDGE, 12, []uint16{unix.NDA_CACHEINFO}},
		{"nexthop", unix.RTM_GETNEXTHOP, 0, 8, nil},
		{"route", unix.RTM_GETROUTE, unix.AF_INET, 12, []uint16{unix.RTA_CACHEINFO}},
		{"route6", unix.RTM_GETROUTE, unix.AF_INET6, 12, []uint16{unix.RTA_CACHEINFO}},
		{"rule", unix.RTM_GETRULE, unix.AF_INET, 12, nil},
		{"rule6", unix.RTM_GETRULE, unix.AF_INET6, 12, nil},
	} {
		kerneltest.Do(t, ns, func() error {
			r := nl.NewNetlinkRequest(part.get, unix.NLM_F_DUMP)
			head := make([]byte, part.size)
			head[0] = part.family
			r.AddData(raw(head))
			if part.get == unix.RTM_GETLINK {
				r.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
			}
			messages, err := r.Execute(unix.NETLINK_ROUTE, 0)
			if err != nil {
				return fmt.Errorf("dump %s: %w", part.name, err)
			}
			for _, m := range messages {
				if part.name == "neighbour" && binary.NativeEndian.Uint16(m[8:])&unix.NUD_PERMANENT == 0 {
					continue
				}
				text := part.name + " " + hex.EncodeToString(m[:part.size])
				attrs, err := nl.ParseRouteAttr(m[part.size:])
				if err != nil {
					return err
				}
				for _, a := range attrs {
					// A bridge's own data has timers that run.
					timers := part.get == unix.RTM_GETLINK && a.Attr.Type == unix.IFLA_LINKINFO && strings.Contains(string(a.Value), "bridge")
					if part.get == unix.RTM_GETLINK && a.Attr.Type == unix.IFLA_AF_SPEC {
						forgetReachableTime(a.Value)
					}
					if !slices.Contains(part.counts, a.Attr.Type) && !timers {
						text += fmt.Sprintf(" %d:%x", a.Attr.Type, a.Value)
					}
				}
				out = append(out, text)
			}
			return nil
		})
	}
	slices.Sort(out)
	return out
}

// forgetReachableTime takes out of a link's settings the time for which a neighbour
// counts as reachable, which the kernel draws anew every few minutes
// (neigh_rand_reach_time): the third of the four numbers of IFLA_INET6_CACHEINFO.
func forgetReachableTime(settings []byte) {
	const inet6CacheInfo, nested = 5, unix.SizeofRtAttr
	walk := func(b []byte, typ uint16, each func([]byte)) {
		for len(b) >= nested {
			size := int(binary.NativeEndian.Uint16(b))
			if size < nested || size > len(b) {
				return
			}
			if binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED == typ {
				each(b[nested:size])
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
	walk(settings, unix.AF_INET6, func(family []byte) {
		walk(family, inet6CacheInfo, func(info []byte) { clear(info[8:12]) })
	})
}

// settled is tables once nothing changes by itself any more: a carrier is noted a
// moment after it came (linkwatch_do_dev).
func settled(t *testing.T, ns *os.File) []string {
	t.Helper()
	last, same := tables(t, ns), 0
	for end := time.Now().Add(20 * time.Second); same < 6; time.Sleep(250 * time.Millisecond) {
		now := tables(t, ns)
		if same++; !slices.Equal(now, last) {
			last, same = now, 0
		}
		if time.Now().After(end) {
			t.Fatal("the namespace does not come to rest")
		}
	}
	return last
}

type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }

// fillWithForeign makes a host full of what others may have: devices that look
// like ours, VXLAN devices of theirs, routes, nexthops, FDB entries, rules.
func fillWithForeign(t *testing.T, ns *os.File) {
	t.Helper()
	// What the kernel gives to a new interface by itself comes when it pleases.
	kerneltest.Do(t, ns, func() error {
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
	eth := add(&netlink.Veth{LinkAttrs: attrs("eth0"), PeerName: "far0"}, "10.99.0.1/24", "fd99::1/64")
	far, err := h.LinkByName("far0")
	must(err)
	must(h.LinkSetUp(far))
	add(&netlink.Bridge{LinkAttrs: attrs("cni0")}, "10.6.1.1/24", "fd00:6::1/64")
	add(&netlink.Bridge{LinkAttrs: attrs("ripstop.5")}, "10.7.1.1/24") // Our name, and no VXLAN device.
	mac := func(n byte) net.HardwareAddr { return net.HardwareAddr{2, 9, 9, 9, 9, n} }
	for i, name := range []string{"flannel.7", "ripstop.x", "vxlan9"} {
		dev := add(&netlink.Vxlan{LinkAttrs: attrs(name), VxlanId: 7 + i, Port: 8472, SrcAddr: net.ParseIP("10.99.0.1")}, fmt.Sprintf("10.8.%d.0/32", i))
		for n := range byte(20) {
			remote, gateway := net.IPv4(10, 99, 1, n), net.IPv4(10, 8, 100+byte(i), n)
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
	kerneltest.Do(t, ns, func() error {
		for n, protocol := range []byte{unix.RTPROT_STATIC, 80, 84, 0} {
			if err := addNexthop(uint32(1+n), protocol, eth.Attrs().Index, net.IPv4(10, 99, 0, byte(9+n))); err != nil {
				return err
			}
		}
		return nil
	})
}

// addNexthop makes an object as another program does.
func addNexthop(id uint32, protocol byte, index int, gateway net.IP) error {
	r := nl.NewNetlinkRequest(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	r.AddData(raw{unix.AF_INET, 0, protocol, 0, 0, 0, 0, 0})
	r.AddData(nl.NewRtAttr(unix.NHA_ID, nl.Uint32Attr(id)))
	r.AddData(nl.NewRtAttr(unix.NHA_OIF, nl.Uint32Attr(uint32(index))))
	r.AddData(nl.NewRtAttr(unix.NHA_GATEWAY, gateway.To4()))
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// ours are the entries of a node with so many peers, in both families.
func ours(t testing.TB, peers int) *backend.State {
	t.Helper()
	self := vxlan.Self{
		Options: vxlan.Options{VNI: 1, Port: 8472},
		Self: plan.Self{
			Node:     "self",
			Subnets:  subnet.Subnets{netip.MustParsePrefix("10.5.0.0/24"), netip.MustParsePrefix("fd00:5::/64")},
			Underlay: subnet.PerFamily[plan.Underlay]{{Addr: netip.MustParseAddr("10.99.0.1"), MTU: 1500}, {Addr: netip.MustParseAddr("fd99::1"), MTU: 1500}},
		},
	}
	own, err := self.Own()
	if err != nil {
		t.Fatal(err)
	}
	s := backend.NewState(own...)
	for n := 1; n <= peers; n++ {
		for _, e := range self.Peer(subnet.Lease{
			Subnets: subnet.Subnets{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + byte(n>>8), byte(n), 0}), 24),
				netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:5:%x::", n)), 64),
			},
			Endpoints: subnet.PerFamily[subnet.Endpoint]{
				{PublicIP: netip.AddrFrom4([4]byte{10, 99, 2 + byte(n>>8), byte(n)}), MAC: subnet.MAC{2, 0, 0, 4, byte(n >> 8), byte(n)}},
				{PublicIP: netip.MustParseAddr(fmt.Sprintf("fd99::%x", 0x1000+n)), MAC: subnet.MAC{2, 0, 0, 6, byte(n >> 8), byte(n)}},
			},
		}) {
			s.Put(e)
		}
	}
	return s
}

func openAt(t testing.TB, ns *os.File) *kernel.Kernel {
	t.Helper()
	k, err := kernel.OpenAt(ns, vxlan.OwnsDevice)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// TestForeignThingsStayAsTheyAre, to the byte, on a host that is full of them;
// all that is ours goes, also what is not of the form that we make.
func TestForeignThingsStayAsTheyAre(t *testing.T) {
	ns := kerneltest.Namespace(t)
	fillWithForeign(t, ns)
	before := settled(t, ns)
	k := openAt(t, ns)
	have := &backend.State{}
	if failures := backend.Execute(t.Context(), k, have, backend.Diff(have, ours(t, 50))); len(failures) > 0 {
		t.Fatal(failures[0])
	}
	kerneltest.Do(t, ns, func() error {
		eth, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := addNexthop(5000, kernel.Protocol, eth.Attrs().Index, net.IPv4(10, 99, 0, 77)); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: eth.Attrs().Index, Gw: net.IPv4(10, 99, 0, 78), Protocol: kernel.Protocol, Table: 100,
			Dst: &net.IPNet{IP: net.IPv4(10, 66, 6, 0), Mask: net.CIDRMask(24, 32)},
		})
	})
	full := settled(t, ns)
	if len(full) < len(before)+2*(1+50*4) {
		t.Fatalf("ours are not there: %d lines, %d before", len(full), len(before))
	}

	r := &Forwarding{Kernel: k}
	found, err := Find(t.Context(), r)
	if err != nil || len(found.Ours) != 2+2*50*2+2 {
		t.Fatalf("found %d things, %v", len(found.Ours), err)
	}
	if last := found.Ours[len(found.Ours)-1]; !strings.HasPrefix(last, "link ripstop") {
		t.Errorf("the last to go is %s", last)
	}
	if d := cmp.Diff(full, tables(t, ns)); d != "" {
		t.Errorf("looking changed something:\n%s", d)
	}
	if err := Remove(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, tables(t, ns)); d != "" {
		t.Errorf("before and after differ:\n%s", d)
	}
	if found, err := Find(t.Context(), r); err != nil || len(found.Ours) != 0 {
		t.Errorf("a second time: %v, %v", found, err)
	}
}

// stubborn is a kernel in which somebody puts things back.
type stubborn struct {
	backend.Kernel
	back func()
}

func (s stubborn) Apply(ctx context.Context, ops []backend.Op) []error {
	defer s.back()
	return s.Kernel.Apply(ctx, ops)
}

func TestWhatIsPutBackIsNamed(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	have, want := &backend.State{}, ours(t, 2)
	put := func() {
		have := &backend.State{}
		_ = backend.Execute(context.Background(), k, have, backend.Diff(have, want))
	}
	if failures := backend.Execute(t.Context(), k, have, backend.Diff(have, want)); len(failures) > 0 {
		t.Fatal(failures[0])
	}
	r := &Forwarding{Kernel: stubborn{k, put}}
	if _, err := Find(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), r); err == nil || !strings.Contains(err.Error(), "another --run-dir") {
		t.Errorf("got %v", err)
	}
}
