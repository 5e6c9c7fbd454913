package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// How long a node may take to follow its underlay, and its peers to follow the
// node, as long as nothing else runs; and both beside other tests. A connection to etcd
// that is left to time out takes 13 s (etcd.keepAliveTime and etcd.keepAliveTimeout).
const (
	nodeFollows  = time.Second
	peersFollow  = 3 * time.Second
	othersFollow = 8 * time.Second
	otherwise    = 10 * time.Second
	secondSeat   = 101
	smallerMTU   = 1400
	hostOverhead = 50 // Of a tunnel over IPv4.
)

// underlayFault is done to the underlay of the first host, which is elsewhere or
// otherwise after it.
type underlayFault struct {
	name string
	do   deed
	// seat and mtu are where the host is then; 0 is where it was.
	seat, mtu int
}

var underlayFaults = []underlayFault{
	{name: "underlay: address changed, the new before the old", do: shows(renumber(secondSeat, true), movesCounted), seat: secondSeat},
	{name: "underlay: address changed back, the old before the new", do: shows(renumber(1, false), movesCounted), seat: 1},
	{name: "underlay: address changed, the old before the new", do: shows(renumber(secondSeat, false), movesCounted), seat: secondSeat},
	{name: "underlay: address changed back, the new before the old", do: shows(renumber(1, true), movesCounted), seat: 1},
	{name: "underlay: address gone and back", do: shows(addressesGone, failed(status.UnderlayThere))},
	{name: "underlay: MTU down", do: shows(setMTU(smallerMTU), movesCounted), mtu: smallerMTU},
	{name: "underlay: MTU up", do: shows(setMTU(underlayMTU), movesCounted), mtu: underlayMTU},
	{name: "underlay: interface made again at another address, MTU", do: shows(remadeAt(secondSeat, smallerMTU), movesCounted), seat: secondSeat, mtu: smallerMTU},
	{name: "underlay: interface made again as it was", do: shows(remadeAt(1, underlayMTU), movesCounted), seat: 1, mtu: underlayMTU},
}

// underlayFaults measures how long the host takes, and its peers.
func (s *faultSuite) underlayFaults(t *testing.T) {
	for _, c := range []struct {
		name, backend string
		mode          Mode
	}{{"dual", tunnels, Dual}, {"ipv6", tunnels, IPv6}, {"direct dual", directRoutes, Dual}} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			if !s.alone {
				t.Parallel()
			}
			l := startLab(t, Options{Nodes: 3, Mode: c.mode, Config: configWith(c.mode, c.backend)})
			everyPairTalks(t, l, talkLimit)
			for _, f := range underlayFaults {
				if !t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) { s.tryUnderlay(t, l, c.name, f) }) {
					return // What comes next counts on a network that is whole.
				}
			}
		})
	}
	t.Run("kept", func(t *testing.T) {
		if !s.alone {
			t.Parallel()
		}
		s.underlayKept(t)
	})
}

func (s *faultSuite) tryUnderlay(t *testing.T, l *Lab, network string, f underlayFault) {
	h := l.Hosts[0]
	before, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	macs := vtepMACs(t, h)
	looks := startLook(t, h, f.do.signs)
	flows := startFlows(t, l)
	time.Sleep(calm)
	began := time.Now()
	if err := f.do.act(t, l, h); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if f.seat != 0 {
		h.seat = f.seat
	}
	if f.mtu != 0 {
		h.mtu = f.mtu
	}
	done := time.Now()
	why := ""
	wait := func(limit time.Duration, what string, is func() string) time.Duration {
		if _, ok := timeUntil(limit, func() bool { why = is(); return why == "" }); !ok {
			t.Errorf("%s after %s: %s", what, limit, why)
		}
		return time.Since(done)
	}
	soon, later := nodeFollows, peersFollow
	if !s.alone {
		soon, later = othersFollow, othersFollow
	}
	node := wait(soon, "the node has not followed", func() string { return nodeIsAt(h) })
	peers := wait(later, "the peers have not followed", func() string { return peersSendTo(l, h, macs) })
	time.Sleep(calm)
	everyPairTalks(t, l, talkLimit)
	time.Sleep(calm)
	row := stopFlows(t, l, flows, allPeers)
	if limit := took + otherwise; row.gap > limit {
		t.Errorf("no answer for %s", row.gap)
	}
	if after, err := h.Env(); err != nil || after.Subnets != before.Subnets {
		t.Errorf("its subnets are %s, they were %s (%v)", after.Subnets, before.Subnets, err)
	}
	if why := nodeIsAt(h) + peersSendTo(l, h, macs); why != "" {
		t.Errorf("it did not stay so: %s", why)
	}
	row.lab, row.fault, row.healed = network, f.name, peers
	s.add(row, looks.end(t))
	t.Logf("the deed took %s; the node followed after %s, its peers after %s, the longest gap was %s", took.Round(time.Millisecond),
		node.Round(time.Millisecond), peers.Round(time.Millisecond), row.gap.Round(time.Millisecond))
}

