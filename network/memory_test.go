package network

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
)

// recordHand writes and deletes records in the store that a rig's node has.
type recordHand interface {
	Put(key string, value []byte, leased bool)
	Delete(key string)
}

// stranger writes the record of the n-th peer of a block of subnets; after 250
// of them a subnet comes again, with another node. Every tenth is at first a
// record that cannot be read, so that it is reported as well.
func stranger(h recordHand, block byte, n int) subnet.Lease {
	l := subnet.Lease{
		Subnets: subnet.Subnets{netip.PrefixFrom(netip.AddrFrom4([4]byte{172, block, byte(n % 250), 0}), 24)}, Node: fmt.Sprint("stranger-", block, "-", n), Backend: vxlan.Type,
		Endpoints: subnet.PerFamily[subnet.Endpoint]{{
			PublicIP: netip.AddrFrom4([4]byte{10, block, byte(n >> 8), byte(n)}), VNI: 1, MAC: subnet.MAC{2, 0, 0, block, byte(n >> 8), byte(n)},
		}},
	}
	if n%10 == 0 {
		h.Put(l.Subnets.Key(), []byte("{"), true)
	}
	h.Put(l.Subnets.Key(), l.Record(), true)
	return l
}

// roomyConfig leaves the node's own subnet and those of the peers in nobody's way.
const roomyConfig = `{"Network":"172.16.0.0/12","SubnetLen":24,"SubnetMin":"172.20.0.0"}`

// TestLeaseEventsAndHealsLeaveNoMemory: 10,000 joins and leaves of peers, each a
// node of its own, and 1,000 heals, and the heap is where it was.
func TestLeaseEventsAndHealsLeaveNoMemory(t *testing.T) {
	r := newRig(t)
	r.store.SetConfig([]byte(roomyConfig))
	leavesNoMemory(t, r, r.store)
}

// TestLeaseEventsOfEtcdLeaveNoMemory is the same with a real etcd, its client and
// all that keeps the store's mirror.
func TestLeaseEventsOfEtcdLeaveNoMemory(t *testing.T) {
	p := startPausable(t)
	s := p.client()
	_, modified, err := s.Config(t.Context())
	if err == nil {
		err = s.SetConfig(t.Context(), []byte(roomyConfig), modified)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{p.srv.URL()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	leavesNoMemory(t, p.node("10.99.0.1", s), etcdHand{t, c})
}

// etcdHand writes without a lease: thousands of those would be etcd's work.
type etcdHand struct {
	t *testing.T
	c *clientv3.Client
}

func (h etcdHand) Put(key string, value []byte, _ bool) {
	if _, err := h.c.Put(h.t.Context(), etcd.DefaultPrefix+"/subnets/"+key, string(value)); err != nil {
		h.t.Fatal(err)
	}
}

func (h etcdHand) Delete(key string) {
	if _, err := h.c.Delete(h.t.Context(), etcd.DefaultPrefix+"/subnets/"+key); err != nil {
		h.t.Fatal(err)
	}
}

// leavesNoMemory does that to a rig whose store has [roomyConfig].
func leavesNoMemory(t *testing.T, r *rig, hand recordHand) {
	r.start()
	r.ready()
	// An entry that is deleted again and again is mended with pauses, so the
	// heals are of many entries.
	var stay []subnet.Lease
	for n := range 200 {
		stay = append(stay, stranger(hand, 17, n))
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
				peers = append(peers, stranger(hand, 16, next))
			}
			r.eventually("the peers are reached", func() bool { return r.kernel.State().Len() == calm+4*atOnce })
			for _, l := range peers {
				hand.Delete(l.Subnets.Key())
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
	// A leak stays, however long it is waited for what else is in memory to go.
	calmed := func() (now uint64) {
		for end := time.Now().Add(patience); time.Now().Before(end); {
			if now = heap(); now <= before+128<<10 {
				break
			}
		}
		return now
	}
	began := time.Now()
	events(10_000)
	took := time.Since(began)
	between := calmed()
	began = time.Now()
	heals(1000)
	after := calmed()
	t.Logf("heap %d KiB, after 10,000 events in %v %d KiB, after 1,000 heals in %v %d KiB",
		before>>10, took.Round(time.Millisecond), between>>10, time.Since(began).Round(time.Millisecond), after>>10)
	if max(between, after) > before+128<<10 {
		t.Errorf("heap grew from %d to %d and %d bytes", before, between, after)
	}
}
