package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// secondNIC is the name of a host's other interface, worstMetric that of its
// default routes, which count only where there are no others.
const (
	secondNIC   = "eth1"
	worstMetric = 5000
)

// addNIC connects a host to the far link too.
func addNIC(t *testing.T, l *Lab, h *Host, metric int) {
	t.Helper()
	port := h.Name + "-far"
	err := plug(l.underlay.ns, far.bridge, port, h.Namespace, secondNIC, nil, underlayMTU)
	if err == nil {
		err = h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(secondNIC)
			if err != nil {
				return err
			}
			if err := errors.Join(n.LinkSetUp(link), addAddresses(n, link, l.underlay.prefixes(far, h.number))); err != nil {
				return err
			}
			for _, g := range l.underlay.prefixes(far, gatewayNumber) {
				if err := n.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: g.Addr().AsSlice(), Priority: metric}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err == nil {
		err = errors.Join(l.underlay.ns.awaitUp(t.Context(), port, far.bridge), h.Namespace.awaitUp(t.Context(), secondNIC))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// startDaemons starts the daemons of a lab that was made without.
func startDaemons(t *testing.T, l *Lab) {
	t.Helper()
	l.DaemonsStarted = time.Now()
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range l.Hosts {
		if err := l.settle(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTwoInterfaces: without a word from the operator the interface is taken by
// which etcd is reached, not that of the default route. When it goes, the node goes
// over to the other, and comes back with it.
func TestTwoInterfaces(t *testing.T) {
	for _, mode := range []Mode{Dual, IPv6} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			l := startLab(t, Options{Nodes: 3, Far: 1, Mode: mode, NoDaemons: true, AnyInterface: true})
			h := l.Hosts[0]
			addNIC(t, l, h, worstMetric)
			// The way to etcd is by eth0's own link; all else would go by eth1.
			defaultBy(t, h, hostInterface, false)
			startDaemons(t, l)
			everyPairTalks(t, l, talkLimit)
			if log := h.DaemonLog(); !strings.Contains(log, "is the way to the store at") || !strings.Contains(log, `"interface":"eth0"`) || !strings.Contains(log, "eth1 (10.98.0.1") && !strings.Contains(log, "eth1 (fd98::1") {
				t.Errorf("the log does not say what was chosen, and from what:\n%s", log)
			}
			macs := vtepMACs(t, h)
			moved := func(what string, deed func() error) {
				t.Helper()
				flows := startFlows(t, l)
				time.Sleep(calm)
				if err := deed(); err != nil {
					t.Fatal(err)
				}
				began, why := time.Now(), ""
				node, ok := timeUntil(othersFollow, func() bool { why = nodeIsAt(h); return why == "" })
				if !ok {
					t.Fatalf("%s: the node has not followed: %s", what, why)
				}
				if _, ok := timeUntil(othersFollow, func() bool { why = peersSendTo(l, h, macs); return why == "" }); !ok {
					t.Fatalf("%s: the peers have not followed: %s", what, why)
				}
				peers := time.Since(began)
				everyPairTalks(t, l, talkLimit)
				row := stopFlows(t, l, flows, allPeers)
				t.Logf("%s: the node followed after %s, its peers after %s, the longest gap was %s", what, node.Round(time.Millisecond), peers.Round(time.Millisecond), row.gap.Round(time.Millisecond))
			}
			h.at = far
			moved("eth0 set down", func() error {
				return h.Namespace.netlink(func(n *netlink.Handle) error {
					link, err := n.LinkByName(hostInterface)
					if err != nil {
						return err
					}
					return n.LinkSetDown(link)
				})
			})
			h.at = near
			moved("eth0 set up", func() error {
				return h.Namespace.netlink(func(n *netlink.Handle) error {
					link, err := n.LinkByName(hostInterface)
					if err != nil {
						return err
					}
					if err := n.LinkSetUp(link); err != nil || mode == IPv4 {
						return err
					}
					// The kernel forgets IPv6 addresses with an interface that is set down.
					six := near.prefix(subnet.V6, h.number)
					return addAddresses(n, link, []netip.Prefix{six})
				})
			})
		})
	}
}

// defaultBy takes a host's default routes by an interface away, or gives them back.
func defaultBy(t *testing.T, h *Host, name string, there bool) {
	t.Helper()
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(name)
		if err != nil {
			return err
		}
		for _, g := range h.lab.underlay.prefixes(near, gatewayNumber) {
			r := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: g.Addr().AsSlice()}
			if there {
				err = errors.Join(err, n.RouteAdd(r))
			} else {
				err = errors.Join(err, n.RouteDel(r))
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// natAddress is where the router of the lab shows a host of the far link.
var natAddress = netip.MustParseAddr("10.99.0.77")

// translate has the lab's router stand for a host of the far link under an address
// of the near one, both ways.
func translate(t *testing.T, l *Lab, h *Host) {
	t.Helper()
	err := l.underlay.ns.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(near.bridge)
		if err != nil {
			return err
		}
		return n.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: natAddress.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
	if err != nil {
		t.Fatal(err)
	}
	own := h.Address(subnet.V4)
	c := nft(t, l.underlay.ns)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	// Each rule compares the address at an offset of the IPv4 header, and puts
	// another in its place.
	rule := func(chain *nftables.Chain, offset uint32, from, to netip.Addr, typ expr.NATType) {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from.AsSlice()},
			&expr.Immediate{Register: 1, Data: to.AsSlice()},
			&expr.NAT{Type: typ, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
		}})
	}
	in := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	out := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
	rule(in, 16, natAddress, own, expr.NATTypeDestNAT)
	rule(out, 12, own, natAddress, expr.NATTypeSourceNAT)
	if err := c.Flush(); err != nil {
		t.Fatalf("translate addresses: %v", err)
	}
}

// TestOneToOneNAT: a host behind a router that shows it under another address
// publishes that one and is bound to its own. Its guard and its peers' let all
// through. It follows an address of its own that changes, and publishes what it did.
func TestOneToOneNAT(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Far: 1, Mode: IPv4, NoDaemons: true, AnyInterface: true})
	h := l.Hosts[2]
	translate(t, l, h)
	h.DaemonArgs = []string{"--public-ip=" + natAddress.String()}
	startDaemons(t, l)
	everyPairTalks(t, l, talkLimit)
	published := func() string {
		for _, line := range mustPicture(t, l.Hosts[0]) {
			for _, mac := range vtepMACs(t, h) {
				if strings.HasPrefix(line, "fdb ") && strings.Contains(line, mac) {
					return strings.Fields(line)[1]
				}
			}
		}
		return ""
	}
	if at := published(); at != natAddress.String() {
		t.Errorf("it is published at %s", at)
	}
	if why := nodeIsAt(h); why != "" {
		t.Errorf("it is not bound to its own address: %s", why)
	}
	// Its own address changes, and with it what the router stands for.
	if err := renumber(secondSeat, true)(t, l, h); err != nil {
		t.Fatal(err)
	}
	h.seat = secondSeat
	c := nft(t, l.underlay.ns)
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "nat"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	began, why := time.Now(), ""
	if _, ok := timeUntil(otherwise, func() bool { why = nodeIsAt(h); return why == "" }); !ok {
		t.Fatalf("the node has not followed: %s", why)
	}
	took := time.Since(began)
	addressed := l.underlay.ns.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(near.bridge)
		if err != nil {
			return err
		}
		// What it has translated so far it would go on with as it did.
		return errors.Join(l.underlay.ns.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }),
			n.AddrDel(link, &netlink.Addr{IPNet: &net.IPNet{IP: natAddress.AsSlice(), Mask: net.CIDRMask(32, 32)}}))
	})
	if addressed != nil {
		t.Fatal(addressed)
	}
	translate(t, l, h)
	everyPairTalks(t, l, talkLimit)
	if at := published(); at != natAddress.String() {
		t.Errorf("after the change it is published at %s", at)
	}
	t.Logf("the node followed after %s; pods talk %s after the change", took.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}