// movedGrace is for how long peers let packets in from where a node was.
const movedGrace = 10 * time.Second

// underlayStays are moves of the first host's during which its old address serves on:
// not one packet is lost by them.
var underlayStays = []struct {
	name string
	do   deed
	// seat and at are where the host is then.
	seat int
	at   segment
	// nics says that the host is on the far link, too, and goes by the way to etcd.
	nics bool
}{
	{name: "underlay: another address is to be used, the old one goes long after", do: shows(joinedBy(secondSeat), movesCounted), seat: secondSeat, at: near},
	{name: "underlay: the way to etcd goes over to another interface", do: shows(wayToEtcd(true), movesCounted), seat: 1, at: far, nics: true},
	{name: "underlay: the way to etcd comes back", do: shows(wayToEtcd(false), movesCounted), seat: 1, at: near, nics: true},
}

// underlayKept holds moves to their word that nothing is lost by them.
func (s *faultSuite) underlayKept(t *testing.T) {
	for _, nics := range []bool{false, true} {
		var l *Lab
		for _, f := range underlayStays {
			if f.nics != nics {
				continue
			}
			if l == nil {
				l = startLab(t, Options{Nodes: 3, Far: 1, Mode: Dual, NoDaemons: true, AnyInterface: true})
				if nics {
					addNIC(t, l, l.Hosts[0], worstMetric)
				} else {
					l.Hosts[0].DaemonArgs = []string{fmt.Sprintf("--iface-regex=[.:]%d$", secondSeat), "--iface-regex=^" + hostInterface + "$"}
				}
				startDaemons(t, l)
				everyPairTalks(t, l, talkLimit)
			}
			t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) {
				h := l.Hosts[0]
				macs := vtepMACs(t, h)
				looks := startLook(t, h, f.do.signs)
				flows := startFlows(t, l)
				time.Sleep(calm)
				h.seat, h.at = f.seat, f.at
				began := time.Now()
				if err := f.do.act(t, l, h); err != nil {
					t.Fatal(err)
				}
				took, done, why := time.Since(began), time.Now(), ""
				if _, ok := timeUntil(otherwise, func() bool { why = nodeIsAt(h) + peersSendTo(l, h, macs); return why == "" }); !ok {
					t.Errorf("it is not followed: %s", why)
				}
				healed := time.Since(done)
				time.Sleep(calm)
				row := stopFlows(t, l, flows, nobody)
				row.lab, row.fault, row.deed, row.healed = "kept", f.name, took, healed
				s.add(row, looks.end(t))
				t.Logf("followed after %s, the longest gap was %s", healed.Round(time.Millisecond), row.gap.Round(time.Millisecond))
			})
		}
	}
}

// joinedBy gives the host the addresses of another seat, and takes those that it has away
// when no peer lets packets in from them any more.
func joinedBy(seat int) func(*testing.T, *Lab, *Host) error {
	return func(t *testing.T, l *Lab, h *Host) error {
		if err := errors.Join(promote(h), seatOf(l, h, seat, true)); err != nil {
			return err
		}
		why := ""
		if _, ok := timeUntil(otherwise, func() bool { why = nodeIsAt(h); return why == "" }); !ok {
			return errors.New(why)
		}
		time.Sleep(movedGrace + time.Second)
		return errors.Join(seatOf(l, h, h.number, false), gateways(l, h))
	}
}

