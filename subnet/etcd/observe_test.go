package etcd

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// nodeLease is the lease of node n, from 1 to 250; testLease is the first.
func nodeLease(n int) subnet.Lease {
	l := testLease()
	l.Node = fmt.Sprintf("n%d", n)
	l.Subnets[subnet.V4] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)
	l.Endpoints[subnet.V4] = subnet.Endpoint{PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), VNI: 1, MAC: subnet.MAC{2, 0, 0, 0, 0, byte(n)}}
	return l
}

// sight is the first node of a network as far as the store knows it: a watch,
// the mirror that it feeds, an etcd, and a link between the two that can be cut.
// The other nodes use the etcd without the link.
type sight struct {
	t     *testing.T
	srv   *etcdserver.Server
	link  *link
	store *Store
	hand  hand

	mu      sync.Mutex
	changes []subnet.Change // But for empty ones.
	signs   int             // How many were empty.
	upTo    int64           // The revision up to which all that became of records was told.
	mirror  *subnet.Mirror
	records map[string]int64 // Those told of, with the revisions of their last writes.
}

// observe begins to watch an etcd in which the given nodes have records.
func observe(t *testing.T, nodes ...int) *sight {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(`{"Network":"10.5.0.0/16"}`))
	if err != nil {
		t.Fatal(err)
	}
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	o := &sight{
		t: t, srv: srv, link: newLink(t, srv), hand: newHand(t, srv.URL(), DefaultPrefix),
		mirror: subnet.NewMirror(cfg, subnet.Identity{Node: "n1"}, nil), records: map[string]int64{},
	}
	o.mirror.SetGrace(time.Hour)
	o.store = open(t, Options{Endpoints: []string{o.link.URL()}})
	o.store.checkEvery = 200 * time.Millisecond
	o.join(nodes...)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.store.Watch(ctx, o.hear) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	o.caughtUp()
	return o
}

func (o *sight) hear(c subnet.Change) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mirror.Apply(time.Now(), c)
	o.upTo = c.Revision
	if c.Empty() {
		o.signs++
		return
	}
	o.changes = append(o.changes, c)
	if c.Whole {
		clear(o.records)
	}
	for _, l := range c.Leases {
		o.records[l.Subnets.Key()] = l.Modified
	}
	for _, key := range c.Gone {
		delete(o.records, key)
	}
}

// caughtUp waits until all that was written and can be read is told.
func (o *sight) caughtUp() {
	o.t.Helper()
	want := map[string]int64{}
	resp, err := o.hand.c.Get(o.t.Context(), o.store.recordsKey(), clientv3.WithPrefix())
	o.must(err)
	for _, kv := range resp.Kvs {
		key := o.store.lastPart(kv.Key)
		if _, err := subnet.ParseRecord(key, kv.Value); err == nil {
			want[key] = kv.ModRevision
		}
	}
	eventually(o.t, "all that was written", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.changes) > 0 && maps.Equal(o.records, want)
	})
}

// toldUpTo waits until all that became of records up to a revision is told. It must be
// one that a watch of records comes to: that of a record, or of a compaction.
func (o *sight) toldUpTo(revision int64) {
	o.t.Helper()
	eventually(o.t, fmt.Sprintf("what became of records up to revision %d", revision), func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.upTo >= revision
	})
}

// checked waits until the store was looked at for another time. That says nothing of the
// watches, which come back by themselves.
func (o *sight) checked() {
	o.t.Helper()
	count := func() int {
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.signs
	}
	before := count()
	eventually(o.t, "a look at the store", func() bool { return count() > before+1 }) // One may have been under way.
}

// so far is how many changes have been told.
func (o *sight) soFar() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.changes)
}

// listed waits for a listing among the changes from the n-th on.
func (o *sight) listed(n int) (whole subnet.Change) {
	o.t.Helper()
	eventually(o.t, "another listing", func() bool {
		for _, c := range o.since(n) {
			if c.Whole {
				whole = c
				return true
			}
		}
		return false
	})
	return whole
}

// since are the changes from the n-th on.
func (o *sight) since(n int) []subnet.Change {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.changes[n:])
}

// peers names the peers, and after a colon those of them that are held only.
func (o *sight) peers() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var there, held []string
	_, _, peers := o.mirror.Save()
	for p := range peers.All() {
		if p.Held {
			held = append(held, p.Lease.Node)
		} else {
			there = append(there, p.Lease.Node)
		}
	}
	slices.Sort(there)
	slices.Sort(held)
	return strings.Join(there, " ") + ":" + strings.Join(held, " ")
}

func (o *sight) join(nodes ...int) {
	for _, n := range nodes {
		o.hand.Put(nodeLease(n).Subnets.Key(), nodeLease(n).Record(), true)
	}
}

func (o *sight) leave(nodes ...int) {
	for _, n := range nodes {
		o.hand.Delete(nodeLease(n).Subnets.Key())
	}
}

// holds notes what a Hold of the observer's record does. Without the Hold itself,
// which ends once the record is lost, the watch is sure to find that by itself.
func (o *sight) holds() {
	o.t.Helper()
	resp, err := o.hand.c.Get(o.t.Context(), o.store.recordKey(nodeLease(1).Subnets))
	o.must(err)
	if len(resp.Kvs) != 1 {
		o.t.Fatal("the observer has no record")
	}
	o.t.Cleanup(o.store.held.add(heldRecord{string(resp.Kvs[0].Key), resp.Kvs[0].CreateRevision}))
}

// elsewhere writes n times what is none of the network's.
func (o *sight) elsewhere(n int) {
	o.t.Helper()
	for range n {
		_, err := o.hand.c.Put(o.t.Context(), "/elsewhere", "")
		o.must(err)
	}
}

// compact has etcd forget all that was written before, and tells as of which revision:
// a watch that is cut off can't go on from where it was, whatever it had heard.
func (o *sight) compact() int64 {
	o.t.Helper()
	o.elsewhere(1) // A watch that has heard all goes on from here.
	resp, err := o.hand.c.Put(o.t.Context(), "/elsewhere", "")
	o.must(err)
	_, err = o.hand.c.Compact(o.t.Context(), resp.Header.Revision)
	o.must(err)
	return resp.Header.Revision
}

func (o *sight) must(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}
