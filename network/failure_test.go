package network

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// deleted lists the deletions among the ops since the last look.
func (r *rig) deleted() (out []backend.Op) {
	for _, op := range r.kernel.Ops() {
		if op.Verb == backend.Delete {
			out = append(out, op)
		}
	}
	return out
}

// savesItsLease waits until the lease of now is in the snapshot, with its end.
func (r *rig) savesItsLease() {
	r.t.Helper()
	r.eventually("the lease of now is saved", func() bool {
		_, own := r.own()
		s, err := readSnapshot(r.opts.StateDir)
		return err == nil && s != nil && s.Lease == own && time.Until(s.Expires) > time.Hour
	})
}

// count counts the lines with a message.
func (r *rig) count(message string) int { return r.logs.FilterMessage(message).Len() }

const heldMessage = "records of peers are gone with a store that is not the one it was, or most at once: the peers are held"

// TestInvariant4WipedStoreLosesNothing: peers are held, the node claims its own
// subnet again, the peers theirs, and the hold is over.
func TestInvariant4WipedStoreLosesNothing(t *testing.T) {
	r := newRig(t)
	r.store.Sign(20 * time.Millisecond)
	var peers []subnet.Lease
	for n := 2; n < 22; n++ {
		peers = append(peers, r.join(n))
	}
	r.start()
	r.ready()
	key, own := r.own()
	before := r.kernel.State()
	r.kernel.Ops()
	r.store.Wipe()
	wiped := time.Now()
	r.eventually("the same subnet is claimed again", func() bool { k, l := r.own(); return k == key && l.SameContent(own) })
	if took := time.Since(wiped); took > 10*time.Second || r.count("waiting") > 0 {
		t.Errorf("claiming took %s, or more than one try: %v", took, r.logs.All())
	}
	r.eventually("the hold is told", func() bool { return r.count(heldMessage) == 1 })
	r.savesItsLease()
	for n := 2; n < 22; n++ {
		r.join(n)
	}
	r.eventually("the hold is over", func() bool { return r.count("no peer is held any more") == 1 })
	if e := r.logs.FilterMessage("no peer is held any more").All()[0].ContextMap(); e["returned"] != int64(20) || e["expired"] != int64(0) {
		t.Errorf("said %v", e)
	}
	if ops := r.kernel.Ops(); len(ops) != 0 || !r.kernel.State().Equal(before) {
		t.Errorf("the kernel was touched: %v", ops)
	}
	// From now on a removal is an ordinary one again.
	r.store.Delete(peers[0].Subnets.Key())
	r.eventually("one goes", func() bool { return !r.reaches(peers[0]) })
}

// TestHeldPeersGoWhenTheGraceEnds: those whose nodes did not come back. One
// whose subnet another took has moved before.
func TestHeldPeersGoWhenTheGraceEnds(t *testing.T) {
	r := newRig(t)
	r.store.Sign(20 * time.Millisecond)
	const grace = 5 * time.Second
	r.opts.PeerGrace = grace
	second, third, fourth := r.join(2), r.join(3), r.join(4)
	r.start()
	r.ready()
	wiped := time.Now()
	r.store.Wipe()
	r.join(2)
	taker := third
	taker.Node, taker.Endpoints[0].PublicIP, taker.Endpoints[0].MAC = "node33", netip.MustParseAddr("10.99.0.33"), subnet.MAC{2, 33}
	r.store.Put(taker.Subnets.Key(), taker.Record(), true)
	r.eventually("the third's entries move", func() bool {
		return r.reaches(taker) && r.kernel.State().Has(backend.FDB{Dev: "ripstop.1", MAC: backend.MAC{2, 33}, Remote: netip.MustParseAddr("10.99.0.33")})
	})
	r.eventually("the fourth goes", func() bool { return !r.reaches(fourth) })
	if after := time.Since(wiped); after < grace {
		t.Errorf("the fourth went after %s", after)
	}
	if !r.reaches(second) || !r.reaches(taker) || r.kernel.State().Len() != 2+2*4 {
		t.Errorf("kernel:\n%s", r.kernel.State())
	}
}

