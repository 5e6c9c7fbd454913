package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// sysctl reads a setting under net of a host.
func sysctl(t *testing.T, h *Host, key string) string {
	t.Helper()
	var value []byte
	err := h.Namespace.Do(func() (err error) {
		value, err = os.ReadFile("/proc/sys/net/" + key)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(value))
}

// set changes settings of a host, which come as "ipv4/ip_forward=1".
func set(t *testing.T, h *Host, settings ...string) {
	t.Helper()
	err := h.Namespace.Do(func() error {
		for _, s := range settings {
			key, value, _ := strings.Cut(s, "=")
			if err := setSysctl(key, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// deaf is a host that forwards nothing.
var deaf = []string{"ipv4/ip_forward=0", "ipv4/conf/default/forwarding=0", "ipv6/conf/all/forwarding=0"}

// comeUp starts the daemons of all hosts and makes their pods.
func comeUp(t *testing.T, l *Lab) {
	t.Helper()
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	if err := each(l.Hosts, func(h *Host) error { return l.settle(t.Context(), h) }); err != nil {
		t.Fatal(err)
	}
}

// saysInTime waits until the host's daemon has logged each of the texts.
func saysInTime(t *testing.T, h *Host, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if _, ok := timeUntil(talkLimit, func() bool { return strings.Contains(h.DaemonLog(), text) }); !ok {
			t.Errorf("%s does not say %q; it says:\n%s", h.Name, text, h.DaemonLog())
		}
	}
}

// TestForwardingIsTurnedOn where it is off, said, and put back when a hand turns
// it off.
func TestForwardingIsTurnedOn(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, NoDaemons: true})
	for _, h := range l.Hosts {
		set(t, h, deaf...)
	}
	comeUp(t, l)
	everyPairTalks(t, l, talkLimit)
	h := l.Hosts[0]
	saysInTime(t, h, `"setting":"net.ipv4.ip_forward"`, `"setting":"net.ipv6.conf.all.forwarding"`,
		`"device":"ripstop.1","settings":"forwarding 1, rp_filter 2"`)
	for _, off := range []string{"ipv4/ip_forward=0", "ipv6/conf/all/forwarding=0"} {
		set(t, h, off)
		key, _, _ := strings.Cut(off, "=")
		took, ok := timeUntil(talkLimit, func() bool { return sysctl(t, h, key) == "1" })
		if !ok {
			t.Errorf("%s is not put back", key)
		}
		t.Logf("%s is back after %s", key, took.Round(time.Millisecond))
	}
	saysInTime(t, h, "host setting put back")
	everyPairTalks(t, l, talkLimit)
	for _, key := range []string{"ipv4/conf/ripstop.1/rp_filter", "ipv4/conf/ripstop-v6.1/rp_filter"} {
		if got := sysctl(t, h, key); got != "2" {
			t.Errorf("%s is %s", key, got)
		}
	}
	for _, link := range []string{"all", "default", hostInterface, podBridge, "lo"} {
		if got := sysctl(t, h, "ipv4/conf/"+link+"/rp_filter"); got != "0" {
			t.Errorf("rp_filter of %s is %s: it is not ours", link, got)
		}
	}
}

// readOnlyDaemon writes a program that runs ripstopd where /proc/sys is read-only.
func readOnlyDaemon(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ripstopd")
	text := fmt.Sprintf("#!/bin/sh\nexec unshare --mount --propagation private sh -c '"+
		"mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec %s \"$@\"' ripstopd \"$@\"\n", daemonPath)
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReadOnlyProcSys: what can be set over netlink is, so that pods talk, those
// too whose interfaces come later; what cannot is named with the command, and
// waited for.
func TestReadOnlyProcSys(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, NoDaemons: true})
	l.opts.Daemon = readOnlyDaemon(t)
	for _, h := range l.Hosts {
		set(t, h, deaf...)
		set(t, h, "ipv6/conf/all/forwarding=1", "ipv4/conf/all/rp_filter=1", "ipv4/conf/default/rp_filter=1")
	}
	comeUp(t, l)
	everyPairTalks(t, l, talkLimit)
	h := l.Hosts[0]
	saysInTime(t, h, "over netlink", "read-only")
	if got := sysctl(t, h, "ipv4/ip_forward"); got != "0" {
		t.Errorf("ip_forward is %s: /proc/sys is not read-only, so that the test is none", got)
	}
	for key, want := range map[string]string{
		"ripstop.1/rp_filter": "2", "ripstop.1/forwarding": "1", hostInterface + "/forwarding": "1", podBridge + "/forwarding": "1", hostInterface + "/rp_filter": "0",
	} {
		if got := sysctl(t, h, "ipv4/conf/"+key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	set(t, h, "ipv4/conf/ripstop.1/rp_filter=1", "ipv4/conf/ripstop.1/forwarding=0", "ipv4/conf/"+podBridge+"/forwarding=0")
	everyPairTalks(t, l, talkLimit)
	if got := sysctl(t, h, "ipv4/conf/ripstop.1/rp_filter"); got != "2" {
		t.Errorf("rp_filter is %s after a hand changed it", got)
	}

	if _, _, err := h.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	set(t, h, "ipv6/conf/all/forwarding=0", "ipv6/conf/"+hostInterface+"/accept_ra=1")
	before := mustPicture(t, h)
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	saysInTime(t, h, "sysctl -w net.ipv6.conf.eth0.accept_ra=2 net.ipv6.conf.all.forwarding=1", "read-only file system")
	if !same(before, mustPicture(t, h)) {
		t.Error("the kernel is changed while the daemon waits")
	}
	set(t, h, "ipv6/conf/"+hostInterface+"/accept_ra=2", "ipv6/conf/all/forwarding=1")
	if err := h.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func same(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }

// advertise sends a router's advertisement to all on the underlay, which is to be
// a default router for half an hour (RFC 4861, section 4.2).
func advertise(t *testing.T, l *Lab) {
	t.Helper()
	message := make([]byte, 16)
	message[0], message[4] = 134, 64
	binary.BigEndian.PutUint16(message[6:], 1800)
	err := l.Underlay().Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		var index int
		err = l.Underlay().netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(underlayName)
			if err == nil {
				index = link.Attrs().Index
			}
			return err
		})
		to := &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(index)}
		return errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255), unix.Sendto(fd, message, 0, to))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// advertisedDefault tells whether a host has a default route that a router
// advertised.
func advertisedDefault(t *testing.T, h *Host) bool {
	t.Helper()
	found := false
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		routes, err := n.RouteListFiltered(unix.AF_INET6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
		for _, r := range routes {
			found = found || r.Dst == nil || r.Dst.IP.IsUnspecified()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestRouterIsStillHeard: a host that gets its default route by advertisement keeps
// it when it is made to forward, and hears the router from then on.
func TestRouterIsStillHeard(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: IPv6, NoDaemons: true})
	h := l.Hosts[0]
	set(t, h, "ipv6/conf/all/forwarding=0", "ipv6/conf/"+hostInterface+"/accept_ra=1", "ipv6/conf/default/accept_ra=1")
	if err := dropDefault(h); err != nil {
		t.Fatal(err)
	}
	heard := func(what string) {
		t.Helper()
		advertise(t, l)
		if _, ok := timeUntil(talkLimit, func() bool { return advertisedDefault(t, h) }); !ok {
			t.Fatalf("no default route by advertisement %s", what)
		}
	}
	heard("at first")
	comeUp(t, l)
	if !advertisedDefault(t, h) {
		t.Error("the default route is lost")
	}
	for key, want := range map[string]string{"all/forwarding": "1", hostInterface + "/accept_ra": "2", "default/accept_ra": "1"} {
		if got := sysctl(t, h, "ipv6/conf/"+key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
	everyPairTalks(t, l, talkLimit)
	saysInTime(t, h, `"setting":"net.ipv6.conf.eth0.accept_ra"`)
	if err := dropDefault(h); err != nil {
		t.Fatal(err)
	}
	heard("while the host forwards")
	// Without accept_ra 2 the route would be gone: the test is one.
	if _, _, err := h.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	set(t, h, "ipv6/conf/"+hostInterface+"/accept_ra=1", "ipv6/conf/"+hostInterface+"/forwarding=0", "ipv6/conf/all/forwarding=0", "ipv6/conf/all/forwarding=1")
	if advertisedDefault(t, h) {
		t.Error("a host that forwards keeps the route whatever accept_ra is")
	}
}

// TestRouterOfALinkThatComesIsHeard: interfaces that come to a host that was made to
// forward get their default routes by advertisement, those too that come after the daemon
// was started again. A pod's link does not: whoever is in it could advertise himself.
func TestRouterOfALinkThatComesIsHeard(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: IPv6, NoDaemons: true})
	h := l.Hosts[0]
	set(t, h, "ipv6/conf/all/forwarding=0", "ipv6/conf/default/accept_ra=1")
	if err := dropDefault(h); err != nil {
		t.Fatal(err)
	}
	comeUp(t, l)
	comes := func(name string) {
		t.Helper()
		err := h.Namespace.netlink(func(n *netlink.Handle) error {
			lower, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			nic := &netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: lower.Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}
			pod := netlink.NewVeth(netlink.LinkAttrs{Name: "pod-" + name})
			pod.PeerName, pod.PeerNamespace = "away-"+name, netlink.NsFd(l.Hosts[1].Namespace.FD())
			return errors.Join(n.LinkAdd(pod), n.LinkSetUp(pod), n.LinkAdd(nic), n.LinkSetUp(nic))
		})
		if err != nil {
			t.Fatal(err)
		}
		key := "ipv6/conf/" + name + "/accept_ra"
		took, ok := timeUntil(talkLimit, func() bool { return sysctl(t, h, key) == "2" })
		if !ok {
			t.Fatalf("%s is %s", key, sysctl(t, h, key))
		}
		heard, ok := timeUntil(talkLimit, func() bool { advertise(t, l); return advertisedDefault(t, h) })
		if !ok {
			t.Fatalf("%s has no default route by advertisement", name)
		}
		for _, other := range []string{"pod-" + name, podBridge} {
			if got := sysctl(t, h, "ipv6/conf/"+other+"/accept_ra"); got != "1" {
				t.Errorf("accept_ra of %s is %s", other, got)
			}
		}
		saysInTime(t, h, `"setting":"net.ipv6.conf.`+name+`.accept_ra"`)
		t.Logf("%s hears routers %s after it came, and has a route %s later", name, took.Round(time.Millisecond), heard.Round(time.Millisecond))
		if err := dropDefault(h); err != nil {
			t.Fatal(err)
		}
	}
	comes("eth7")
	if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	comes("eth8")
	// A hand that makes one deaf, of which the kernel tells nobody, is seen with the next news.
	set(t, h, "ipv6/conf/eth7/accept_ra=1")
	comes("eth9")
	if _, ok := timeUntil(talkLimit, func() bool { return sysctl(t, h, "ipv6/conf/eth7/accept_ra") == "2" }); !ok {
		t.Error("what a hand has changed is not put back")
	}
}

// dropDefault deletes a host's IPv6 default routes.
func dropDefault(h *Host) error {
	return h.Namespace.netlink(func(n *netlink.Handle) error {
		routes, err := n.RouteList(nil, unix.AF_INET6)
		for _, r := range routes {
			if r.Dst == nil || r.Dst.IP.IsUnspecified() {
				err = errors.Join(err, n.RouteDel(&r))
			}
		}
		return err
	})
}

// TestStrictPathFilter: with rp_filter 1 for all interfaces pods talk by the
// tunnel. A node that sends directly hears those that answer by the tunnel; of its
// own interface, where it would not hear the reverse, it says what to do.
func TestStrictPathFilter(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, NoDaemons: true})
	for _, h := range l.Hosts {
		set(t, h, "ipv4/conf/all/rp_filter=1", "ipv4/conf/default/rp_filter=1", "ipv4/conf/"+hostInterface+"/rp_filter=1")
	}
	comeUp(t, l)
	everyPairTalks(t, l, talkLimit)
	direct, tunnel := l.Hosts[0], l.Hosts[1]
	if err := l.SetConfig(t.Context(), configWith(Dual, directRoutes)); err != nil {
		t.Fatal(err)
	}
	if err := direct.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	saysInTime(t, direct, "sysctl -w net.ipv4.conf.eth0.rp_filter=2")
	// What comes directly is for the host's own interface to let in.
	set(t, tunnel, "ipv4/conf/"+hostInterface+"/rp_filter=2")
	c := startCapture(t, l.Underlay(), direct.Name)
	everyPairTalks(t, l, talkLimit)
	a, b := direct.Pods[0], tunnel.Pods[0]
	for _, f := range l.Families() {
		exchangeTCP(t, a, b, f)
		exchangeTCP(t, b, a, f)
		exchangeUDP(t, a, b, f)
	}
	plain, tunnelled := ways(c.end())
	for _, f := range l.Families() {
		out, back := way{a.Addresses[f], b.Addresses[f]}, way{b.Addresses[f], a.Addresses[f]}
		if plain[out] == 0 || tunnelled[out] != 0 || tunnelled[back] == 0 || plain[back] != 0 {
			t.Errorf("%s: out %d directly and %d by the tunnel, back %d and %d", f, plain[out], tunnelled[out], plain[back], tunnelled[back])
		}
	}
}

