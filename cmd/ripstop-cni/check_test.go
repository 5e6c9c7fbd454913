package main

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// scene is a machine with one pod, and how tests reach into it.
type scene struct {
	*testing.T
	m *machine
	p *pod
}

// link finds an interface.
func (s scene) link(ns *lab.Namespace, name string) (*netlink.Handle, netlink.Link) {
	s.Helper()
	h := handleOf(s.T, ns)
	link, err := h.LinkByName(name)
	if err != nil {
		s.Fatal(err)
	}
	return h, link
}

func (s scene) pair() string { return attachment{networkName, s.p.name, ifName}.hostName() }

func (s scene) down(ns *lab.Namespace, name string) error {
	h, link := s.link(ns, name)
	return h.LinkSetDown(link)
}

func (s scene) remove(ns *lab.Namespace, name string) error {
	h, link := s.link(ns, name)
	return h.LinkDel(link)
}

func (s scene) removeAddress(ns *lab.Namespace, name, address string) error {
	h, link := s.link(ns, name)
	return h.AddrDel(link, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(address))})
}

func (s scene) removeRoute(ns *lab.Namespace, name, destination string) error {
	h, link := s.link(ns, name)
	// Any scope: fib_table_delete.
	return h.RouteDel(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(destination)), Scope: netlink.SCOPE_NOWHERE})
}

// CHECK names what is not as ADD made it.
func TestCheck(t *testing.T) {
	type damage struct {
		name string
		do   func(scene) error
		say  string
	}
	both := []damage{
		{"interface of the container", func(s scene) error { return s.remove(s.p.ns, ifName) }, "the container has no eth0"},
		{"container's interface down", func(s scene) error { return s.down(s.p.ns, ifName) }, "eth0 is down"},
		{"default route", func(s scene) error { return s.removeRoute(s.p.ns, ifName, "0.0.0.0/0") }, "the container has no route to 0.0.0.0/0"},
		{"default route of IPv6", func(s scene) error { return s.removeRoute(s.p.ns, ifName, "::/0") }, "the container has no route to ::/0"},
		{"MAC", func(s scene) error {
			h, link := s.link(s.p.ns, ifName)
			return h.LinkSetHardwareAddr(link, net.HardwareAddr{2, 0, 0, 0, 0, 9})
		}, "eth0 has MAC 02:00:00:00:00:09"},
		{"MTU", func(s scene) error {
			h, link := s.link(s.p.ns, ifName)
			return h.LinkSetMTU(link, 1500)
		}, "MTU of 1500"},
		{"host's end down", func(s scene) error { return s.down(s.m.ns, s.pair()) }, "is down"},
		{"allocation", func(s scene) error {
			return os.Remove(filepath.Join(s.m.dataDir(), s.p.addresses[subnet.V4].String()))
		}, "has no IPv4 address"},
	}
	only := map[string][]damage{
		ptp: {
			{"address of the container", func(s scene) error { return s.removeAddress(s.p.ns, ifName, "10.5.7.2/32") }, "eth0 has no address 10.5.7.2/32"},
			{"route to the gateway", func(s scene) error { return s.removeRoute(s.p.ns, ifName, "fd00:10:5:7::1/128") }, "the container has no route to fd00:10:5:7::1/128"},
			{"route to the pod", func(s scene) error { return s.removeRoute(s.m.ns, s.pair(), "10.5.7.2/32") }, "the host has no route to 10.5.7.2/32"},
			{"gateway", func(s scene) error { return s.removeAddress(s.m.ns, s.pair(), "fd00:10:5:7::1/128") }, "has no address fd00:10:5:7::1/128"},
		},
		bridged: {
			{"address of the container", func(s scene) error { return s.removeAddress(s.p.ns, ifName, "10.5.7.2/24") }, "eth0 has no address 10.5.7.2/24"},
			{"port", func(s scene) error {
				h, link := s.link(s.m.ns, s.pair())
				return h.LinkSetNoMaster(link)
			}, "is no port of cni0"},
			{"gateway", func(s scene) error { return s.removeAddress(s.m.ns, "cni0", "10.5.7.1/24") }, "cni0 has no address 10.5.7.1/24"},
			{"bridge", func(s scene) error { return s.remove(s.m.ns, "cni0") }, "bridge cni0 is gone"},
		},
	}
	for mode, own := range only {
		for _, d := range append(slices.Clone(both), own...) {
			t.Run(mode+"/"+d.name, func(t *testing.T) {
				env := envOf(lab.Dual, 7)
				m := newMachine(t, mode, &env)
				p := m.mustAdd(t)
				if err := m.check(t, p); err != nil {
					t.Fatalf("before: %s", describe(err))
				}
				if err := d.do(scene{t, m, p}); err != nil {
					t.Fatal(err)
				}
				wantCode(t, m.check(t, p), codeDiffers, d.say)
				m.del(t, p)
			})
		}
	}
}
