package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// nft opens nftables of a namespace.
func nft(t *testing.T, ns *Namespace) *nftables.Conn {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// forgedCount is the guard's count of packets that it dropped.
func forgedCount(t *testing.T, h *Host) uint64 {
	t.Helper()
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "ripstop"}
	objects, err := nft(t, h.Namespace).GetObjects(table)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if c, ok := o.(*nftables.CounterObj); ok {
			return c.Packets
		}
	}
	t.Fatalf("%s has no guard", h.Name)
	return 0
}

// inbox is a UDP socket that keeps what it gets.
type inbox struct {
	conn *net.UDPConn
	addr netip.AddrPort
}

func openInbox(t *testing.T, ns *Namespace, addr netip.AddrPort) inbox {
	t.Helper()
	var conn *net.UDPConn
	err := ns.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	if err != nil {
		t.Fatalf("listen in %s: %v", ns.Name(), err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return inbox{conn, conn.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// get waits for a message and returns who sent it; the zero AddrPort if none
// came in time.
func (i inbox) get(t *testing.T, want string, limit time.Duration) netip.AddrPort {
	t.Helper()
	_ = i.conn.SetReadDeadline(time.Now().Add(limit))
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := i.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return netip.AddrPort{}
		}
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasPrefix(buffer[:n], []byte(want)) {
			return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		}
	}
}

// send sends a message from a namespace and returns from where.
func send(t *testing.T, ns *Namespace, to netip.AddrPort, message string) {
	t.Helper()
	err := ns.Do(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		_, err = c.Write([]byte(message))
		return errors.Join(err, c.Close())
	})
	if err != nil {
		t.Fatalf("send from %s to %s: %v", ns.Name(), to, err)
	}
}

// inWhatParts are the ways in which a forged packet is sent, by where it is split.
// The last hides all of VXLAN from who looks at the first fragment.
var inWhatParts = map[string][]int{"whole": nil, "in two fragments": {48}, "after a UDP header alone": {8}}

// A VXLAN packet from who is no peer never arrives, in whatever parts it comes,
// and is counted. That of another network on the same port does arrive.
func TestGuard(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	node, pod := l.Hosts[0], l.Hosts[0].Pods[0]
	stranger := l.EtcdNamespace()
	const otherVNI = 77
	otherMAC := subnet.MAC{2, 0, 0, 0, 0, 77}
	for _, f := range l.Families() {
		addOtherVXLAN(t, node, f, otherVNI, otherMAC)
	}
	forge := func(f subnet.Family, vni uint32, mac subnet.MAC, to netip.AddrPort, message string, splits []int) {
		from := netip.AddrPortFrom(l.Hosts[1].Pods[0].Addresses[f], 1000)
		inner := ipPackets(from.Addr(), to.Addr(), udpDatagram(from, to, []byte(message)))[0]
		outerFrom, outerTo := netip.AddrPortFrom(l.EtcdAddress(f), 40000), netip.AddrPortFrom(node.Address(f), vxlanPort)
		outer := udpDatagram(outerFrom, outerTo, vxlanPacket(vni, mac, inner))
		sendRaw(t, stranger, outerTo.Addr(), ipPackets(outerFrom.Addr(), outerTo.Addr(), outer, splits...))
	}
	for _, tracking := range []bool{false, true} {
		if tracking {
			trackConnections(t, node.Namespace)
		}
		for _, f := range l.Families() {
			in := openInbox(t, pod.Namespace, netip.AddrPortFrom(pod.Addresses[f], 0))
			other := openInbox(t, node.Namespace, netip.AddrPortFrom(otherAddress(f), 0))
			mac := vxlan.DeviceMAC(node.Name, f, vxlanVNI)
			for parts, splits := range inWhatParts {
				what := fmt.Sprintf("%s, tracking %t, %s", f, tracking, parts)
				before := forgedCount(t, node)
				message := "forged " + what
				forge(f, vxlanVNI, mac, in.addr, message, splits)
				eventually(t, talkLimit, what+": it is counted", func() bool { return forgedCount(t, node) == before+1 })
				if from := in.get(t, message, 100*time.Millisecond); from.IsValid() {
					t.Errorf("%s: arrived from %s", what, from)
				}
				// What shows another VNI passes; what shows none might be ours.
				hidden := parts == "after a UDP header alone" && f == subnet.V6 && !tracking
				message = "another network's " + what
				forge(f, otherVNI, otherMAC, other.addr, message, splits)
				if from := other.get(t, message, map[bool]time.Duration{true: 100 * time.Millisecond, false: talkLimit}[hidden]); from.IsValid() == hidden {
					t.Errorf("%s: another network's packet arrived: %t", what, from.IsValid())
				}
			}
		}
	}
	p := probeOf(t, node)
	eventually(t, talkLimit, "the status has the guard's count", func() bool {
		s, err := p.client.Status(t.Context())
		return err == nil && s.Firewall.Guard && s.Firewall.Peers == len(l.Families()) && s.Firewall.Dropped == forgedCount(t, node)
	})
	// Without the guard the same packets arrive: they are well made.
	l.opts.DaemonArgs = []string{"--guard=off"}
	if err := node.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, f := range l.Families() {
		in := openInbox(t, pod.Namespace, netip.AddrPortFrom(pod.Addresses[f], 0))
		for parts, splits := range inWhatParts {
			what := fmt.Sprintf("%s, without the guard, %s", f, parts)
			forge(f, vxlanVNI, vxlan.DeviceMAC(node.Name, f, vxlanVNI), in.addr, what, splits)
			if from := in.get(t, what, talkLimit); !from.IsValid() {
				t.Errorf("%s: the packet did not arrive, so that the test is none", what)
			}
		}
	}
}

func otherAddress(f subnet.Family) netip.Addr {
	return subnet.PerFamily[netip.Addr]{netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("fd77::1")}[f]
}

// addOtherVXLAN adds another network's device on our port.
func addOtherVXLAN(t *testing.T, h *Host, f subnet.Family, vni int, mac subnet.MAC) {
	t.Helper()
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = fmt.Sprintf("other%d", f), mac[:]
		device := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vni, Port: vxlanPort, SrcAddr: h.Address(f).AsSlice()}
		if err := n.LinkAdd(device); err != nil {
			return err
		}
		if err := n.LinkSetUp(device); err != nil {
			return err
		}
		return addAddresses(n, device, []netip.Prefix{netip.PrefixFrom(otherAddress(f), otherAddress(f).BitLen())})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// trackConnections turns connection tracking on in a namespace, and with it the
// reassembly of fragments, by a rule of somebody else's.
func trackConnections(t *testing.T, ns *Namespace) {
	t.Helper()
	c := nft(t, ns)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "somebody"})
	chain := c.AddChain(&nftables.Chain{
		Table: table, Name: "states", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// tracked lists the connections that a namespace tracks.
func tracked(t *testing.T, ns *Namespace) []string {
	t.Helper()
	var text []byte
	err := ns.Do(func() (err error) {
		text, err = os.ReadFile("/proc/thread-self/net/nf_conntrack")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\n")
}

// Pods' traffic has the node's address outside and the pods' own inside, and
// traffic from a node to a pod has the node's overlay address: each as the
// receiver sees it. The tunnel's own packets are not tracked, and those of a
// tunnel of a pod's own are.
func TestMasquerade(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, DaemonArgs: []string{"--ip-masq=true", "--non-masquerade-cidrs=10.99.0.77/32,fd99::77/128"}})
	everyPairTalks(t, l, talkLimit)
	node, pod, far := l.Hosts[0], l.Hosts[0].Pods[0], l.Hosts[1].Pods[0]
	outside := l.EtcdNamespace()
	env, err := node.Env()
	if err != nil || !env.IPMasq {
		t.Errorf("the subnet file says masquerading is %t: %v", env.IPMasq, err)
	}
	exempt := subnet.PerFamily[netip.Addr]{netip.MustParseAddr("10.99.0.77"), netip.MustParseAddr("fd99::77")}
	err = outside.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		return addAddresses(n, link, []netip.Prefix{netip.PrefixFrom(exempt[0], 24), netip.PrefixFrom(exempt[1], 64)})
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range l.Families() {
		exchangeTCP(t, pod, far, f) // Asserts that the far end sees the pod.
		exchangeUDP(t, pod, far, f)
		seen := func(what string, from *Namespace, at inbox, message string, want netip.Addr) {
			t.Helper()
			send(t, from, at.addr, message)
			if got := at.get(t, message, talkLimit); got.Addr() != want {
				t.Errorf("%s, %s: the receiver sees %s, want %s", f, what, got, want)
			}
		}
		at := openInbox(t, outside, netip.AddrPortFrom(l.EtcdAddress(f), 0))
		seen("pod to outside", pod.Namespace, at, "out", node.Address(f))
		at = openInbox(t, outside, netip.AddrPortFrom(exempt[f], 0))
		seen("pod to an exempt address", pod.Namespace, at, "exempt", pod.Addresses[f])
		at = openInbox(t, far.Namespace, netip.AddrPortFrom(far.Addresses[f], 0))
		seen("node to pod", node.Namespace, at, "node", env.Subnets[f].Masked().Addr())
		at = openInbox(t, outside, netip.AddrPortFrom(l.EtcdAddress(f), vxlanPort))
		nested := string(vxlanPacket(vxlanVNI, subnet.MAC{}, []byte{0x45}))
		seen("a pod's own tunnel", pod.Namespace, at, nested, node.Address(f))
		at = openInbox(t, far.Namespace, netip.AddrPortFrom(far.Addresses[f], vxlanPort))
		seen("a pod's own tunnel to a pod", pod.Namespace, at, nested, pod.Addresses[f])

		// The nodes forward the pod's tunnel, of our VNI on our port, and track it as
		// all else of pods'; their own they do not.
		for _, h := range []*Host{node, far.Host} {
			theirs := 0
			for _, line := range tracked(t, h.Namespace) {
				if !strings.Contains(line, fmt.Sprintf("dport=%d ", vxlanPort)) {
					continue
				}
				ofPod := func(a netip.Addr) bool { return strings.Contains(line, "src="+a.StringExpanded()+" ") }
				switch {
				case ofPod(pod.Addresses[f]):
					theirs++
				case !ofPod(pod.Addresses[subnet.V4]) && !ofPod(pod.Addresses[subnet.V6]):
					t.Errorf("%s: %s tracks the tunnel: %s", f, h.Name, line)
				}
			}
			if theirs == 0 {
				t.Errorf("%s: %s does not track a pod's own tunnel", f, h.Name)
			}
		}
	}
}

// What kube-proxy marks for its own masquerading, and what pods send to a multicast
// group, leaves with the pod's address; the like without keeps nothing of it. (The
// host sends in a pod's name: it forwards no multicast without a daemon for that.)
func TestMasqueradeLeavesMarkedAndMulticastAlone(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 1, Mode: Dual, DaemonArgs: []string{"--ip-masq=true"}})
	node, outside := l.Hosts[0], l.EtcdNamespace()
	pod := node.Pods[0]
	device := func(fd int) error { return unix.BindToDevice(fd, hostInterface) }
	mark := func(bit int) func(int) error {
		return func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, bit) }
	}
	for _, f := range l.Families() {
		group := netip.AddrPortFrom(subnet.PerFamily[netip.Addr]{netip.MustParseAddr("239.1.2.3"), netip.MustParseAddr("ff0e::123")}[f], 9999)
		at := openInbox(t, outside, netip.AddrPortFrom(l.EtcdAddress(f), 0))
		members := joinGroup(t, outside, group)
		for i, test := range []struct {
			what string
			to   inbox
			mark int
			want netip.Addr
		}{
			{"unmarked", at, 0, node.Address(f)},
			{"with kube-proxy's mark", at, 0x4000, pod.Addresses[f]},
			{"with kube-proxy's mark among others", at, 0x4000 | 1, pod.Addresses[f]},
			{"with another's mark", at, 0x8000, node.Address(f)},
			{"to a group", members, 0, pod.Addresses[f]},
		} {
			// Each is a connection of its own: a translation lasts as long as one.
			from := netip.AddrPortFrom(pod.Addresses[f], uint16(5000+i))
			packets := ipPackets(from.Addr(), test.to.addr.Addr(), udpDatagram(from, test.to.addr, []byte(test.what)))
			sendRaw(t, node.Namespace, test.to.addr.Addr(), packets, device, mark(test.mark))
			if got := test.to.get(t, test.what, talkLimit); got.Addr() != test.want {
				t.Errorf("%s, %s: the receiver sees %s, want %s", f, test.what, got, test.want)
			}
		}
	}
}