// TestTxChecksum looks at the packets: a checksum that is left to the receiver's
// kernel is not there yet on the underlay.
func TestTxChecksum(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, DaemonArgs: []string{"--tx-checksum=off"}})
	everyPairTalks(t, l, talkLimit)
	a, b := l.Hosts[0], l.Hosts[1]
	wrong := func() (wrong, of int) {
		c := startCapture(t, l.Underlay(), a.Name)
		for _, f := range l.Families() {
			exchangeTCP(t, a.Pods[0], b.Pods[0], f)
		}
		for _, p := range c.end() {
			if _, inner, ok := p.vxlan(vxlanPort); ok && inner.proto == unix.IPPROTO_TCP && inner.length <= underlayMTU {
				of++
				if onesComplement(pseudoHeader(inner), inner.payload) != 0 {
					wrong++
				}
			}
		}
		return wrong, of
	}
	if n, of := wrong(); n != 0 || of == 0 {
		t.Errorf("with --tx-checksum=off %d of %d packets have no checksum", n, of)
	}
	for _, h := range l.Hosts { // A device made anew has it, too.
		if err := vxlans(h, func(n *netlink.Handle, v *netlink.Vxlan) error { return n.LinkDel(v) }); err != nil {
			t.Fatal(err)
		}
	}
	everyPairTalks(t, l, talkLimit)
	if n, of := wrong(); n != 0 || of == 0 {
		t.Errorf("after the device was made again %d of %d packets have no checksum", n, of)
	}
	l.opts.DaemonArgs = []string{"--tx-checksum=on"}
	for _, h := range l.Hosts {
		if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if n, of := wrong(); n == 0 {
		t.Errorf("with --tx-checksum=on all of %d packets have a checksum, so that the test is none", of)
	}
}