// wayToEtcd has the host reach etcd by its other interface, or as it did.
func wayToEtcd(other bool) func(*testing.T, *Lab, *Host) error {
	return func(_ *testing.T, l *Lab, h *Host) error {
		return h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(secondNIC)
			if err != nil {
				return err
			}
			f := l.Families()[0]
			etcd, gateway := l.EtcdAddress(f), far.prefix(f, gatewayNumber).Addr()
			way := &netlink.Route{
				LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(),
				Dst: &net.IPNet{IP: etcd.AsSlice(), Mask: net.CIDRMask(etcd.BitLen(), etcd.BitLen())},
			}
			if other {
				return n.RouteAdd(way)
			}
			return n.RouteDel(way)
		})
	}
}

// overheadOf is what a host's device takes of the interface's MTU for a family.
func overheadOf(f subnet.Family) int {
	return subnet.PerFamily[int]{hostOverhead, hostOverhead + 20}[f]
}

// nodeIsAt tells what of a host's own is not as its underlay has it, "" for
// nothing: the devices and the subnet file.
func nodeIsAt(h *Host) (why string) {
	least := 0
	for _, f := range h.lab.Families() {
		least = max(least, overheadOf(f))
	}
	err := vxlans(h, func(_ *netlink.Handle, v *netlink.Vxlan) error {
		local, _ := netip.AddrFromSlice(v.SrcAddr)
		local = local.Unmap()
		f := subnet.FamilyOf(local)
		if local != h.Address(f) || v.MTU != h.mtu-overheadOf(f) {
			why = fmt.Sprintf("%s has local %s and MTU %d", v.Name, local, v.MTU)
		}
		return nil
	})
	env, envErr := h.Env()
	switch {
	case err != nil || envErr != nil:
		return errors.Join(err, envErr).Error()
	case why == "" && env.MTU != h.mtu-least:
		return fmt.Sprintf("the subnet file has MTU %d", env.MTU)
	}
	return why
}

// peersSendTo tells which of the others does not send to a host where it is, by
// the FDB entries of its MACs or by direct routes, with its MTU.
func peersSendTo(l *Lab, h *Host, macs map[string]string) (why string) {
	env, err := h.Env()
	if err != nil {
		return err.Error()
	}
	for _, peer := range l.Hosts {
		if peer == h {
			continue
		}
		have, err := picture(peer)
		if err != nil {
			return err.Error()
		}
		for _, f := range l.Families() {
			to, mtu := h.Address(f).String(), 0
			if peer.mtu > h.mtu {
				mtu = env.MTU
			}
			route, fdb := "", ""
			for _, line := range have {
				switch {
				case strings.HasPrefix(line, "route "+env.Subnets[f].Masked().String()+" "):
					route = line
				case strings.HasPrefix(line, "fdb ") && subnet.FamilyOf(netip.MustParseAddr(strings.Fields(line)[1])) == f:
					for _, mac := range macs {
						if strings.Contains(line, mac) {
							fdb = line
						}
					}
				}
			}
			direct := strings.Contains(route, " via "+to+" dev "+hostInterface+" ")
			if !direct && !strings.HasPrefix(fdb, "fdb "+to+" ") || !strings.HasSuffix(route, fmt.Sprintf(" mtu %d", mtu)) {
				return fmt.Sprintf("%s has %q and %q, for %s with MTU %d", peer.Name, route, fdb, to, mtu)
			}
		}
	}
	return ""
}

// promote makes the kernel keep an interface's other addresses when the first goes,
// as a host that is configured by DHCP has it.
func promote(h *Host) error {
	return h.Namespace.Do(func() error { return setSysctl("ipv4/conf/all/promote_secondaries", "1") })
}

