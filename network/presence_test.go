package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest"
)

// Messages of a node with a twin.
const (
	twinMessage   = "not ready: another machine has taken this node's place while the store did not hear from this one"
	comingMessage = "coming up with the lease that this machine had, which the store has still"
)

// twinOf is a node at the same store, with all its surroundings of its own.
func twinOf(t *testing.T, r *rig, address string) *rig {
	twin := newRig(t)
	twin.store = r.store
	twin.host.host[0].Addresses[0] = netip.MustParseAddr(address)
	return twin
}

// inherits gives a node the saved snapshot of another, as an image that was
// made of that one does.
func (r *rig) inherits(from *rig) {
	r.t.Helper()
	file, err := os.ReadFile(filepath.Join(from.opts.StateDir, snapshotFile))
	if err == nil {
		err = os.MkdirAll(r.opts.StateDir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(r.opts.StateDir, snapshotFile), file, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// reboots takes away what ends with the boot.
func (r *rig) reboots() {
	r.t.Helper()
	if err := errors.Join(os.RemoveAll(r.opts.RunDir), os.RemoveAll(r.opts.SubnetFile)); err != nil {
		r.t.Fatal(err)
	}
	r.kernel.Hand(func(s *backend.State) { *s = *backend.NewState() })
}

// stays watches for a while that something is so all the time.
func (r *rig) stays(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if !is() {
			r.t.Fatalf("no longer: %s\n%v", what, r.logs.All())
		}
	}
}

// TestTwinIsRefused: the second living node of one name or address names the
// first and gives up as soon as that one is seen to live.
func TestTwinIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		node, address, want string
	}{
		"same name":             {"node1", "10.99.0.8", "--node-name"},
		"same address":          {"node8", "10.99.0.1", "--public-ip"},
		"same name and address": {"node1", "10.99.0.1", "--node-name"}, // Without a snapshot.
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.store.Renew(100 * time.Millisecond)
			r.start()
			r.ready()
			key, own := r.own()
			twin := twinOf(t, r, tc.address)
			twin.opts.Name = tc.node
			twin.start()
			err := twin.ends()
			var refused *subnet.TwinError
			if !errors.As(err, &refused) || !refused.Lives || !strings.Contains(err.Error(), "node1 (10.99.0.1)") || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("the twin ended with %v", err)
			}
			if twin.kernel.State().Len() != 0 || twin.count("waiting") != 1 {
				t.Errorf("said %v, kernel:\n%s", twin.logs.All(), twin.kernel.State())
			}
			if k, l := r.own(); k != key || l != own || r.node.NotReady() != nil {
				t.Errorf("the first has %s %+v, not ready: %v", k, l, r.node.NotReady())
			}
			// Rebuilt from another image: the old token is gone with its machine.
			r.stop()
			twin.store.Vanish("node1")
			twin.start()
			twin.ready()
		})
	}
}

// TestSameMachineIsNoTwin: neither after a crash, nor with another address.
func TestSameMachineIsNoTwin(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	r.stop()
	r.host.host[0].Addresses[0] = netip.MustParseAddr("10.99.0.77")
	r.start()
	r.ready()
	if r.said(waitForName) {
		t.Errorf("said %v", r.logs.All())
	}
}

// TestRebuiltHostWaitsForItsOldSelf: it says so, and goes on once the old
// presence has lapsed.
func TestRebuiltHostWaitsForItsOldSelf(t *testing.T) {
	r := newRig(t)
	if _, err := r.store.Appear(t.Context(), subnet.Living{Token: "old", Node: "node1"}); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.eventually("it says what it waits for, and for how long", func() bool {
		return r.said("this machine before a crash or a reboot, or another: it is free 1m0s after")
	})
	r.stays("it waits", func() bool { return len(r.done) == 0 && r.count("waiting") == 1 })
	r.store.Vanish("node1")
	r.ready()
}

