package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/vxlan"
)

// manyConfigs have room for many peers beside the underlay's addresses, by mode.
var manyConfigs = map[Mode]string{
	IPv4: `{"Network": "10.0.0.0/10", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}`,
	Dual: `{"Network": "10.0.0.0/10", "SubnetLen": 24, "EnableIPv6": true, "IPv6Network": "fd00:10::/48", "IPv6SubnetLen": 64, "Backend": {"Type": "vxlan"}}`,
}

// inBothFamilies are the faults that are done to so many dual-stack peers: one of each
// sort, for they take their time.
var inBothFamilies = []string{
	manyDeleted, "all routes of protocol 82 flushed", "device deleted", "device set down", "device's forwarding turned off", "nftables' rules flushed", "subnet file deleted",
}

// manyDualWithin is the limit for them: the host has twice the entries, 80,000 of 10,000
// peers, and what looks whether they are there reads them all, too.
const manyDualWithin = 3 * time.Second

// harmed is how many peers lose all their entries at once.
const harmed = 1000

// manyDeleted is the fault that they are.
var manyDeleted = fmt.Sprintf("all entries of %d peers deleted", harmed)

// manyPeers does the host's faults where the store has many more peers than
// there are.
func (s *faultSuite) manyPeers(t *testing.T, mode Mode) {
	l := startLab(t, Options{Nodes: 3, Mode: mode, Config: manyConfigs[mode]})
	families := len(l.Families())
	k, dump := dumps(t, l.Hosts[0])
	index := putPeers(t, l, s.peers)
	eventually(t, time.Minute, "all peers are known", func() bool {
		return len(slices.Collect(dump().OfKind(backend.KindRoute))) == families*(s.peers+len(l.Hosts)-1)
	})
	faults := append([]fault{{
		name: manyDeleted, breaks: nobody,
		do: drifts(func(t *testing.T, _ *Lab, _ *Host) error { return deletePeers(t, k, dump(), index, families) }),
	}}, hostFaults...)
	for _, f := range faults {
		if f.underlay {
			continue // It has nothing to do with the number of peers.
		}
		f.within = 0 // To read so many peers back takes a good part of what is less than the others' limit.
		if mode == Dual {
			if !slices.Contains(inBothFamilies, f.name) {
				continue
			}
			f.within = manyDualWithin
		}
		f.network = fmt.Sprintf("%d %s", s.peers, mode)
		f.state = func() func() bool {
			before := dump()
			return func() bool { return dump().Equal(before) }
		}
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) { s.try(t, l, f) })
	}
}

// dumps opens a host's kernel and gives what reads all that is the overlay's in it.
func dumps(t *testing.T, h *Host) (*kernel.Kernel, func() *backend.State) {
	t.Helper()
	k, err := kernel.OpenAt(h.Namespace.file, vxlan.OwnsDevice)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k, func() *backend.State {
		have, err := k.Dump(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return have
	}
}

// manyDirectWithin is the limit for so many direct routes. Those of IPv4 on one
// interface share a hash chain (Documentation/scale.md), so that it is the kernel's
// time, and it grows with the square.
const manyDirectWithin = 5 * time.Second

// manyDirectFaults are done to a host that reaches many peers directly.
var manyDirectFaults = []fault{
	{name: "direct routes flushed", breaks: allPeers, do: drifts(deleteDirectRoutes)},
	{name: "direct: carrier lost and back", breaks: allPeers, underlay: true, do: shows(loseCarrier, doubtCounted)},
	{name: "direct: interface down and up", breaks: allPeers, underlay: true, do: shows(downAndUp, opsCounted)},
}

// downAndUp sets the underlay's interface down and up. Its IPv4 addresses stay.
func downAndUp(t *testing.T, _ *Lab, h *Host) error {
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		if err := n.LinkSetDown(link); err != nil {
			return err
		}
		briefly()
		return n.LinkSetUp(link)
	})
	return errors.Join(err, h.Namespace.awaitUp(t.Context(), hostInterface))
}

