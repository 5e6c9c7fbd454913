package backendtest

import (
	"fmt"
	"net/netip"

	"github.com/ripstop-net/ripstop/backend"
)

// overlay is one family's world in the tests.
type overlay struct {
	v6  bool
	dev string
}

var overlays = []overlay{{dev: "ripstop.7"}, {v6: true, dev: "ripstop-v6.7"}}

func (o overlay) device() backend.Device {
	return backend.Device{Name: o.dev, VNI: 7, Port: 8472, Local: o.local(1), MAC: backend.MAC{2, 0, 0, 0, 7, 1}, MTU: 1400}
}

func (o overlay) local(i int) netip.Addr {
	if o.v6 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i))
	}
	return netip.AddrFrom4([4]byte{192, 0, byte(2 + i>>8), byte(i)})
}

func (o overlay) subnet(i int) netip.Prefix {
	if o.v6 {
		return netip.MustParsePrefix(fmt.Sprintf("fd07:0:0:%x::/64", i))
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(7 + i>>8), byte(i), 0}), 24)
}

func (o overlay) address(i int) backend.Address {
	base := o.subnet(i).Addr()
	return backend.Address{Dev: o.dev, Prefix: netip.PrefixFrom(base, base.BitLen())}
}

func (o overlay) fdb(i int) backend.FDB {
	return backend.FDB{Dev: o.dev, MAC: backend.MAC{2, 0, 0, 1, byte(i >> 8), byte(i)}, Remote: o.local(i)}
}

// gateway is no address of a subnet with IPv6: see the planner.
func (o overlay) gateway(i int) netip.Addr {
	if o.v6 {
		return netip.MustParseAddr(fmt.Sprintf("fe80::7:%x", i))
	}
	return o.subnet(i).Addr()
}

func (o overlay) neighbour(i int) backend.Neighbour {
	return backend.Neighbour{Dev: o.dev, IP: o.gateway(i), MAC: o.fdb(i).MAC}
}

func (o overlay) nexthop(i int) backend.Nexthop {
	return backend.Nexthop{Dev: o.dev, Gateway: o.gateway(i)}
}

func (o overlay) route(i int) backend.Route {
	return backend.Route{Dst: o.subnet(i), Via: o.nexthop(i)}
}

// uplink is a link of the host's on which the peers' own addresses are.
const uplink = "uplink0"

// direct is the plain route to a peer's subnet.
func (o overlay) direct(i int) backend.Route {
	return backend.Route{Dst: o.subnet(i), Plain: true, Via: backend.Nexthop{Dev: uplink, Gateway: o.local(i)}}
}

func (o overlay) peer(i int) []backend.Entry {
	return []backend.Entry{o.fdb(i), o.neighbour(i), o.nexthop(i), o.route(i)}
}

// world is both families with n peers each, numbered from 2.
func world(n int) *backend.State {
	s := &backend.State{}
	for _, o := range overlays {
		s.Put(o.device())
		s.Put(o.address(1))
		for i := range n {
			for _, e := range o.peer(i + 2) {
				s.Put(e)
			}
		}
	}
	return s
}

// with returns a copy of s with entries put into it.
func with(s *backend.State, entries ...backend.Entry) *backend.State {
	s = s.Clone()
	for _, e := range entries {
		s.Put(e)
	}
	return s
}