// TestRebootComesUpBesideItsEarlierLife: the overlay is there at once, as it was,
// and the record is not touched before the earlier life has lapsed.
func TestRebootComesUpBesideItsEarlierLife(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	r.savesItsLease()
	key, own := r.own()
	before := r.kernel.State()
	r.stop()
	r.reboots()
	third := r.join(3)
	r.start()
	began := time.Now()
	r.ready()
	if took := time.Since(began); took > 20*time.Second { // The earlier life lapses after a minute.
		t.Errorf("it took %s", took)
	}
	r.eventually("all peers are reached", func() bool { return r.reaches(second) && r.reaches(third) })
	dev, _ := r.kernel.State().Device("ripstop.1")
	if was, ok := before.Device("ripstop.1"); !ok || dev != was {
		t.Errorf("device %v, was %v", dev, was)
	}
	r.stays("nothing is written", func() bool { _, l := r.own(); return l == own && !r.said("lease held") && r.node.NotReady() == nil })
	if r.count(comingMessage) != 1 || r.count("waiting") != 1 {
		t.Errorf("said %v", r.logs.All())
	}
	r.store.Vanish("node1")
	r.eventually("the lease is taken up", func() bool { return r.said("lease held") })
	if k, l := r.own(); k != key || l != own {
		t.Errorf("lease %s %+v, was %s %+v", k, l, key, own)
	}
	// Its presence is its own.
	if _, err := r.store.Appear(t.Context(), subnet.Living{Token: "twin", Node: "node1"}); err == nil {
		t.Error("a twin is let in")
	}
}

