package network

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/planners"
	"github.com/ripstop-net/ripstop/network/converge"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest"
)

// followerAmongMany is that of a node in 10.0.0.0/8, whose loop does not run.
func followerAmongMany(t testing.TB) (*follower, *backendtest.Fake) {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(`{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}`))
	if err != nil {
		t.Fatal(err)
	}
	opts, err := planners.Parse(cfg.Backend)
	if err != nil {
		t.Fatal(err)
	}
	self := plan.Self{Node: "node1"}
	self.Subnets[subnet.V4] = netip.MustParsePrefix("10.255.255.0/24")
	self.Underlay[subnet.V4] = plan.Underlay{Interface: "eth0", Addr: netip.MustParseAddr("192.0.2.1"), MTU: 1500}
	planner := opts.Planner(self)
	own, err := planner.Own()
	if err != nil {
		t.Fatal(err)
	}
	p := prepared{config: cfg, self: self}
	p.request.Self = subnet.Identity{Node: self.Node}
	kernel := backendtest.NewFake()
	return newFollower(p, planner, converge.New(kernel, zap.NewNop()), own, time.Minute, zap.NewNop()), kernel
}

// oneOfMany is the n-th of many peers.
func oneOfMany(n int) subnet.Lease {
	l := subnet.Lease{Node: fmt.Sprint("peer", n), Backend: "vxlan", ID: 1, Created: int64(n), Modified: int64(n)}
	l.Subnets[subnet.V4] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)
	l.Endpoints[subnet.V4] = subnet.Endpoint{
		PublicIP: netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), VNI: 1, MAC: subnet.MAC{2, 7, 0, 0, byte(n >> 8), byte(n)},
	}
	return l
}

// TestChangeCostsTheSameAmongManyProblems: also where most records are refused and
// some cannot be read.
func TestChangeCostsTheSameAmongManyProblems(t *testing.T) {
	cost := func(problems int) time.Duration {
		f, _ := followerAmongMany(t)
		c := subnet.Change{Whole: true, Epoch: "one", Revision: 1}
		for n := range problems {
			l := oneOfMany(n)
			l.Backend = "another"
			c.Leases = append(c.Leases, l)
			c.Bad = append(c.Bad, subnet.BadRecord{Key: fmt.Sprint("bad", n), Reason: "junk"})
		}
		f.follow(c)
		if passed := f.mirror.Passed(); passed != 2*problems {
			t.Fatalf("%d of %d are passed over", passed, 2*problems)
		}
		l := oneOfMany(60_000)
		fastest := time.Minute
		for n := range 50 {
			began := time.Now()
			f.follow(subnet.Change{Revision: int64(2 * n), Leases: []subnet.Lease{l}})
			fastest = min(fastest, time.Since(began))
			if f.mirror.Count() != 1 {
				t.Fatalf("%d peers", f.mirror.Count())
			}
			f.follow(subnet.Change{Revision: int64(2*n + 1), Gone: []string{l.Subnets.Key()}})
		}
		return fastest
	}
	few, many := cost(10), cost(20_000)
	t.Logf("among few problems %s, among many %s", few, many)
	if many > 20*few {
		t.Errorf("a change takes %s among many problems, %s among few", many, few)
	}
}

// TestOtherStoreIsSavedAtOnce: a daemon that is killed just after its store became
// another must not know the old one at its start.
func TestOtherStoreIsSavedAtOnce(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	r.savesItsLease()
	r.store.NewEpoch()
	seen, err := r.store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.eventually("the snapshot is of the new store", func() bool {
		s, err := readSnapshot(r.opts.StateDir)
		return err == nil && s != nil && s.Epoch == seen.Epoch
	})
}

// TestEndOfHoldIsSavedAtOnce: nor that peers were held which have come back.
func TestEndOfHoldIsSavedAtOnce(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	r.savesItsLease()
	value, _ := r.store.Record(second.Subnets.Key())
	saved := func(held bool) func() bool {
		return func() bool {
			s, err := readSnapshot(r.opts.StateDir)
			if err != nil || s == nil || s.Peers.Len() != 1 {
				return false
			}
			for p := range s.Peers.All() {
				return p.Held == held
			}
			return false
		}
	}
	r.store.Wipe()
	r.store.SetConfig([]byte(testConfig))
	r.eventually("it is saved that the peer is held", saved(true))
	r.savesItsLease() // No other cause to save is left.
	r.store.Put(second.Subnets.Key(), value, true)
	r.eventually("it is saved that it is not", saved(false))
}

