package lab

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// directFaults are done to a host that reaches one peer directly and one, behind a
// router, through the tunnel.
var directFaults = []fault{
	{name: "direct route deleted", breaks: onePeer, do: drifts(deleteDirectRoutes)},
	{name: "direct route given another gateway", breaks: onePeer, do: drifts(misleadDirectRoutes)},
	{name: "device deleted beside direct routes", breaks: farPeer, do: drifts(toDevices(func(n *netlink.Handle, v *netlink.Vxlan) error { return n.LinkDel(v) }))},
	{name: "direct: carrier lost and back", breaks: allPeers, underlay: true, do: shows(loseCarrier, doubtCounted)},
	{name: "direct: carrier lost and back five times", breaks: allPeers, underlay: true, do: shows(flapCarrier, doubtCounted)},
	{name: "direct: IPv4 addresses flushed and given back", breaks: allPeers, underlay: true, do: shows(flushUnderlay, opsCounted)},
	{name: "direct: interface set down and up", breaks: allPeers, underlay: true, do: shows(flapUnderlay, opsCounted)},
	{name: "direct: interface deleted and made again", breaks: allPeers, underlay: true, do: shows(remakeUnderlay, opsCounted)},
}

func (s *faultSuite) directFaults(t *testing.T) {
	l := startLab(t, Options{Nodes: 3, Far: 1, Mode: Dual, Config: configWith(Dual, directRoutes)})
	everyPairTalks(t, l, talkLimit)
	if direct, tunnel := routesOf(t, l.Hosts[0]); direct != 2 || tunnel != 2 {
		t.Fatalf("%d direct and %d tunnelled routes, want two of each", direct, tunnel)
	}
	for _, f := range directFaults {
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) { s.try(t, l, f) })
	}
}

// eachDirectRoute calls fn for each route of ours over the underlay's interface.
func eachDirectRoute(h *Host, fn func(*netlink.Handle, netlink.Route) error) error {
	return h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := n.RouteListFiltered(family, &netlink.Route{Protocol: ourProtocol, LinkIndex: link.Attrs().Index},
				netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if err := fn(n, r); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func deleteDirectRoutes(_ *testing.T, _ *Lab, h *Host) error {
	return eachDirectRoute(h, func(n *netlink.Handle, r netlink.Route) error { return gone(n.RouteDel(&r)) })
}

// misleadDirectRoutes has them lead to the router, which knows no way to pods.
func misleadDirectRoutes(_ *testing.T, l *Lab, h *Host) error {
	return eachDirectRoute(h, func(n *netlink.Handle, r netlink.Route) error {
		for _, p := range l.underlay.prefixes(h.at, gatewayNumber) {
			if p.Addr().Is4() == (r.Family == unix.AF_INET) {
				r.Gw = p.Addr().AsSlice()
			}
		}
		return n.RouteReplace(&r)
	})
}

func flapCarrier(t *testing.T, l *Lab, h *Host) error {
	for range 5 {
		if err := loseCarrier(t, l, h); err != nil {
			return err
		}
	}
	return nil
}

// flushUnderlay takes the interface's IPv4 addresses away, with which the routes
// over it go, and gives them back.
func flushUnderlay(_ *testing.T, l *Lab, h *Host) error {
	return h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		addrs, err := n.AddrList(link, unix.AF_INET)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			err = errors.Join(err, n.AddrDel(link, &a))
		}
		if err != nil {
			return err
		}
		time.Sleep(downFor)
		var own, gateways = l.underlay.prefixes(h.at, h.number), l.underlay.prefixes(h.at, gatewayNumber)
		return configure(n, hostInterface, own[:1], gateways[:1]) // IPv4 comes first.
	})
}