// TestTranslatedAddressOnTheLink: the outer address of a 1:1 NAT is on the link of the
// host's peers, and whoever answers there takes no pods' packets. Peers with direct routes
// send to it through the tunnel; with host-gw they report it.
func TestTranslatedAddressOnTheLink(t *testing.T) {
	t.Run("direct", func(t *testing.T) {
		t.Parallel()
		l := startLab(t, Options{Nodes: 3, Far: 1, Mode: IPv4, NoDaemons: true, AnyInterface: true, Config: configWith(IPv4, directRoutes)})
		h := l.Hosts[2]
		translate(t, l, h)
		h.DaemonArgs = []string{"--public-ip=" + natAddress.String()}
		startDaemons(t, l)
		everyPairTalks(t, l, talkLimit)
		for _, peer := range l.Hosts[:2] {
			if direct, tunnel := routesOf(t, peer); direct != 1 || tunnel != 1 {
				t.Errorf("%s has %d direct and %d tunnelled routes, want 1 and 1", peer.Name, direct, tunnel)
			}
		}
	})
	t.Run("host-gw", func(t *testing.T) {
		t.Parallel()
		l := startLab(t, Options{Nodes: 3, Far: 1, Mode: IPv4, NoDaemons: true, AnyInterface: true, Config: configWith(IPv4, hostGateway)})
		h := l.Hosts[2]
		translate(t, l, h)
		h.DaemonArgs = []string{"--public-ip=" + natAddress.String()}
		startDaemons(t, l)
		for _, peer := range l.Hosts[:2] {
			saysInTime(t, peer, "public address "+natAddress.String()+" is translated to another of its holder's (1:1 NAT)")
			var direct, tunnel int // The other peer's record may come after that one.
			if _, ok := timeUntil(talkLimit, func() bool { direct, tunnel = routesOf(t, peer); return direct > 0 }); !ok || direct != 1 || tunnel != 0 {
				t.Errorf("%s has %d direct and %d tunnelled routes, want 1 and 0", peer.Name, direct, tunnel)
			}
		}
	})
}