// lateAnswer is a client whose writes are made at once and answered as the node ends.
type lateAnswer struct {
	subnettest.Client
	late atomic.Bool
}

func (c *lateAnswer) Write(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	got, err := c.Client.Write(ctx, l)
	if c.late.Load() {
		<-ctx.Done()
		time.Sleep(100 * time.Millisecond) // What else ends with it has done so.
	}
	return got, err
}

// TestWhatIsLearntAtTheEndIsSaved: a record of which the node hears that it is written
// when it has been told to end.
func TestWhatIsLearntAtTheEndIsSaved(t *testing.T) {
	r := newRig(t)
	client := &lateAnswer{Client: r.store}
	r.client = client
	r.start()
	r.ready()
	r.savesItsLease()
	client.late.Store(true)
	r.renumber("10.99.0.7")
	r.eventually("the record is written", r.recordAt("10.99.0.7"))
	_, own := r.own()
	r.stop()
	if _, saved, _, err := SavedLease(r.opts.StateDir); err != nil || saved != own {
		t.Errorf("saved is %+v, %v, want %+v", saved, err, own)
	}
}

// TestMoveAmidAnAnswer: the underlay changes when a part of what etcd told at once
// is applied and nobody has been told. What was owed by the old plan is given back.
func TestMoveAmidAnAnswer(t *testing.T) {
	cfg, err := subnet.ParseConfig([]byte(`{"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan", "DirectRouting": true}}`))
	if err != nil {
		t.Fatal(err)
	}
	opts, err := planners.Parse(cfg.Backend)
	if err != nil {
		t.Fatal(err)
	}
	f, kernel := followerAmongMany(t)
	at := func(addr, link string) (plan.Planner, []backend.Entry) {
		self := plan.Self{Node: "node1"}
		self.Subnets[subnet.V4] = netip.MustParsePrefix("10.255.255.0/24")
		self.Underlay[subnet.V4] = plan.Underlay{
			Interface: "eth0", Addr: netip.MustParseAddr(addr), MTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix(link)},
		}
		planner := opts.Planner(self)
		own, err := planner.Own()
		if err != nil {
			t.Fatal(err)
		}
		return planner, own
	}
	if err := kernel.Link("eth0", backendtest.Make); err != nil {
		t.Fatal(err)
	}
	f.planner, f.own = at("198.18.0.200", "198.18.0.0/24")
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer running.Wait()
	defer cancel()
	running.Go(func() {
		if err := f.loop.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	all := []subnet.Lease{oneOfMany(1), oneOfMany(2), oneOfMany(3), oneOfMany(300)}
	f.follow(subnet.Change{Whole: true, Revision: 400, Leases: all})
	if err := f.loop.WaitFor(ctx, 400); err != nil {
		t.Fatal(err)
	}

	all[0].Endpoints[subnet.V4].PublicIP, all[0].Modified = netip.MustParseAddr("198.18.1.77"), 401
	f.follow(subnet.Change{Revision: 401, Leases: all[:1], More: true})
	f.follow(subnet.Change{Revision: 402, Gone: []string{all[1].Subnets.Key()}, More: true})
	planner, own := at("198.18.1.200", "198.18.1.0/24")
	f.move(planner, subnet.Identity{Node: "node1"}, own)
	all[2].Endpoints[subnet.V4].MAC, all[2].Modified = subnet.MAC{2, 9}, 403
	f.follow(subnet.Change{Revision: 403, Leases: all[2:3]})
	if err := f.loop.WaitFor(ctx, 403); err != nil {
		t.Fatal(err)
	}
	var want backend.State
	for _, e := range own {
		want.Put(e)
	}
	for _, l := range []subnet.Lease{all[0], all[2], all[3]} {
		for _, e := range planner.Peer(l) {
			want.Put(e)
		}
	}
	have := kernel.State()
	if ops := backend.Diff(have, &want); len(ops) > 0 {
		t.Errorf("left to do: %v", ops)
	}
}
