package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/subnet"
)

// host is a network namespace that stands for a node, with an underlay of a veth
// pair. Its overlay is a subnet's address on lo, and a route to the other's.
type host struct {
	t     *testing.T
	ns    *os.File
	lease subnet.Lease
	peers []subnet.Lease
	// trouble is what its echo says.
	trouble atomic.Uint32
	// alone takes its peers from it.
	alone atomic.Bool
}

const (
	testPort    = DefaultPort
	testLinkMTU = 1500
)

// testLease is that of the n-th node.
func testLease(n int) subnet.Lease {
	return subnet.Lease{
		Node: fmt.Sprintf("node%d", n),
		Subnets: subnet.Subnets{
			netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n)), netip.MustParsePrefix(fmt.Sprintf("fd00:10:5:%x::/64", n)),
		},
		Endpoints: subnet.PerFamily[subnet.Endpoint]{
			{PublicIP: netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n))}, {PublicIP: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", n))},
		},
	}
}

// Own implements Here.
func (h *host) Own(l Layer, f subnet.Family) netip.Addr { return l.Address(f, h.lease) }

// Peer implements Here.
func (h *host) Peer(l Layer, a netip.Addr) (subnet.Lease, bool) {
	if h.alone.Load() {
		return subnet.Lease{}, false
	}
	for _, p := range h.peers {
		if l.Address(subnet.FamilyOf(a), p) == a {
			return p, true
		}
	}
	return subnet.Lease{}, false
}

// Trouble implements Here.
func (h *host) Trouble() Trouble { return Trouble(h.trouble.Load()) }

// startHosts makes two hosts that know each other, each with an echo.
func startHosts(t *testing.T) (a, b *host) {
	a = &host{t: t, ns: kerneltest.Namespace(t), lease: testLease(1), peers: []subnet.Lease{testLease(2)}}
	b = &host{t: t, ns: kerneltest.Namespace(t), lease: testLease(2), peers: []subnet.Lease{testLease(1)}}
	a.netlink(func(n *netlink.Handle) error {
		return n.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: testLinkMTU}, PeerName: "eth0", PeerNamespace: netlink.NsFd(b.ns.Fd()), PeerMTU: testLinkMTU,
		})
	})
	for _, h := range []*host{a, b} {
		h.do(func() error {
			for key, value := range map[string]string{
				"ipv6/conf/eth0/accept_dad": "0", "ipv6/conf/eth0/router_solicitations": "0",
				// No error is held back, also where others of the machine send many: before
				// Linux 6.11 icmp_msgs_per_sec is that of all namespaces together.
				"ipv4/icmp_ratemask": "0", "ipv6/icmp/ratemask": "255",
				"ipv4/neigh/eth0/retrans_time_ms": "100", "ipv6/neigh/eth0/retrans_time_ms": "100",
			} {
				if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0); err != nil {
					return fmt.Errorf("set %s: %w", key, err)
				}
			}
			return nil
		})
	}
	for _, h := range []*host{a, b} {
		h.netlink(h.configure)
		kerneltest.Addressed(h.t, h.ns)
	}
	for _, h := range []*host{a, b} {
		h.netlink(awaitCarrier)
		h.netlink(h.route)
		h.startEcho()
	}
	return a, b
}

func (h *host) configure(n *netlink.Handle) error {
	eth, err := n.LinkByName("eth0")
	if err != nil {
		return err
	}
	lo, err := n.LinkByName("lo")
	if err != nil {
		return err
	}
	for _, f := range subnet.Families {
		public, base := h.Own(Underlay, f), h.Own(Overlay, f)
		for _, add := range []struct {
			link netlink.Link
			addr netip.Prefix
		}{{eth, netip.PrefixFrom(public, f.Bits()-8)}, {lo, netip.PrefixFrom(base, f.Bits())}} {
			a := &netlink.Addr{IPNet: ipNet(add.addr), Flags: unix.IFA_F_NODAD}
			if err := n.AddrAdd(add.link, a); err != nil {
				return fmt.Errorf("add %s: %w", add.addr, err)
			}
		}
	}
	return n.LinkSetUp(eth)
}

// awaitCarrier waits until the kernel sends by a link whose other end was set up:
// linkwatch takes up to a second to see that.
func awaitCarrier(n *netlink.Handle) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if eth, err := n.LinkByName("eth0"); err != nil || eth.Attrs().OperState == netlink.OperUp {
			return err
		}
	}
	return errors.New("eth0 gets no carrier")
}

// route leads to the peers' subnets.
func (h *host) route(n *netlink.Handle) error {
	for _, f := range subnet.Families {
		for _, p := range h.peers {
			r := &netlink.Route{Dst: ipNet(p.Subnets[f]), Gw: Underlay.Address(f, p).AsSlice()}
			if err := n.RouteAdd(r); err != nil {
				return fmt.Errorf("add %v: %w", r, err)
			}
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (h *host) netlink(do func(*netlink.Handle) error) {
	h.t.Helper()
	n, err := netlink.NewHandleAt(netns.NsHandle(h.ns.Fd()), unix.NETLINK_ROUTE)
	if err == nil {
		defer n.Close()
		err = do(n)
	}
	if err != nil {
		h.t.Fatalf("set up a host: %v", err)
	}
}

func (h *host) do(do func() error) { h.t.Helper(); kerneltest.Do(h.t, h.ns, do) }

// startEcho answers on the host until the test ends.
func (h *host) startEcho() *Echo {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e := NewEcho(testPort, subnet.Families[:], h, zap.NewNop())
	var sockets subnet.PerFamily[*socket]
	for _, f := range subnet.Families {
		h.do(func() (err error) { sockets[f], err = openEcho(ctx, f, testPort); return err })
	}
	e.open = func(_ context.Context, f subnet.Family) (*socket, error) { return sockets[f], nil }
	done := make(chan error)
	go func() { done <- e.Run(ctx) }()
	h.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	})
	return e
}

// asker asks from the host until the test ends.
func (h *host) asker() *Asker {
	h.t.Helper()
	var a *Asker
	h.do(func() (err error) { a, err = OpenAsker(h.t.Context(), subnet.Families[:]...); return err })
	h.t.Cleanup(func() {
		if err := a.Close(); err != nil {
			h.t.Error(err)
		}
	})
	return a
}