func TestHoldIsKeptAcrossARestart(t *testing.T) {
	r := newRig(t)
	r.store.Sign(20 * time.Millisecond)
	second := r.join(2)
	r.start()
	r.ready()
	r.store.Wipe()
	r.store.SetConfig([]byte(testConfig))
	r.eventually("it is held", func() bool { return r.count(heldMessage) == 1 })
	r.stop()
	r.kernel.Ops()
	r.start()
	r.ready()
	if d := r.deleted(); len(d) != 0 || !r.reaches(second) {
		t.Errorf("a held peer went with a restart: %v", d)
	}
	r.stop()
	// A store that is another since a time when nobody looked.
	r.join(2)
	r.start()
	r.ready()
	r.stop()
	r.store.Wipe()
	r.store.SetConfig([]byte(testConfig))
	r.start()
	r.ready()
	if d := r.deleted(); len(d) != 0 || !r.reaches(second) {
		t.Errorf("a peer went with a store that was wiped during a restart: %v", d)
	}
	r.stop()
	// One that leaves the same store meanwhile goes at once.
	third := r.join(3)
	r.start()
	r.ready()
	r.stop()
	r.store.Delete(third.Subnets.Key())
	r.start()
	r.ready()
	if r.reaches(third) {
		t.Error("a peer that left during a restart is still there")
	}
}

// TestTakenSubnetIsNeitherStolenNorReplaced: not ready, said once, and claimed
// as soon as it is free.
func TestTakenSubnetIsNeitherStolenNorReplaced(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	key, own := r.own()
	if err := r.node.NotReady(); err != nil {
		t.Errorf("not ready: %v", err)
	}
	before := r.kernel.State()
	tries := r.lists.Load()
	thief := own
	thief.Node, thief.Endpoints[0].PublicIP, thief.Endpoints[0].MAC = "node9", netip.MustParseAddr("10.99.0.9"), subnet.MAC{2, 9}
	r.store.Put(key, thief.Record(), true)
	r.eventually("it is not ready", func() bool { return r.node.NotReady() != nil })
	if err := r.node.NotReady(); !strings.Contains(err.Error(), "node9") {
		t.Errorf("not ready: %v", err)
	}
	// The pause after the sixth try is half of the longest at least, and has just begun.
	r.eventually("it has tried six times", func() bool { return r.lists.Load() >= tries+6 })
	for range 5 {
		r.join(3)
	}
	if n := r.logs.FilterLevelExact(zapcore.ErrorLevel).Len(); n != 1 {
		t.Errorf("%d errors are said: %v", n, r.logs.FilterLevelExact(zapcore.ErrorLevel).All())
	}
	if k, _ := r.own(); k != "" || !r.kernel.State().Has(backend.Route{Dst: second.Subnets[0], Via: backend.Nexthop{Dev: "ripstop.1", Gateway: second.Subnets[0].Addr()}}) {
		t.Errorf("holds %q, kernel:\n%s", k, r.kernel.State())
	}
	if now := r.kernel.State().String(); !strings.Contains(now, own.Endpoints[0].MAC.String()) || strings.Contains(now, thief.Endpoints[0].MAC.String()) {
		t.Errorf("kernel:\n%s\nwas:\n%s", now, before)
	}
	r.store.Delete(key)
	free := time.Now()
	r.eventually("it is claimed", func() bool { k, l := r.own(); return k == key && l.SameContent(own) })
	if took := time.Since(free); took > longestWait/2-500*time.Millisecond {
		t.Errorf("it took %s to be noticed", took)
	}
	r.eventually("it is ready", func() bool { return r.node.NotReady() == nil })
}

// TestAnotherRecordOfThisNodeIsNoReplacement: pods run on the subnet that is in use.
func TestAnotherRecordOfThisNodeIsNoReplacement(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	key, own := r.own()
	other := own
	other.Subnets[0] = netip.MustParsePrefix("10.5.250.0/24")
	r.store.Put(other.Subnets.Key(), other.Record(), true)
	r.store.Delete(key)
	r.eventually("its own is claimed again", func() bool { _, there := r.store.Record(key); return there })
}

func TestLeaseThatIsLostAgainAndAgainMakesNoBusyLoop(t *testing.T) {
	r := newRig(t)
	s := &lossyStore{Memory: r.store}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	began := time.Now()
	go func() {
		for end := began.Add(patience); time.Since(began) < 2*time.Second || s.holds.Load() < 2 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	if err := New(r.opts, s, s, r.kernel, r.host, zap.NewNop()).Run(ctx); err != nil {
		t.Fatal(err)
	}
	if n := s.holds.Load(); n < 2 || n > 10 {
		t.Errorf("held %d times in %s", n, time.Since(began))
	}
}
