package lab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/ping"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// TestMixedMTU: hosts with different MTUs, on one link and behind a router. A
// packet as large as both ends advertise passes unsplit; one byte more does not
// leave the host, and whoever sends it is told the MTU.
func TestMixedMTU(t *testing.T) {
	for name, opts := range map[string]Options{
		"vxlan-ipv4":   {Nodes: 3, Far: 1, Mode: IPv4, MTUs: []int{1500, 1400, 1450}},
		"vxlan-ipv6":   {Nodes: 3, Far: 1, Mode: IPv6, MTUs: []int{1500, 1400, 1450}},
		"vxlan-dual":   {Nodes: 3, Far: 1, Mode: Dual, MTUs: []int{1500, 1400, 1450}},
		"direct-dual":  {Nodes: 3, Far: 1, Mode: Dual, MTUs: []int{1500, 1400, 1450}, Config: configWith(Dual, directRoutes)},
		"host-gw-dual": {Nodes: 3, Mode: Dual, MTUs: []int{1500, 1400, 1300}, Config: configWith(Dual, hostGateway)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLab(t, opts)
			everyPairTalks(t, l, talkLimit)
			for _, a := range l.Hosts {
				waysAreTold(t, l, a)
			}
			var captures []*capture
			for _, h := range l.Hosts {
				captures = append(captures, startCapture(t, l.Underlay(), h.Name))
			}
			for _, f := range l.Families() {
				for _, a := range l.Hosts {
					for _, b := range l.Hosts {
						if a != b {
							mtuHolds(t, f, a, b)
						}
					}
				}
			}
			for _, c := range captures {
				for _, p := range c.end() {
					if p.fragment {
						t.Fatalf("a packet from %s to %s was split", p.src, p.dst)
					}
				}
			}
		})
	}
}

// waysAreTold checks that a host's daemon tells of each peer the path that packets
// take and the MTU that the kernel has for it.
func waysAreTold(t *testing.T, l *Lab, a *Host) {
	t.Helper()
	page := presentPeers(t, a, len(l.Hosts)-1)
	for _, b := range l.Hosts {
		i := slices.IndexFunc(page.Peers, func(p status.Peer) bool { return p.Node == b.Name })
		if a == b {
			continue
		}
		if i < 0 || len(page.Peers[i].Ways) != len(l.Families()) {
			t.Fatalf("%s tells of %s: %+v", a.Name, b.Name, page.Peers)
		}
		want := status.Tunnel
		if l.opts.Config != UsualConfig(l.Mode()) && a.at == b.at {
			want = status.Direct
		}
		for j, f := range l.Families() {
			way, mtu := page.Peers[i].Ways[j], 0
			if err := sendUDP(t, a.Namespace, netip.Addr{}, b.Pods[0].Addresses[f], f, 100, &mtu); err != nil {
				t.Fatal(err)
			}
			if way.Family != f.String() || way.Path != want || way.MTU != mtu || way.Public != b.Address(f) || way.Entries != status.Present {
				t.Errorf("%s tells of %s: %+v, want the path %s and the kernel's MTU of %d", a.Name, b.Name, way, want, mtu)
			}
			if b.Pods[0].MTU < a.Pods[0].MTU && mtu != b.Pods[0].MTU {
				t.Errorf("the kernel of %s has an MTU of %d to %s, whose pods have %d", a.Name, mtu, b.Name, b.Pods[0].MTU)
			}
		}
	}
}

// mtuHolds checks what pods of one host can send to those of another, and what the
// host itself can where the other takes less.
func mtuHolds(t *testing.T, f subnet.Family, a, b *Host) {
	t.Helper()
	from, to := a.Pods[0], b.Pods[0]
	want := min(from.MTU, to.MTU)
	// A smaller MTU is told to a pod by its host, so its first packet may be lost.
	tooLarge(t, from.Namespace, from.Addresses[f], to.Addresses[f], f, want)
	if to.MTU < from.MTU { // The host knows at once.
		if err := sendUDP(t, a.Namespace, netip.Addr{}, to.Addresses[f], f, want+1, nil); !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("%s from %s to %s: the first packet of %d bytes: %v", f, a.Name, to.Name, want+1, err)
		}
		tooLarge(t, a.Namespace, netip.Addr{}, to.Addresses[f], f, want)
	}
	for _, sender := range []struct {
		ns *Namespace
		at netip.Addr
	}{{from.Namespace, from.Addresses[f]}, {a.Namespace, netip.Addr{}}} {
		size := want - udpOverhead[f] // The ICMP header is as long as UDP's.
		_, err := Ping(t.Context(), sender.ns, sender.at, to.Addresses[f], PingOptions{Size: size, DontFragment: true})
		if err != nil {
			t.Errorf("%s: a packet of %d bytes: %v", f, want, err)
		}
	}
}

// tooLarge sees that a packet of one byte more than the MTU fails where it is
// sent, and that the sender is told that MTU.
func tooLarge(t *testing.T, ns *Namespace, from, to netip.Addr, f subnet.Family, mtu int) {
	t.Helper()
	told := 0
	var err error
	_, in := timeUntil(talkLimit, func() bool {
		err = sendUDP(t, ns, from, to, f, mtu+1, &told)
		return errors.Is(err, unix.EMSGSIZE)
	})
	if !in || told != mtu {
		t.Errorf("%s from %s to %s: one byte more than %d: %v, and the MTU told is %d", f, ns.name, to, mtu, err, told)
	}
}

// sendUDP sends a packet of that many bytes that must not be split. Where told is
// not nil, it gets the MTU that the kernel has for the way after that (IP_MTU).
func sendUDP(t *testing.T, ns *Namespace, from, to netip.Addr, f subnet.Family, size int, told *int) error {
	t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error { return ping.DontFragment(c, f == subnet.V4, true) }}
	if from.IsValid() {
		dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	var conn net.Conn
	err := ns.Do(func() (err error) {
		conn, err = dialer.DialContext(context.Background(), "udp", netip.AddrPortFrom(to, 9).String())
		return err
	})
	if err != nil {
		t.Fatalf("open a UDP socket in %s: %v", ns.name, err)
	}
	defer conn.Close()
	_, err = conn.Write(make([]byte, size-udpOverhead[f]))
	if told == nil {
		return err
	}
	raw, rawErr := conn.(*net.UDPConn).SyscallConn()
	if rawErr != nil {
		t.Fatal(rawErr)
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if f == subnet.V6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	ctlErr := raw.Control(func(fd uintptr) { *told, rawErr = unix.GetsockoptInt(int(fd), level, option) })
	if err := errors.Join(ctlErr, rawErr); err != nil {
		t.Fatalf("ask for the MTU in %s: %v", ns.name, err)
	}
	return err
}