// pseudoHeader is what a checksum has of the IP header (RFC 793 section 3.1, RFC
// 8200 section 8.1).
func pseudoHeader(p ipPacket) []byte {
	out := append(p.src.AsSlice(), p.dst.AsSlice()...)
	out = binary.BigEndian.AppendUint32(out, uint32(len(p.payload)))
	return binary.BigEndian.AppendUint32(out, uint32(p.proto))
}

// TestPathBesideTheLink: a peer to which the host has a more specific route through
// a gateway is not sent to directly, though its address is in the link's prefix.
func TestPathBesideTheLink(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual, Config: configWith(Dual, directRoutes), NoDaemons: true})
	first, aside := l.Hosts[0], l.Hosts[1]
	err := first.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		for _, f := range l.Families() {
			to := aside.Address(f)
			gateway := near.prefix(f, gatewayNumber).Addr()
			err = errors.Join(err, n.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(to.BitLen(), to.BitLen())}, Gw: gateway.AsSlice(), LinkIndex: link.Attrs().Index}))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	comeUp(t, l)
	direct, tunnel := 0, 0
	if _, ok := timeUntil(talkLimit, func() bool { direct, tunnel = routesOf(t, first); return direct+tunnel == 4 }); !ok || direct != 2 || tunnel != 2 {
		t.Errorf("%d direct and %d tunnelled routes, want 2 and 2", direct, tunnel)
	}
	if _, ok := timeUntil(talkLimit, func() bool { direct, tunnel = routesOf(t, aside); return direct == 4 }); !ok {
		t.Errorf("the others have %d direct and %d tunnelled routes, want 4 and 0", direct, tunnel)
	}
}

