package etcd

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ripstop-net/ripstop/subnet"
)

// TestWitnessesAreNotTheWholeListing: of a listing hardly any lease's key is needed,
// and none other's is made.
func TestWitnessesAreNotTheWholeListing(t *testing.T) {
	const peers = 5000
	l := subnet.Listing{Epoch: "one", Revision: 2 * peers}
	for i := range peers {
		lease := testLease()
		lease.Node, lease.Modified = fmt.Sprint("n", i), int64(1+i*7919%peers) // In no order.
		lease.Subnets[subnet.V4] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		l.Leases = append(l.Leases, lease)
	}
	var s seen
	if n := testing.AllocsPerRun(5, func() { s.list(l) }); n > peers/5 {
		t.Errorf("%v allocations for a listing of %d", n, peers)
	}
	living := s.get().living
	if len(living) != mostWitnesses || living[0].modified != peers-mostWitnesses+1 || s.get().last().modified != peers {
		t.Errorf("witnesses: %+v", living)
	}
}
