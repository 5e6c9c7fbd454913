package network

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest"
)

// TestStartWhileTheStoreIsAway comes up from what was saved, also after a
// reboot: same subnet, same MAC, all peers, subnet file.
func TestStartWhileTheStoreIsAway(t *testing.T) {
	for _, reboot := range []bool{false, true} {
		t.Run(fmt.Sprintf("reboot %t", reboot), func(t *testing.T) {
			r := newRig(t)
			second := r.join(2)
			r.start()
			r.ready()
			key, own := r.own()
			before := r.kernel.State()
			env, err := os.ReadFile(r.opts.SubnetFile)
			if err != nil {
				t.Fatal(err)
			}
			r.savesItsLease()
			r.stop()
			r.store.Away(true)
			if reboot {
				r.reboots()
				r.store.Vanish("node1") // Its last sign is a minute old by then.
			}
			r.kernel.Ops()
			fastest := patience // Of two.
			start := func() {
				r.start()
				began := time.Now()
				r.ready()
				fastest = min(fastest, time.Since(began))
			}
			start()
			again, err := os.ReadFile(r.opts.SubnetFile)
			if err != nil || string(again) != string(env) || !r.kernel.State().Equal(before) || !r.reaches(second) {
				t.Errorf("%v\n%s\n%s", err, again, r.kernel.State())
			}
			if d := r.deleted(); len(d) != 0 {
				t.Errorf("deleted %v", d)
			}
			r.stop() // And once more: what is saved stays good.
			start()
			if fastest > 2*time.Second {
				t.Errorf("it took %s", fastest)
			}
			r.store.Away(false)
			r.eventually("the lease is taken up", func() bool { return r.said("lease held") })
			if k, l := r.own(); k != key || l != own {
				t.Errorf("lease %s %+v, was %s %+v", k, l, key, own)
			}
			third := r.join(3)
			r.eventually("it follows", func() bool { return r.reaches(third) && r.reaches(second) })
			if n := len(r.logs.FilterMessage("starting with what was saved").All()); n != 1 {
				t.Errorf("said %d times: %v", n, r.logs.All())
			}
		})
	}
}

// TestStartWhileTheStoreIsAwayFindsItWiped: the lease is claimed again.
func TestStartWhileTheStoreIsAwayFindsItWiped(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	key, own := r.own()
	r.savesItsLease()
	r.stop()
	r.store.Away(true)
	r.start()
	r.ready()
	r.store.Wipe()
	r.store.Away(false)
	r.eventually("the same subnet is claimed", func() bool { k, l := r.own(); return k == key && l.SameContent(own) })
	r.eventually("the peer is held", func() bool { return r.count(heldMessage) == 1 })
	if !r.reaches(second) {
		t.Error("the peer is gone")
	}
	r.savesItsLease()
}

// TestStartWaitsLessAfterABoot: there is no device then, and pods are cut off.
func TestStartWaitsLessAfterABoot(t *testing.T) {
	r := newRig(t)
	const afterRestart = 10 * time.Second
	r.tune = func(n *Node) { n.firstListing = afterRestart }
	r.start()
	r.ready()
	r.savesItsLease()
	r.stop()
	r.store.Away(true)
	for _, boot := range []bool{false, true} {
		if boot {
			r.reboots()
		}
		r.start()
		began := time.Now()
		r.ready()
		if took := time.Since(began); took < afterRestart-time.Second != boot {
			t.Errorf("boot %t: it took %s", boot, took)
		}
		r.stop()
	}
}

// TestStartWhileTheStoreHasNoConfig: what is wrong is said once, nothing is waited
// for, and the node comes up as it was.
func TestStartWhileTheStoreHasNoConfig(t *testing.T) {
	for name, lose := range map[string]func(*rig){
		"deleted": func(r *rig) { r.store.SetConfig(nil) },
		"wiped":   func(r *rig) { r.store.Wipe() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			second := r.join(2)
			r.start()
			r.ready()
			key, own := r.own()
			r.savesItsLease()
			r.stop()
			lose(r)
			r.kernel.Ops()
			r.tune = func(n *Node) { n.firstListing = time.Minute }
			r.start()
			r.ready()
			r.eventually("the lease is held", func() bool { k, l := r.own(); return k == key && l.SameContent(own) && r.said("lease held") })
			if ops := r.kernel.Ops(); len(ops) != 0 || !r.reaches(second) {
				t.Errorf("the kernel was touched: %v", ops)
			}
			if r.logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 1 || !r.said("store has no network config, starting with what was saved") || r.said("away") || r.count("waiting") != 0 {
				t.Errorf("said %v", r.logs.All())
			}
			r.store.SetConfig([]byte(testConfig))
			r.eventually("the config is seen", func() bool { return r.said("network config in the store is the one in use") })
			// Where the lease may have run out the subnet may be another's.
			r.stop()
			s, err := readSnapshot(r.opts.StateDir)
			if err != nil {
				t.Fatal(err)
			}
			s.Expires = time.Now().Add(-time.Second)
			if err := s.write(r.opts.StateDir); err != nil {
				t.Fatal(err)
			}
			r.store.SetConfig(nil)
			r.start()
			r.eventually("it waits", func() bool { return r.said("there is no network config in the store") })
		})
	}
}