// seatOf gives a host's interface the addresses of a seat, or takes them away.
func seatOf(l *Lab, h *Host, seat int, add bool) error {
	return h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		prefixes := l.underlay.prefixes(h.at, seat)
		if add {
			return addAddresses(n, link, prefixes)
		}
		for _, p := range prefixes {
			a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
			err = errors.Join(err, n.AddrDel(link, a))
		}
		return err
	})
}

// gateways gives a host its default routes, of which some may be there.
func gateways(l *Lab, h *Host) error {
	return h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		for _, g := range l.underlay.prefixes(h.at, gatewayNumber) {
			if err := n.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: g.Addr().AsSlice()}); err != nil {
				return err
			}
		}
		return nil
	})
}

// renumber gives the host other addresses, as DHCP does: the new ones before the
// old ones go, or when these have been gone for a while.
func renumber(to int, newFirst bool) func(*testing.T, *Lab, *Host) error {
	return func(t *testing.T, l *Lab, h *Host) error {
		if err := promote(h); err != nil {
			return err
		}
		if newFirst {
			return errors.Join(seatOf(l, h, to, true), seatOf(l, h, h.seat, false), gateways(l, h))
		}
		if err := seatOf(l, h, h.seat, false); err != nil {
			return err
		}
		stays(t, h)
		return errors.Join(seatOf(l, h, to, true), gateways(l, h))
	}
}

// addressesGone takes the host's addresses away and gives them back.
func addressesGone(t *testing.T, l *Lab, h *Host) error {
	before := mustPicture(t, h)
	if err := seatOf(l, h, h.seat, false); err != nil {
		return err
	}
	stays(t, h)
	if !looksLike(h, before) {
		t.Errorf("without an address it is another: %s", differs(h, before))
	}
	return errors.Join(seatOf(l, h, h.seat, true), gateways(l, h))
}

// stays waits until the node says that it has no address, and sees that the overlay
// is there all the same.
func stays(t *testing.T, h *Host) {
	t.Helper()
	client := status.NewClient(filepath.Join(h.Dir, "run"))
	var body []byte
	_, ok := timeUntil(otherwise, func() bool {
		_, text, err := client.Get(t.Context(), status.PathReady)
		body = []byte(text)
		return err == nil && bytes.Contains(body, []byte("[-]"+status.UnderlayThere+" failed: ")) && bytes.Contains(body, []byte("going on with "))
	})
	if !ok {
		t.Errorf("it does not say that its address is gone:\n%s", body)
	}
	if why := nodeIsAt(h); why != "" {
		t.Errorf("without an address: %s", why)
	}
	if direct, tunnel := routesOf(t, h); tunnel == 0 && direct == 0 {
		t.Error("without an address there is no route")
	}
}

func setMTU(mtu int) func(*testing.T, *Lab, *Host) error {
	return func(_ *testing.T, _ *Lab, h *Host) error {
		return h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			return n.LinkSetMTU(link, mtu)
		})
	}
}

// remadeAt deletes the interface and makes it again with other addresses and MTU.
func remadeAt(seat, mtu int) func(*testing.T, *Lab, *Host) error {
	return func(t *testing.T, l *Lab, h *Host) error {
		err := h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(hostInterface)
			if err != nil {
				return err
			}
			return n.LinkDel(link)
		})
		if err != nil {
			return err
		}
		time.Sleep(downFor)
		// Its MAC stays: peers would send to one that they know for up to a minute.
		err = plug(l.underlay.ns, h.at.bridge, h.Name, h.Namespace, hostInterface, underlayMAC(h.number), mtu)
		if err != nil {
			return err
		}
		err = h.Namespace.netlink(func(n *netlink.Handle) error {
			return configure(n, hostInterface, l.underlay.prefixes(h.at, seat), l.underlay.prefixes(h.at, gatewayNumber))
		})
		return errors.Join(err, l.underlay.ns.awaitUp(t.Context(), h.Name, h.at.bridge), h.Namespace.awaitUp(t.Context(), hostInterface))
	}
}