// TestHostGatewayFollowsTheUnderlay: with host-gw, who comes onto the link is
// reached and who is no longer on it is reported, as the host's own link changes.
func TestHostGatewayFollowsTheUnderlay(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: IPv4, Config: configWith(IPv4, hostGateway)})
	everyPairTalks(t, l, talkLimit)
	h, peer := l.Hosts[0], l.Hosts[1]
	onLink := func(bits int) error {
		return h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			change := func(do func(netlink.Link, *netlink.Addr) error, bits int) error {
				return do(link, &netlink.Addr{IPNet: &net.IPNet{IP: h.Address(subnet.V4).AsSlice(), Mask: net.CIDRMask(bits, 32)}})
			}
			old := 24
			if bits == 24 {
				old = 32
			}
			return errors.Join(change(n.AddrAdd, bits), change(n.AddrDel, old))
		})
	}
	routes := func() (int, error) {
		direct, _ := routesOf(t, h)
		return direct, nil
	}
	if err := onLink(32); err != nil {
		t.Fatal(err)
	}
	took, ok := timeUntil(otherwise, func() bool { n, _ := routes(); return n == 0 })
	if !ok {
		t.Fatal("a peer that is not on the link has a route still")
	}
	if want := fmt.Sprintf("public address %s is not on the link of eth0", peer.Address(subnet.V4)); !strings.Contains(h.DaemonLog(), want) {
		if _, ok := timeUntil(otherwise, func() bool { return strings.Contains(h.DaemonLog(), want) }); !ok {
			t.Errorf("the log does not say %q", want)
		}
	}
	if err := onLink(24); err != nil {
		t.Fatal(err)
	}
	back, ok := timeUntil(otherwise, func() bool { n, _ := routes(); return n == 1 })
	if !ok {
		t.Fatal("a peer that is on the link again has no route")
	}
	everyPairTalks(t, l, talkLimit)
	t.Logf("the route was gone after %s, and there again after %s", took.Round(time.Millisecond), back.Round(time.Millisecond))
}