// TestRebootFindsItsSubnetByTheSnapshot: the subnet file is gone with the boot.
// Here the record is gone too, and the subnet is not the first of the node's order.
func TestRebootFindsItsSubnetByTheSnapshot(t *testing.T) {
	r := newRig(t)
	s := testSnapshot(0)
	s.Lease.Subnets[0] = netip.MustParsePrefix("10.5.250.0/24")
	if err := s.write(r.opts.StateDir); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.ready()
	if key, _ := r.own(); key != "10.5.250.0-24" {
		t.Errorf("claimed %s", key)
	}
}

func TestSnapshotThatMustNotStandIn(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*snapshot)
		says  string
	}{
		"lease may have run out": {func(s *snapshot) { s.Expires = time.Now().Add(-time.Second) }, "may have run out"},
		"no end known":           {func(s *snapshot) { s.Expires = time.Time{} }, "how long this node's lease lasts"},
		"of the future":          {func(s *snapshot) { s.Written = time.Now().Add(time.Hour) }, "takes for the future"},
		"another node's":         {func(s *snapshot) { s.Node = "node7" }, "another node's"},
		"broken config":          {func(s *snapshot) { s.Config = []byte("{") }, "malformed"},
		"config without room":    {func(s *snapshot) { s.Config = []byte(`{"Network":"10.6.0.0/16"}`) }, "outside the network"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.join(2)
			r.start()
			r.ready()
			r.savesItsLease()
			r.stop()
			s, err := readSnapshot(r.opts.StateDir)
			if err != nil {
				t.Fatal(err)
			}
			tc.spoil(s)
			if err := s.write(r.opts.StateDir); err != nil {
				t.Fatal(err)
			}
			r.store.Away(true)
			r.kernel.Ops()
			r.start()
			r.eventually("it says why", func() bool { return r.said(tc.says) })
			time.Sleep(500 * time.Millisecond)
			if ops := r.kernel.Ops(); len(ops) != 0 || r.count("waiting") != 1 {
				t.Errorf("ops %v, said %v", ops, r.logs.All())
			}
			r.store.Away(false)
			r.ready()
		})
	}
}

// TestClockThatIsSetWhileAStartWaits: after a boot the clock may be wrong, and what was
// saved seem to be of the future or to have run out. It serves as soon as it is right.
func TestClockThatIsSetWhileAStartWaits(t *testing.T) {
	for name, tc := range map[string]struct {
		off  time.Duration
		says string
	}{
		"ahead":  {48 * time.Hour, "may have run out"},
		"behind": {-48 * time.Hour, "takes for the future"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			second := r.join(2)
			r.start()
			r.ready()
			r.savesItsLease()
			r.stop()
			r.store.Away(true)
			r.kernel.Ops()
			var off atomic.Int64
			off.Store(int64(tc.off))
			r.tune = func(n *Node) {
				n.clock = func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
			}
			r.start()
			r.eventuallyIn(30*time.Second, "it says why", func() bool { return r.said(tc.says) })
			lists := r.lists.Load()
			r.eventuallyIn(30*time.Second, "it has asked the store again", func() bool { return r.lists.Load() > lists+1 })
			if r.said("starting with what was saved") {
				t.Errorf("said %v", r.logs.All())
			}
			off.Store(0)
			r.eventuallyIn(30*time.Second, "it is ready", func() bool { return r.node.NotReady() == nil })
			if ops := r.kernel.Ops(); len(ops) != 0 || !r.reaches(second) || r.count("starting with what was saved") != 1 {
				t.Errorf("ops %v, said %v", ops, r.logs.All())
			}
			r.store.Away(false)
			r.eventuallyIn(30*time.Second, "the lease is taken up", func() bool { return r.said("lease held") })
		})
	}
}