// joinGroup is an inbox of a multicast group.
func joinGroup(t *testing.T, ns *Namespace, group netip.AddrPort) inbox {
	t.Helper()
	var conn *net.UDPConn
	err := ns.Do(func() error {
		i, err := net.InterfaceByName(hostInterface)
		if err != nil {
			return err
		}
		conn, err = net.ListenMulticastUDP("udp", i, net.UDPAddrFromAddrPort(group))
		return err
	})
	if err != nil {
		t.Fatalf("join %s in %s: %v", group, ns.Name(), err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return inbox{conn, group}
}

// Flushing all rules, or writing all anew, loses no packet between pods, and
// they are back at once.
func TestFlushedRulesetHeals(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, DaemonArgs: []string{"--ip-masq=true"}})
	everyPairTalks(t, l, talkLimit)
	node := l.Hosts[0]
	from, to := node.Pods[0], l.Hosts[1].Pods[0]
	pinger, err := StartPinger(t.Context(), from.Namespace, from.Addresses[0], to.Addresses[0], 100, PingOptions{Timeout: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	c := nft(t, node.Namespace)
	rules := func() int {
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
		if err != nil {
			t.Fatal(err)
		}
		return len(chains)
	}
	whole := rules()
	for range 3 {
		c.FlushRuleset()
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, talkLimit, "the rules are back", func() bool { return rules() == whole })
		t.Logf("the rules are back after %s", time.Since(began).Round(time.Millisecond))
	}
	for _, args := range [][]string{{"--guard=off"}, {"--ip-masq=true"}} {
		l.opts.DaemonArgs = args
		if err := node.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if rules() != whole {
		t.Errorf("%d chains after other options and back, before %d", rules(), whole)
	}
	if r := pinger.Stop(); r.Lost != 0 || len(r.Failed) != 0 {
		t.Errorf("pings: %s", r)
	}
}

// ruleHandles are the numbers of all rules of ours: they change when a rule is
// written anew.
func ruleHandles(t *testing.T, h *Host) []uint64 {
	t.Helper()
	c := nft(t, h.Namespace)
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	var out []uint64
	for _, chain := range chains {
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			out = append(out, r.Handle)
		}
	}
	return out
}

// A daemon that is stopped, killed and started again finds its rules as they are
// to be, and writes none.
func TestRestartWritesNoRule(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, DaemonArgs: []string{"--ip-masq=true"}})
	everyPairTalks(t, l, talkLimit)
	h := l.Hosts[0]
	before := ruleHandles(t, h)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if _, _, err := h.StopDaemon(t.Context(), sig); err != nil {
			t.Fatal(err)
		}
		if got := ruleHandles(t, h); !slices.Equal(got, before) {
			t.Errorf("%s: rules %v, before %v", sig, got, before)
		}
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := h.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := ruleHandles(t, h); !slices.Equal(got, before) || len(got) == 0 {
			t.Errorf("started after %s: rules %v, before %v", sig, got, before)
		}
	}
}
