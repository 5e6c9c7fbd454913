package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/vxlan"
)

// manyConfig has room for many peers beside the underlay's addresses.
const manyConfig = `{"Network": "10.0.0.0/10", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}`

// harmed is how many peers lose all their entries at once.
const harmed = 1000

// manyPeers does the host's faults where the store has many more peers than
// there are.
func (s *faultSuite) manyPeers(t *testing.T) {
	l := startLab(t, Options{Nodes: 3, Mode: IPv4, Config: manyConfig})
	k, err := kernel.OpenAt(l.Hosts[0].Namespace.file, vxlan.OwnsDevice)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	dump := func() *backend.State {
		have, err := k.Dump(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return have
	}
	index := putPeers(t, l, s.peers)
	eventually(t, time.Minute, "all peers are known", func() bool {
		return len(slices.Collect(dump().OfKind(backend.KindRoute))) == s.peers+len(l.Hosts)-1
	})
	faults := append([]fault{{
		name: fmt.Sprintf("all entries of %d peers deleted", harmed), breaks: nobody,
		do: drifts(func(t *testing.T, _ *Lab, _ *Host) error { return deletePeers(t, k, dump(), index) }),
	}}, hostFaults...)
	for _, f := range faults {
		if f.underlay {
			continue // It has nothing to do with the number of peers.
		}
		f.network = fmt.Sprintf("%d peers", s.peers)
		f.state = func() func() bool {
			before := dump()
			return func() bool { return dump().Equal(before) }
		}
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) { s.try(t, l, f) })
	}
}

// putPeers writes the records of n peers and returns their numbers by the base
// addresses of their subnets.
func putPeers(t *testing.T, l *Lab, n int) map[netip.Addr]int {
	t.Helper()
	store := openStore(t, l)
	taken := map[netip.Addr]bool{}
	for _, h := range l.Hosts {
		env, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		taken[env.Subnets[0].Masked().Addr()] = true
	}
	index := map[netip.Addr]int{}
	var ops []clientv3.Op
	for i := uint16(256); len(index) < n; i++ {
		base := netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0})
		if taken[base] {
			continue
		}
		number := len(index)
		index[base] = number
		ops = append(ops, clientv3.OpPut(fmt.Sprintf("%s/subnets/%s-24", Prefix, base), fmt.Sprintf(
			`{"PublicIP":"172.16.%d.%d","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:70:00:00:%02x:%02x"},"Node":"peer%d"}`,
			number>>8, number&255, number>>8, number&255, number)))
	}
	for some := range slices.Chunk(ops, 128) { // etcd takes no more in one transaction.
		if _, err := store.Txn(t.Context()).Then(some...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	return index
}

// deletePeers deletes all entries of the harmed, routes first.
func deletePeers(t *testing.T, k *kernel.Kernel, have *backend.State, index map[netip.Addr]int) error {
	for _, kind := range []backend.Kind{backend.KindRoute, backend.KindNexthop, backend.KindNeighbour, backend.KindFDB} {
		var ops []backend.Op
		for e := range have.OfKind(kind) {
			if number, ok := peerOf(e, index); ok && number < harmed {
				ops = append(ops, backend.Op{Verb: backend.Delete, Entry: e})
			}
		}
		if len(ops) != harmed {
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