// TestClockThatIsSetBeforeAStartDoesWithout: what seemed to last has run out by the clock
// that is right, when the wait for the store is over.
func TestClockThatIsSetBeforeAStartDoesWithout(t *testing.T) {
	r := newRig(t)
	r.join(2)
	r.start()
	r.ready()
	r.savesItsLease()
	r.stop()
	r.store.Away(true)
	r.kernel.Ops()
	asked := r.lists.Load()
	r.tune = func(n *Node) {
		n.clock = func() time.Time {
			if r.lists.Load() == asked {
				return time.Now()
			}
			return time.Now().Add(48 * time.Hour)
		}
	}
	r.start()
	r.eventuallyIn(30*time.Second, "it says why it waits", func() bool { return r.said("may have run out") })
	patience := time.Now().Add(2 * r.node.firstListing)
	lists := r.lists.Load()
	r.eventuallyIn(30*time.Second, "it has asked the store again, for longer than it is patient", func() bool {
		return r.lists.Load() > lists+1 && time.Now().After(patience)
	})
	if ops := r.kernel.Ops(); len(ops) != 0 || r.said("starting with what was saved") {
		t.Errorf("ops %v, said %v", ops, r.logs.All())
	}
	r.store.Away(false)
	r.eventuallyIn(30*time.Second, "it is ready", func() bool { return r.node.NotReady() == nil })
}

// TestStartByALeaseThatHasRunOut, as by a clock that is behind: the subnet was given to
// another before the store went away, and is left to that one as soon as it is known.
func TestStartByALeaseThatHasRunOut(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	r.savesItsLease()
	r.stop()
	key, own := r.own()
	holder := own
	holder.Node, holder.Endpoints[0].PublicIP, holder.Endpoints[0].MAC = "node9", netip.MustParseAddr("10.99.0.9"), subnet.MAC{2, 9}
	r.store.Put(key, holder.Record(), true)
	r.store.Away(true)
	r.start()
	r.ready()
	if !r.said("starting with what was saved") {
		t.Errorf("said %v", r.logs.All())
	}
	r.store.Away(false)
	r.eventuallyIn(30*time.Second, "it is not ready", func() bool { return r.node.NotReady() != nil })
	if err := r.node.NotReady(); err == nil || !strings.Contains(err.Error(), "node9") {
		t.Errorf("not ready: %v", err)
	}
	if record, there := r.store.Record(key); !there || string(record) != string(holder.Record()) {
		t.Errorf("the record is %s", record)
	}
	if now := r.kernel.State().String(); !r.reaches(second) || strings.Contains(now, holder.Endpoints[0].MAC.String()) {
		t.Errorf("kernel:\n%s", now)
	}
	r.store.Delete(key)
	r.eventuallyIn(30*time.Second, "it is claimed", func() bool { k, l := r.own(); return k == key && l.SameContent(own) })
	r.eventuallyIn(30*time.Second, "it is ready", func() bool { return r.node.NotReady() == nil })
}

// TestHarmedSnapshotIsSaidOnceAndPassedOver also takes an old file of another name for none.
func TestHarmedSnapshotIsSaidOnceAndPassedOver(t *testing.T) {
	for name, text := range map[string]string{"torn": snapshotVersion, "alien": "{}", "newer": "ripstop snapshot 2 00\n", "empty": ""} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			if err := os.MkdirAll(r.opts.StateDir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(r.opts.StateDir, snapshotFile), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r.start()
			r.ready()
			if n := r.count("saved snapshot passed over"); n != 1 {
				t.Errorf("said %d times", n)
			}
			r.stop()
			r.start()
			r.ready()
			if n := r.count("saved snapshot passed over"); n != 0 {
				t.Errorf("said %d times of the new one", n)
			}
		})
	}
}

// TestStaleSnapshotTakesNothingAway: a peer that came after the snapshot was
// saved is in the kernel and not in the snapshot. It stays until the store tells.
func TestStaleSnapshotTakesNothingAway(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	r.savesItsLease()
	r.eventually("the peer is saved", func() bool {
		s, err := readSnapshot(r.opts.StateDir)
		return err == nil && s != nil && s.Peers.Len() == 1
	})
	path := filepath.Join(r.opts.StateDir, snapshotFile)
	stale, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	third := r.join(3)
	r.eventually("the third is reached", func() bool { return r.reaches(third) })
	r.store.Away(true)
	r.stop()
	if err := os.WriteFile(path, stale, 0o600); err != nil {
		t.Fatal(err)
	}
	r.kernel.Ops()
	r.start()
	r.ready()
	time.Sleep(200 * time.Millisecond)
	if gone := r.deleted(); len(gone) != 0 || !r.reaches(second) || !r.reaches(third) {
		t.Errorf("deleted by a stale snapshot: %v", gone)
	}
	r.store.Away(false)
	r.store.Delete(second.Subnets.Key())
	r.eventually("what has left is gone once the store tells", func() bool { return !r.reaches(second) && r.reaches(third) })
}

// lossyStore loses every hold at once.
type lossyStore struct {
	*subnettest.Memory
	holds atomic.Int64
}

func (s *lossyStore) Hold(context.Context, subnet.Lease, func(time.Time)) error {
	s.holds.Add(1)
	return subnet.ErrLeaseLost
}
