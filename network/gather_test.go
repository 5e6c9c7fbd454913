package network

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/network/firewall"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// TestRevisionsOfOneAnswerAreToldOnce: a thousand records, each written by itself,
// of which etcd tells in one answer, are a few transactions of the firewall and a
// few passes of the loop.
func TestRevisionsOfOneAnswerAreToldOnce(t *testing.T) {
	peers := 1000
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	store, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{srv.URL()}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	hand, err := clientv3.New(clientv3.Config{Endpoints: []string{srv.URL()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = hand.Close() }()

	// The watch goes on from a listing that is a moment old. Where nobody has
	// watched the store before, or the writes took long, there is a new listing, and
	// nothing to gather.
	var follower *follower
	var wall *firewall.Firewall
	var answers, revisions int
	for try := 0; ; try++ {
		if try == 5 {
			t.Fatal("the writes took too long each time")
		}
		follower, _ = followerAmongMany(t)
		if _, err := hand.Delete(t.Context(), "/coreos.com/network/subnets/", clientv3.WithPrefix()); err != nil {
			t.Fatal(err)
		}
		if _, err := store.List(t.Context()); err != nil {
			t.Fatal(err)
		}
		var writes errgroup.Group
		writes.SetLimit(64)
		for n := range peers {
			writes.Go(func() error {
				l := oneOfMany(n)
				_, err := hand.Put(t.Context(), "/coreos.com/network/subnets/"+l.Subnets.Key(), string(l.Record()))
				return err
			})
		}
		if err := writes.Wait(); err != nil {
			t.Fatal(err)
		}
		if wall, err = firewall.OpenAt(kerneltest.Namespace(t), firewall.Options{Guard: true}, zap.NewNop()); err != nil {
			t.Fatal(err)
		}
		defer func(w *firewall.Firewall) { _ = w.Close() }(wall)
		follower.firewall = wall
		var ranges, own subnet.Subnets
		ranges[subnet.V4], own[subnet.V4] = netip.MustParsePrefix("10.0.0.0/8"), follower.subnet[subnet.V4]
		wall.Begin(ranges, own, subnet.PerFamily[string]{"ripstop.1"}, subnet.PerFamily[[]netip.Addr]{}, 1, 8472, false)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var tasks errgroup.Group
		tasks.Go(func() error { return follower.loop.Run(ctx) })
		tasks.Go(func() error { return wall.Run(ctx, nil) })
		listed := -1
		answers, revisions = 0, 0
		watch := store.Watch(ctx, func(c subnet.Change) {
			if c.Whole {
				listed = len(c.Leases)
			} else if len(c.Leases) > 0 {
				if revisions++; !c.More {
					answers++
				}
			}
			if follower.follow(c); follower.mirror.Count() == peers {
				if err := follower.loop.WaitFor(ctx, c.Revision); err != nil {
					t.Error(err)
				}
				cancel()
			}
		})
		if err := errors.Join(watch, tasks.Wait()); err != nil {
			t.Fatal(err)
		}
		cancel()
		if listed == 0 {
			break
		}
		if try > 0 { // For a machine that has other things to do.
			peers /= 2
		}
		if err := store.Close(); err != nil {
			t.Fatal(err)
		}
		if store, err = etcd.Open(t.Context(), etcd.Options{Endpoints: []string{srv.URL()}}); err != nil {
			t.Fatal(err)
		}
	}
	s, writes := follower.loop.Stats(), wall.Status(t.Context()).Writes
	t.Logf("%d revisions in %d answers: %d transactions, %d passes", revisions, answers, writes, s.Passes)
	if revisions != peers || answers > peers/10 {
		t.Fatalf("%d revisions in %d answers", revisions, answers)
	}
	if limit := uint64(answers + 10); writes > limit || s.Passes > 3*limit {
		t.Errorf("%d transactions, %d passes", writes, s.Passes)
	}
	if got := wall.Status(t.Context()).Peers; got != peers {
		t.Errorf("%d peers are let in", got)
	}
}

// TestGatheredIsWhatAllCameTo: a peer that changes several times at once is told of
// as if it had changed once, so that what is owed for it is right afterwards.
func TestGatheredIsWhatAllCameTo(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 3))
		f, kernel := followerAmongMany(t)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.loop.Run(ctx) }()
		f.mirror.SetGrace(0)
		f.follow(subnet.Change{Whole: true, Epoch: "one", Revision: 1})
		for step := range 40 {
			l := oneOfMany(r.IntN(4))
			l.Endpoints[subnet.V4].MAC[5] = byte(r.IntN(3)) // Two may have one.
			c := subnet.Change{Revision: int64(2 + step), More: step < 39 && r.IntN(4) > 0}
			if r.IntN(3) == 0 {
				c.Gone = []string{l.Subnets.Key()}
			} else {
				c.Leases = []subnet.Lease{l}
			}
			f.follow(c)
		}
		if err := f.loop.WaitFor(ctx, f.mirror.Revision()); err != nil {
			t.Fatal(err)
		}
		own, err := f.planner.Own()
		if err != nil {
			t.Fatal(err)
		}
		want := backend.NewState(own...)
		for l := range f.mirror.All() {
			for _, e := range f.planner.Peer(l) {
				want.Put(e)
			}
		}
		if got := kernel.State(); !got.Equal(want) {
			t.Fatalf("seed %d: the kernel has\n%s\nwant\n%s", seed, got, want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}