// TestStartThatMustNotComeUpBesideAnother: where it cannot be this machine's
// earlier life, or the lease is not as that left it, the kernel is not touched.
func TestStartThatMustNotComeUpBesideAnother(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(*rig){
		"another address": func(r *rig) { r.host.host[0].Addresses[0] = netip.MustParseAddr("10.99.0.8") },
		"known at another address": func(r *rig) {
			r.store.Vanish("node1")
			elsewhere := subnet.Living{Token: "old", Node: "node1", Addresses: subnet.PerFamily[netip.Addr]{netip.MustParseAddr("10.99.0.8")}}
			if _, err := r.store.Appear(r.t.Context(), elsewhere); err != nil {
				r.t.Fatal(err)
			}
		},
		"nothing saved": func(r *rig) { _ = os.RemoveAll(r.opts.StateDir) },
		"record gone":   func(r *rig) { key, _ := r.own(); r.store.Delete(key) },
		"record another's": func(r *rig) {
			key, l := r.own()
			l.Node, l.Endpoints[0].PublicIP = "node9", netip.MustParseAddr("10.99.0.9")
			r.store.Put(key, l.Record(), true)
		},
		"record rewritten": func(r *rig) {
			key, l := r.own()
			l.Endpoints[0].PublicIP = netip.MustParseAddr("10.99.0.9")
			r.store.Put(key, l.Record(), true)
		},
		"config changed": func(r *rig) {
			r.store.SetConfig([]byte(`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.start()
			r.ready()
			r.savesItsLease()
			r.stop()
			r.reboots()
			spoil(r)
			r.start()
			r.eventually("it waits", func() bool { return r.count("waiting") == 1 })
			r.stays("it waits", func() bool { return r.kernel.State().Len() == 0 && len(r.done) == 0 })
		})
	}
}

// TestCloneThatCameUpEnds: one with the first's name, address and snapshot comes
// up, for it could be the first after a reboot, and ends when that is seen to live.
func TestCloneThatCameUpEnds(t *testing.T) {
	r := newRig(t)
	r.store.Renew(time.Hour)
	r.start()
	r.ready()
	r.savesItsLease()
	key, own := r.own()
	clone := twinOf(t, r, "10.99.0.1")
	clone.inherits(r)
	clone.start()
	clone.ready()
	before := clone.kernel.State()
	r.store.Breathe("node1") // Not before: the clone may end as it comes up.
	err := clone.ends()
	var refused *subnet.TwinError
	if !errors.As(err, &refused) || !strings.Contains(err.Error(), "another machine lives under this node's name: node1 (10.99.0.1)") {
		t.Errorf("it ends with %v", err)
	}
	if k, l := r.own(); k != key || l != own || r.node.NotReady() != nil {
		t.Errorf("the first has %s %+v, not ready: %v", k, l, r.node.NotReady())
	}
	if !clone.kernel.State().Equal(before) {
		t.Errorf("its end changed the kernel:\n%s", clone.kernel.State())
	}
}

// TestTwinCannotSlipInDuringARestart: a clone that waits for the name must not
// get it while the daemon of the first is restarted.
func TestTwinCannotSlipInDuringARestart(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	key, own := r.own()
	twin := twinOf(t, r, "10.99.0.8")
	twin.start()
	twin.eventually("the twin waits", func() bool { return twin.said("it is free 1m0s after") })
	r.stop()
	time.Sleep(700 * time.Millisecond) // The twin tries again meanwhile.
	r.start()
	r.ready()
	if k, l := r.own(); k != key || l.Endpoints != own.Endpoints {
		t.Errorf("the record is now %s %+v", k, l)
	}
	var refused *subnet.TwinError
	if err := twin.ends(); !errors.As(err, &refused) {
		t.Errorf("the twin ends with %v", err)
	}
}

// TestPresenceIsTakenUpAgain after the store forgot it.
func TestPresenceIsTakenUpAgain(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	r.store.Vanish("node1")
	r.eventually("it is known again", func() bool {
		_, ok, err := r.store.Known(t.Context(), subnet.Living{Node: "node1"})
		return ok && err == nil
	})
	if err := r.node.NotReady(); err != nil || r.logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 0 {
		t.Errorf("%v, said %v", err, r.logs.All())
	}
}

// slowClient is a client whose Appear can be held up.
type slowClient struct {
	subnettest.Client
	mu   sync.Mutex
	gate chan struct{}
}

// holdUp makes calls of Appear wait until the function that it returns is called.
func (c *slowClient) holdUp() (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	gate := make(chan struct{})
	c.gate = gate
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.gate = nil
		close(gate)
	})
}

func (c *slowClient) Appear(ctx context.Context, n subnet.Living) (int64, error) {
	c.mu.Lock()
	gate := c.gate
	c.mu.Unlock()
	if gate != nil {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-gate:
		}
	}
	return c.Client.Appear(ctx, n)
}

// TestPresenceLostToATwin: a node that runs and whose place was taken says so
// once, leaves the record to the one who has the place, and is itself again when
// that one is gone.
func TestPresenceLostToATwin(t *testing.T) {
	r := newRig(t)
	client := &slowClient{Client: r.store}
	r.client = client
	second := r.join(2)
	r.start()
	r.ready()
	key, own := r.own()
	release := client.holdUp()
	defer release()
	r.store.Vanish("node1")
	twin := subnet.Living{Token: "twin", Node: "node1", Addresses: subnet.PerFamily[netip.Addr]{netip.MustParseAddr("10.99.0.8")}}
	if _, err := r.store.Appear(t.Context(), twin); err != nil {
		t.Fatal(err)
	}
	taken := own
	taken.Endpoints[0].PublicIP = netip.MustParseAddr("10.99.0.8")
	taken, err := r.store.Write(t.Context(), taken)
	if err != nil {
		t.Fatal(err)
	}
	release()
	r.eventually("it is not ready", func() bool { return r.node.NotReady() != nil })
	if err := r.node.NotReady(); !strings.Contains(err.Error(), "another machine lives under this node's name: node1 (10.99.0.8)") {
		t.Errorf("not ready: %v", err)
	}
	r.kernel.Ops()
	r.stays("the record is the twin's", func() bool { _, l := r.own(); return l == taken && r.node.NotReady() != nil })
	if r.logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 1 || r.count(twinMessage) != 1 {
		t.Errorf("said %v", r.logs.All())
	}
	if ops := r.kernel.Ops(); len(ops) != 0 || !r.reaches(second) {
		t.Errorf("the kernel was touched: %v", ops)
	}
	r.store.Vanish("node1")
	r.eventually("its record is its own", func() bool { k, l := r.own(); return k == key && l.SameContent(own) })
	r.eventually("it is ready", func() bool { return r.node.NotReady() == nil })
}

// TestLeaseIsNotClaimedBesideATwin: its record is gone, or becomes free, and who
// has its place may claim it.
func TestLeaseIsNotClaimedBesideATwin(t *testing.T) {
	t.Parallel()
	for _, taken := range []bool{false, true} {
		r := newRig(t)
		client := &slowClient{Client: r.store}
		r.client = client
		r.start()
		r.ready()
		key, own := r.own()
		if taken {
			thief := own
			thief.Node, thief.Endpoints[0].PublicIP, thief.Endpoints[0].MAC = "node9", netip.MustParseAddr("10.99.0.9"), subnet.MAC{2, 9}
			r.store.Put(key, thief.Record(), true)
			r.eventually("it waits for the thief", func() bool { return r.node.NotReady() != nil })
		}
		release := client.holdUp()
		defer release()
		r.store.Vanish("node1")
		if _, err := r.store.Appear(t.Context(), subnet.Living{Token: "twin", Node: "node1"}); err != nil {
			t.Fatal(err)
		}
		if !taken {
			r.store.Delete(key)
		}
		release()
		r.eventually("it says that there is a twin", func() bool { return r.count(twinMessage) == 1 })
		r.store.Delete(key)
		r.stays("nothing is claimed", func() bool { k, _ := r.own(); return k == "" && r.node.NotReady() != nil })
		r.store.Vanish("node1")
		r.eventually("it is claimed", func() bool { k, l := r.own(); return k == key && l.SameContent(own) })
		r.eventually("it is ready", func() bool { return r.node.NotReady() == nil })
		r.stop()
	}
}

// TestRecordThatSomebodyRewroteIsClaimedAgain: with another address in it peers
// would send elsewhere.
func TestRecordThatSomebodyRewroteIsClaimedAgain(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	_, own := r.own()
	wrong := own
	wrong.Endpoints[0].PublicIP = netip.MustParseAddr("10.99.0.8")
	wrong, err := r.store.Write(t.Context(), wrong)
	if err != nil {
		t.Fatal(err)
	}
	r.eventually("it says what it should", func() bool { _, l := r.own(); return l.SameContent(own) })
	_, mended := r.own()
	if mended.ID != own.ID || mended.Modified != wrong.Modified+1 {
		t.Errorf("the record is %+v, was %+v", mended, own)
	}
	r.stays("it is written once", func() bool { _, l := r.own(); return l == mended && r.node.NotReady() == nil })
	if n := r.count("lease lost, claiming it again"); n != 1 {
		t.Errorf("lost %d times: %v", n, r.logs.All())
	}
}

// TestOriginalComesBackBeforeAClone: where nobody is known under the name, a lease
// at another address makes a start wait.
func TestOriginalComesBackBeforeAClone(t *testing.T) {
	r := newRig(t)
	client := &slowClient{Client: r.store}
	r.client = client
	r.start()
	r.ready()
	key, own := r.own()
	release := client.holdUp()
	defer release()
	r.store.Vanish("node1") // As all do that the store did not hear for too long.
	clone := twinOf(t, r, "10.99.0.8")
	clone.tune = func(n *Node) { n.settle = patience }
	clone.start()
	clone.eventually("it says why it waits", func() bool { return clone.said("has a lease at another address, node1 (10.99.0.1)") })
	release()
	err := clone.ends()
	var refused *subnet.TwinError
	if !errors.As(err, &refused) || !refused.Lives || refused.First.Addresses[0] != own.Endpoints[0].PublicIP {
		t.Errorf("the clone ends with %v", err)
	}
	if k, l := r.own(); k != key || l != own || r.node.NotReady() != nil || clone.kernel.State().Len() != 0 {
		t.Errorf("the first has %s %+v, not ready: %v", k, l, r.node.NotReady())
	}
}

// TestMovedNodeWaitsForNobody for longer than it must, and others not at all.
func TestMovedNodeWaitsForNobody(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	key, own := r.own()
	r.stop()
	r.store.Vanish("node1")
	for _, moved := range []bool{false, true} {
		settle := patience
		if moved {
			settle = 500 * time.Millisecond
			r.host.host[0].Addresses[0] = netip.MustParseAddr("10.99.0.8")
			r.reboots()
			r.store.Vanish("node1")
		}
		r.tune = func(n *Node) { n.settle = settle }
		r.start()
		began := time.Now()
		r.ready()
		if took := time.Since(began); took < settle == moved || r.said("has a lease at another address") != moved {
			t.Errorf("moved %t: it took %s, said %v", moved, took, r.logs.All())
		}
		r.stop()
	}
	if k, l := r.own(); k != key || l.Endpoints[0].PublicIP == own.Endpoints[0].PublicIP {
		t.Errorf("lease %s %+v", k, l)
	}
}