// TestAsymmetricPaths: a host with two interfaces sends to a peer by one and hears it by
// the other. Pods talk, but where the one by which the peer is heard drops what does not
// come by the way back: then the log and the status name it, and the command.
func TestAsymmetricPaths(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Far: 1, Mode: IPv4, NoDaemons: true, DaemonArgs: []string{"--probe-interval=1s"}})
	h, peer := l.Hosts[0], l.Hosts[1]
	addNIC(t, l, h, worstMetric) // Now the peer is on a link of its own.
	comeUp(t, l)
	everyPairTalks(t, l, talkLimit)
	c := startCapture(t, l.Underlay(), h.Name)
	exchangeTCP(t, h.Pods[0], peer.Pods[0], subnet.V4)
	_, tunnelled := ways(c.end())
	out, back := h.Pods[0].Addresses[subnet.V4], peer.Pods[0].Addresses[subnet.V4]
	if tunnelled[way{out, back}] != 0 || tunnelled[way{back, out}] == 0 {
		t.Fatalf("by %s there are packets out and back: %v", hostInterface, tunnelled)
	}
	set(t, h, "ipv4/conf/"+hostInterface+"/rp_filter=1")
	const mend = "sysctl -w net.ipv4.conf.eth0.rp_filter=2"
	p := probeOf(t, h)
	eventually(t, time.Minute, "the status names the filter", func() bool {
		s, err := p.client.Status(t.Context())
		return err == nil && slices.ContainsFunc(s.Probing.Silent, func(q status.SilentPeer) bool {
			return q.Node == peer.Name && strings.Contains(q.Reason, "by eth1 and rp_filter is strict") && strings.Contains(q.Reason, mend)
		})
	})
	saysInTime(t, h, mend)
	set(t, h, "ipv4/conf/"+hostInterface+"/rp_filter=2")
	everyPairTalks(t, l, talkLimit)
	eventually(t, time.Minute, "the peer answers again", func() bool {
		s, err := p.client.Status(t.Context())
		return err == nil && len(s.Probing.Silent) == 0
	})
}
