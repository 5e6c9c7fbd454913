package lab

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// kernelBytes is all that a host's kernel tells of its network, as it tells it:
// links, addresses, routes of all tables, rules, nexthops, what VXLAN devices have,
// nftables and every setting.
func kernelBytes(t *testing.T, h *Host) []string {
	t.Helper()
	var out []string
	err := h.Namespace.Do(func() error {
		for _, dump := range []struct {
			request, answer uint16
			head            int // The fixed part of an answer, in bytes.
			body            []byte
		}{
			// RTEXT_FILTER_SKIP_STATS, in an attribute IFLA_EXT_MASK.
			{unix.RTM_GETLINK, unix.RTM_NEWLINK, unix.SizeofIfInfomsg, append(make([]byte, unix.SizeofIfInfomsg), 8, 0, unix.IFLA_EXT_MASK, 0, 8, 0, 0, 0)},
			{unix.RTM_GETADDR, unix.RTM_NEWADDR, unix.SizeofIfAddrmsg, make([]byte, unix.SizeofIfAddrmsg)},
			{unix.RTM_GETROUTE, unix.RTM_NEWROUTE, unix.SizeofRtMsg, make([]byte, unix.SizeofRtMsg)},
			{unix.RTM_GETRULE, unix.RTM_NEWRULE, unix.SizeofRtMsg, make([]byte, unix.SizeofRtMsg)},
			{unix.RTM_GETNEXTHOP, unix.RTM_NEWNEXTHOP, sizeNexthop, make([]byte, sizeNexthop)},
		} {
			request := nl.NewNetlinkRequest(int(dump.request), unix.NLM_F_DUMP)
			request.AddData(nexthopRequest(dump.body))
			messages, err := request.Execute(unix.NETLINK_ROUTE, dump.answer)
			if err != nil {
				return fmt.Errorf("dump %d: %w", dump.request, err)
			}
			for _, m := range messages {
				text := ""
				attrs, err := nl.ParseRouteAttr(m[min(dump.head, len(m)):])
				if err != nil {
					return err
				}
				for _, a := range attrs {
					// Counts of packets are no change; the settings in IFLA_AF_SPEC come below.
					if dump.answer != unix.RTM_NEWLINK || !slices.Contains([]uint16{unix.IFLA_STATS, unix.IFLA_STATS64, unix.IFLA_AF_SPEC}, a.Attr.Type) {
						text += fmt.Sprintf(" %d:%s", a.Attr.Type, hex.EncodeToString(a.Value))
					}
				}
				out = append(out, fmt.Sprintf("%d %s%s", dump.answer, hex.EncodeToString(m[:dump.head]), text))
			}
		}
		return filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
			// What it costs to read, and what the kernel changes by itself.
			if err != nil || d.IsDir() || strings.HasSuffix(path, "/flush") || strings.Contains(path, "nf_conntrack_count") {
				return err
			}
			value, err := os.ReadFile(path)
			if err == nil {
				out = append(out, path+" "+string(bytes.TrimSpace(value)))
			}
			return nil // Some may not be read.
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	tables, err := nft(t, h.Namespace).ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		out = append(out, fmt.Sprintf("table %d %s", table.Family, table.Name))
	}
	return append(out, mustPicture(t, h)...)
}

// stillFor is longer than the kernel puts off what it has to say of a link's state
// (linkwatch_schedule_work: up to a second).
const stillFor = 1500 * time.Millisecond

// stillKernel is kernelBytes of a host on which the kernel itself has nothing left
// to do, such as to make its interfaces' link-local addresses.
func stillKernel(t *testing.T, h *Host) []string {
	t.Helper()
	last := kernelBytes(t, h)
	eventually(t, talkLimit, "the kernel is still", func() bool {
		time.Sleep(stillFor)
		was := last
		last = kernelBytes(t, h)
		return slices.Equal(was, last)
	})
	return last
}

func sameKernel(t *testing.T, before, after []string) {
	t.Helper()
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("the kernel has what it had not: %s", line)
		}
	}
	if len(before) != len(after) {
		t.Errorf("the kernel had %d things and has %d", len(before), len(after))
	}
}

