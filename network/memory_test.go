package network

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// stranger writes the record of the n-th peer of a block of subnets; after 250
// of them a subnet comes again, with another node. Every tenth is at first a
// record that cannot be read, so that it is reported as well.
func (r *rig) stranger(block byte, n int) subnet.Lease {
	l := subnet.Lease{
		Subnets: subnet.Subnets{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, block, byte(n % 250), 0}), 24)}, Node: fmt.Sprint("stranger-", block, "-", n), Backend: vxlan.Type,
		Endpoints: subnet.PerFamily[subnet.Endpoint]{{
			PublicIP: netip.AddrFrom4([4]byte{10, block, byte(n >> 8), byte(n)}), VNI: 1, MAC: subnet.MAC{2, 0, 0, block, byte(n >> 8), byte(n)},
		}},
	}
	if n%10 == 0 {
		r.store.Put(l.Subnets.Key(), []byte("{"), true)
	}
	r.store.Put(l.Subnets.Key(), l.Record(), true)
	return l
}

// TestLeaseEventsAndHealsLeaveNoMemory: 10,000 joins and leaves of peers, each a
// node of its own, and 1,000 heals, and the heap is where it was.
func TestLeaseEventsAndHealsLeaveNoMemory(t *testing.T) {
	r := newRig(t)
	// The node's own subnet and those of the peers are in nobody's way.
	r.store.SetConfig([]byte(`{"Network":"172.16.0.0/12","SubnetLen":24,"SubnetMin":"172.20.0.0"}`))
	r.start()
	r.ready()
	// An entry that is deleted again and again is mended with pauses, so the
	// heals are of many entries.
	var stay []subnet.Lease
	for n := range 200 {
		stay = append(stay, r.stranger(17, n))
	}
	calm := 2 + 4*len(stay) // Device and address, and four entries for each peer.
	r.eventually("all that stay are reached", func() bool { return r.kernel.State().Len() == calm })
	const atOnce = 50
	next := 0
	events := func(count int) {
		for range count / 2 / atOnce {
			var peers []subnet.Lease
			for range atOnce {
				next++
				peers = append(peers, r.stranger(16, next))
			}
			r.eventually("the peers are reached", func() bool { return r.kernel.State().Len() == calm+4*atOnce })
			for _, l := range peers {
				r.store.Delete(l.Subnets.Key())
			}
			r.eventually("the peers are gone", func() bool { return r.kernel.State().Len() == calm })
			r.kernel.Ops()
			r.logs.TakeAll()
		}
	}
	heals := func(count int) {
		for i := range count {
			l := stay[i%len(stay)]
			base := l.Subnets[subnet.V4].Addr()
			r.kernel.Hand(func(s *backend.State) {
				if i/len(stay)%2 == 0 {
					s.Drop(backend.Route{Dst: l.Subnets[subnet.V4]})
				} else {
					s.Drop(backend.Neighbour{Dev: "ripstop.1", IP: base})
				}
			})
			r.eventually("it is healed", func() bool { return r.kernel.State().Len() == calm })
			r.kernel.Ops()
			r.logs.TakeAll()
		}
	}
	heap := func() uint64 {
		time.Sleep(300 * time.Millisecond) // Until all is calm.
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	events(2000) // What the first ones take stays: buffers, maps.
	heals(1000)
	before := heap()
	began := time.Now()
	events(10_000)
	took := time.Since(began)
	between := heap()
	began = time.Now()
	heals(1000)
	after := heap()
	t.Logf("heap %d KiB, after 10,000 events in %v %d KiB, after 1,000 heals in %v %d KiB",
		before>>10, took.Round(time.Millisecond), between>>10, time.Since(began).Round(time.Millisecond), after>>10)
	if max(between, after) > before+128<<10 {
		t.Errorf("heap grew from %d to %d and %d bytes", before, between, after)
	}
}
