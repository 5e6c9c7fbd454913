package bench

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// The network has room for 131,072 nodes, so that a burst finds some beyond the
// 65,536 for which Ripstop is made.
const (
	networkConfig = `{"Network": "100.64.0.0/10", "SubnetLen": 27, "Backend": {"Type": "vxlan"}}`
	subnetLen     = 27
	vni           = 1
	// MaxPeers is the most that Options.Peers may ask for.
	MaxPeers = 100_000
)

var (
	firstSubnet = netip.MustParseAddr("100.64.0.0")
	firstHost   = netip.MustParseAddr("172.16.0.1")
	// firstMoved is where a peer is after it was replaced.
	firstMoved = netip.MustParseAddr("172.24.0.1")
)

// plus is the n-th address after a, in steps of a power of two.
func plus(a netip.Addr, n int, shift uint) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n)<<shift)
	return netip.AddrFrom4(b)
}

// peers makes the records of peers that do not exist. They leave out the subnet
// of the node that is measured.
type peers struct {
	own subnet.Subnets
}

// at is the n-th peer's lease.
func (p peers) at(n int) subnet.Lease {
	number := n + 1 // The first subnet of a network is not used.
	at := func(i int) netip.Prefix { return netip.PrefixFrom(plus(firstSubnet, i, 32-subnetLen), subnetLen) }
	if own := p.own[subnet.V4]; own.IsValid() && !at(number).Addr().Less(own.Addr()) {
		number++
	}
	name := fmt.Sprintf("node-%06d", n)
	return subnet.Lease{
		Subnets: subnet.Subnets{subnet.V4: at(number)}, Node: name, Backend: vxlan.Type,
		Endpoints: subnet.PerFamily[subnet.Endpoint]{subnet.V4: {
			PublicIP: plus(firstHost, n, 0), VNI: vni, MAC: vxlan.DeviceMAC(name, subnet.V4, vni),
		}},
	}
}

// between lists the leases of the peers from one number on, up to another.
func (p peers) between(from, to int) []subnet.Lease {
	out := make([]subnet.Lease, 0, to-from)
	for n := from; n < to; n++ {
		out = append(out, p.at(n))
	}
	return out
}

// moved is the n-th peer on another host.
func (p peers) moved(n int) subnet.Lease {
	l := p.at(n)
	l.Endpoints[subnet.V4].PublicIP = plus(firstMoved, n, 0)
	return l
}

// entries is what the leases owe.
func (p peers) entries(leases []subnet.Lease) *backend.State {
	self := vxlan.Self{Self: plan.Self{Subnets: p.own}, Options: vxlan.Options{VNI: vni}}
	out := &backend.State{}
	for _, l := range leases {
		for _, e := range self.Peer(l) {
			out.Put(e)
		}
	}
	return out
}