// TestOverlap: a network in which the host has an address, a link or a way of its
// own is refused, and nothing is changed by it: not the kernel, nor the store.
func TestOverlap(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual, NoDaemons: true})
	for i, c := range []struct {
		h    *Host
		do   func(n *netlink.Handle, eth0 netlink.Link) error
		says []string
	}{
		{l.Hosts[0], func(n *netlink.Handle, _ netlink.Link) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "lan"
			lan := &netlink.Veth{LinkAttrs: attrs, PeerName: "lan-far"} // A bridge tells of its timers.
			return errors.Join(n.LinkAdd(lan), n.LinkSetUp(lan), addAddresses(n, lan, []netip.Prefix{netip.MustParsePrefix("10.5.64.1/24")}))
		}, []string{"10.5.0.0/16", "10.5.64.1/24 of lan"}},
		{l.Hosts[1], func(n *netlink.Handle, eth0 netlink.Link) error {
			return n.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IP{10, 0, 0, 0}, Mask: net.CIDRMask(8, 32)}, Gw: net.IP{10, 99, 0, 254}, LinkIndex: eth0.Attrs().Index})
		}, []string{"10.5.0.0/16", "10.0.0.0/8 via 10.99.0.254 dev eth0"}},
		{l.Hosts[2], func(n *netlink.Handle, eth0 netlink.Link) error {
			return n.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.ParseIP("fd00:10:5:7::"), Mask: net.CIDRMask(64, 128)}, Gw: net.ParseIP("fd99::fe"), LinkIndex: eth0.Attrs().Index})
		}, []string{"fd00:10:5::/48", "fd00:10:5:7::/64 via fd99::fe dev eth0"}},
	} {
		set(t, c.h, deaf...)
		err := c.h.Namespace.netlink(func(n *netlink.Handle) error {
			eth0, err := n.LinkByName(hostInterface)
			return errors.Join(err, c.do(n, eth0))
		})
		if err != nil {
			t.Fatal(err)
		}
		before := stillKernel(t, c.h)
		if err := c.h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if _, ended := timeUntil(talkLimit, func() bool { return !c.h.Running() }); !ended {
			t.Fatalf("%d: the daemon goes on:\n%s", i, c.h.DaemonLog())
		}
		if code := c.h.daemon.cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("%d: exit code %d", i, code)
		}
		saysInTime(t, c.h, c.says...)
		sameKernel(t, before, kernelBytes(t, c.h))
		if got, err := openStore(t, l).Get(t.Context(), Prefix+"/subnets/"); err != nil || got.Count != 0 {
			t.Errorf("%d: %d records: %v", i, got.Count, err)
		}
	}
}

// TestForeignTunnel: another's device of our VNI and port is named with what to do,
// and nothing is touched; when it has gone the node comes up. One that only shares
// the port is named, too, and may stay.
func TestForeignTunnel(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: IPv4, NoDaemons: true})
	h := l.Hosts[0]
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "flannel.1"
	flannel := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vxlanVNI, Port: vxlanPort, SrcAddr: h.Address(subnet.V4).AsSlice()}
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		if err := errors.Join(n.LinkAdd(flannel), n.LinkSetUp(flannel)); err != nil {
			return err
		}
		route := &netlink.Route{Dst: &net.IPNet{IP: net.IP{10, 5, 3, 0}, Mask: net.CIDRMask(24, 32)}, Gw: net.IP{10, 5, 3, 0}, LinkIndex: flannel.Index, Flags: int(netlink.FLAG_ONLINK)}
		return errors.Join(addAddresses(n, flannel, []netip.Prefix{netip.MustParsePrefix("10.5.2.0/32")}), n.RouteAdd(route))
	})
	if err != nil {
		t.Fatal(err)
	}
	addOtherVXLAN(t, h, subnet.V4, 77, subnet.MAC{2, 0, 0, 0, 0, 77})
	set(t, h, deaf...)
	before := stillKernel(t, h)
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	saysInTime(t, h, "flannel.1 has VNI 1 on UDP port 8472", "stop flannel on this host for good, then: ip link delete flannel.1")
	sameKernel(t, before, kernelBytes(t, h))
	if err := h.Namespace.netlink(func(n *netlink.Handle) error { return n.LinkDel(flannel) }); err != nil {
		t.Fatal(err)
	}
	if err := each(l.Hosts, func(h *Host) error { return l.settle(t.Context(), h) }); err != nil {
		t.Fatal(err)
	}
	saysInTime(t, h, "VXLAN device other0 has VNI 77 on our UDP port 8472")
	everyPairTalks(t, l, talkLimit)
}