// manyDirectPeers does faults where the first host's link has the many peers.
func (s *faultSuite) manyDirectPeers(t *testing.T) {
	l := startLab(t, Options{Nodes: 3, Mode: IPv4, Config: strings.Replace(manyConfigs[IPv4], `"vxlan"`, `"vxlan", "DirectRouting": true`, 1)})
	_, dump := dumps(t, l.Hosts[0])
	err := l.Hosts[0].Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		return addAddresses(n, link, []netip.Prefix{netip.MustParsePrefix("172.16.255.254/16")})
	})
	if err != nil {
		t.Fatal(err)
	}
	putPeers(t, l, s.peers)
	eventually(t, 2*time.Minute, "all peers are reached directly", func() bool {
		direct, _ := routesOf(t, l.Hosts[0])
		return direct == s.peers+len(l.Hosts)-1
	})
	for _, f := range manyDirectFaults {
		f.network, f.within = fmt.Sprintf("%d direct", s.peers), manyDirectWithin
		f.state = func() func() bool {
			before := dump()
			return func() bool { return dump().Equal(before) }
		}
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) { s.try(t, l, f) })
	}
}

// putPeers writes the records of n peers and returns their numbers by the base
// addresses of their subnets, and by their gateways.
func putPeers(t *testing.T, l *Lab, n int) map[netip.Addr]int {
	t.Helper()
	store := openStore(t, l)
	taken := map[netip.Addr]bool{}
	for _, h := range l.Hosts {
		env, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range l.Families() {
			taken[env.Subnets[f].Masked().Addr()] = true
		}
	}
	index := map[netip.Addr]int{}
	var ops []clientv3.Op
	for i, number := uint16(256), 0; number < n; i++ {
		base, base6 := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), netip.MustParseAddr(fmt.Sprintf("fd00:10:0:%x::", i))
		if taken[base] || taken[base6] {
			continue
		}
		index[base] = number
		key, more := fmt.Sprintf("%s/subnets/%s-24", Prefix, base), ""
		if l.Mode() == Dual {
			index[base6], index[vxlan.Gateway(netip.PrefixFrom(base6, 64))] = number, number
			key += fmt.Sprintf("&%s-64", base6)
			more = fmt.Sprintf(`"PublicIPv6":"fd98::%x","BackendV6Data":{"VNI":1,"VtepMAC":"02:70:00:06:%02x:%02x"},`, number+1, number>>8, number&255)
		}
		ops = append(ops, clientv3.OpPut(key, fmt.Sprintf(
			`{"PublicIP":"172.16.%d.%d","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:70:00:00:%02x:%02x"},%s"Node":"peer%d"}`,
			number>>8, number&255, number>>8, number&255, more, number)))
		number++
	}
	for some := range slices.Chunk(ops, 128) { // etcd takes no more in one transaction.
		if _, err := store.Txn(t.Context()).Then(some...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	return index
}

// deletePeers deletes all entries of the harmed, routes first.
func deletePeers(t *testing.T, k *kernel.Kernel, have *backend.State, index map[netip.Addr]int, families int) error {
	for _, kind := range []backend.Kind{backend.KindRoute, backend.KindNexthop, backend.KindNeighbour, backend.KindFDB} {
		var ops []backend.Op
		for e := range have.OfKind(kind) {
			if number, ok := peerOf(e, index); ok && number < harmed {
				ops = append(ops, backend.Op{Verb: backend.Delete, Entry: e})
			}
		}
		if len(ops) != families*harmed {
			return fmt.Errorf("%d entries of %d peers", len(ops), harmed)
		}
		for _, err := range k.Apply(t.Context(), ops) {
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// peerOf is the number of the peer whose entry it is.
func peerOf(e backend.Entry, index map[netip.Addr]int) (number int, ok bool) {
	switch e := e.(type) {
	case backend.FDB:
		return int(binary.BigEndian.Uint16(e.MAC[4:])), e.MAC[0] == 2 && e.MAC[1] == 0x70 && e.MAC[2] == 0
	case backend.Neighbour:
		number, ok = index[e.IP]
	case backend.Nexthop:
		number, ok = index[e.Gateway]
	case backend.Route:
		number, ok = index[e.Dst.Addr()]
	}
	return number, ok
}
