package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network/rundir"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

func TestMain(m *testing.M) {
	etcdserver.RunIfChild()
	goleak.VerifyTestMain(m)
}

const testConfig = `{"Network": "10.5.0.0/16"}`

// fakeHost has one interface with a default route at first.
type fakeHost struct {
	preflight, tunnel error

	mu      sync.Mutex
	host    []backend.Interface
	survey  backend.Survey
	ways    map[netip.Addr]backend.Way
	changed func()
	failing error
	looks   atomic.Int32 // How often the interfaces were listed.
	lag     atomic.Int64 // What that takes, in nanoseconds.
	adopted []string
}

func (h *fakeHost) Preflight(context.Context) error { return h.preflight }
func (h *fakeHost) CanTunnel(context.Context) error { return h.tunnel }
func (h *fakeHost) Survey(context.Context, []netip.Prefix) (backend.Survey, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.survey, nil
}

func (h *fakeHost) Adopt(_ context.Context, device string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.adopted = append(h.adopted, device)
	return nil
}

func (h *fakeHost) TakeRoutes(context.Context, []backend.HostRoute) error { return nil }

func (h *fakeHost) has(s backend.Survey) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.survey = s
}

func (h *fakeHost) Interfaces(context.Context) ([]backend.Interface, error) {
	h.looks.Add(1)
	time.Sleep(time.Duration(h.lag.Load()))
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.host), h.failing
}

func (h *fakeHost) Way(_ context.Context, to netip.Addr) (backend.Way, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.ways[to], nil
}

func (h *fakeHost) WatchInterfaces(ctx context.Context, _ func(netip.Prefix) bool, changed func()) error {
	h.mu.Lock()
	h.changed = changed
	h.mu.Unlock()
	changed()
	<-ctx.Done()
	return nil
}

// become changes the host and tells of it.
func (h *fakeHost) become(change func()) {
	h.mu.Lock()
	change()
	changed := h.changed
	h.mu.Unlock()
	if changed != nil {
		changed()
	}
}

// rig is a node with all its surroundings in memory.
type rig struct {
	t      *testing.T
	store  *subnettest.Memory
	client subnettest.Client // The store as the node has it, nil where that is store.
	lists  atomic.Int32      // How often the node listed by itself.
	kernel *backendtest.Fake
	host   *fakeHost
	opts   Options
	tune   func(*Node) // Changes what start makes short.
	logs   *observer.ObservedLogs
	node   *Node
	// firewall is the node's, if it is to have one.
	firewall Firewall
	cancel   context.CancelFunc
	done     chan error
}

// counting is a store that counts its listings, those of Watch apart.
type counting struct {
	subnettest.Client
	lists *atomic.Int32
}

func (c counting) List(ctx context.Context) (subnet.Listing, error) {
	c.lists.Add(1)
	return c.Client.List(ctx)
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{
		t: t, store: subnettest.NewMemory(), kernel: backendtest.NewFake(),
		host: &fakeHost{host: []backend.Interface{{Name: "eth0", Up: true, MTU: 1500, Addresses: []netip.Addr{netip.MustParseAddr("10.99.0.1")}, DefaultV4: true}}},
		tune: func(*Node) {},
		opts: Options{Name: "node1", SubnetFile: filepath.Join(dir, "subnet.env"), RunDir: filepath.Join(dir, "run"), StateDir: filepath.Join(dir, "state"), PeerGrace: DefaultPeerGrace},
	}
	r.store.SetConfig([]byte(testConfig))
	return r
}

func (r *rig) at() subnettest.Client {
	if r.client != nil {
		return r.client
	}
	return r.store
}

func (r *rig) start() {
	core, logs := observer.New(zapcore.InfoLevel)
	r.logs = logs
	r.node = New(r.opts, counting{r.at(), &r.lists}, r.at(), r.kernel, r.host, zap.New(core))
	if r.firewall != nil {
		r.node.UseFirewall(r.firewall)
	}
	r.node.firstListing, r.node.firstOfBoot, r.node.settle = 300*time.Millisecond, 100*time.Millisecond, 500*time.Millisecond
	r.tune(r.node)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan error, 1)
	go func() { r.done <- r.node.Run(ctx) }()
	r.t.Cleanup(func() { r.stop() })
}

func (r *rig) stop() {
	r.t.Helper()
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("run: %v", err)
		}
		r.done <- nil
	case <-time.After(patience):
		r.t.Fatal("does not end")
	}
}

func (r *rig) ready() {
	r.t.Helper()
	select {
	case <-r.node.Ready():
	case err := <-r.done:
		r.done <- nil
		r.t.Fatalf("ended: %v", err)
	case <-time.After(patience):
		r.t.Fatalf("not ready: %v", r.logs.All())
	}
}

// ends returns what Run gives up with.
func (r *rig) ends() error {
	r.t.Helper()
	select {
	case err := <-r.done:
		r.done <- nil
		return err
	case <-time.After(patience):
		r.t.Fatalf("does not give up: %v", r.logs.All())
		return nil
	}
}

// patience is how long is waited for what must come: far longer than it takes, also on
// a machine that is busy with other tests.
const patience = time.Minute

// eventually waits for a condition.
func (r *rig) eventually(what string, is func() bool) {
	r.t.Helper()
	r.eventuallyIn(patience, what, is)
}

func (r *rig) eventuallyIn(limit time.Duration, what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(limit); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("not after %s: %s\n%v", limit, what, r.logs.All())
		}
	}
}

func (r *rig) said(text string) bool {
	for _, e := range r.logs.All() {
		if strings.Contains(e.Message+fmt.Sprint(e.ContextMap()), text) {
			return true
		}
	}
	return false
}

// join writes the record of the n-th peer.
func (r *rig) join(n int) subnet.Lease {
	l := subnet.Lease{
		Subnets: subnet.Subnets{netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n))}, Node: fmt.Sprint("node", n), Backend: vxlan.Type,
		Endpoints: subnet.PerFamily[subnet.Endpoint]{{PublicIP: netip.AddrFrom4([4]byte{10, 99, 0, byte(n)}), VNI: 1, MAC: subnet.MAC{2, 0, 0, 0, 0, byte(n)}}},
	}
	r.store.Put(l.Subnets.Key(), l.Record(), true)
	return l
}

// reaches tells whether the kernel routes to a subnet with all that it needs.
func (r *rig) reaches(l subnet.Lease) bool {
	s := r.kernel.State()
	via := backend.Nexthop{Dev: "ripstop.1", Gateway: l.Subnets[subnet.V4].Addr()}
	route := backend.Route{Dst: l.Subnets[subnet.V4], Via: via}
	return s.Has(route) && s.Forwards(route)
}

func (r *rig) own() (key string, l subnet.Lease) {
	listing, err := r.at().List(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, l := range listing.Leases {
		if l.Node == r.opts.Name {
			return l.Subnets.Key(), l
		}
	}
	return "", subnet.Lease{}
}

func TestNodeComesUpAndFollows(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	key, own := r.own()
	env, err := os.ReadFile(r.opts.SubnetFile)
	if want := fmt.Sprintf("FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=%s/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n", own.Subnets[0].Addr().Next()); err != nil || string(env) != want {
		t.Errorf("%v, subnet file:\n%swant\n%s", err, env, want)
	}
	if own.Endpoints[0] != (subnet.Endpoint{PublicIP: netip.MustParseAddr("10.99.0.1"), VNI: 1, MAC: vxlan.DeviceMAC("node1", subnet.V4, 1)}) {
		t.Errorf("record %s: %+v", key, own)
	}
	dev, ok := r.kernel.State().Device("ripstop.1")
	if !ok || dev.MAC != backend.MAC(own.Endpoints[0].MAC) || dev.MTU != 1450 || !r.reaches(second) {
		t.Errorf("kernel:\n%s", r.kernel.State())
	}
	third := r.join(3)
	r.eventually("the third is reached", func() bool { return r.reaches(third) })
	r.store.Delete(second.Subnets.Key())
	r.eventually("the second is gone", func() bool { return !r.reaches(second) && r.kernel.State().Len() == 2+4 })
}

// TestStopLeavesAllAndRestartChangesNothing: invariants 6 and 7 as far as the
// node's own deeds go.
func TestStopLeavesAllAndRestartChangesNothing(t *testing.T) {
	r := newRig(t)
	r.join(2)
	r.start()
	r.ready()
	key, own := r.own()
	before := r.kernel.State()
	fastest := patience // Each saves, and a disk may be busy.
	stop := func() {
		began := time.Now()
		r.stop()
		fastest = min(fastest, time.Since(began))
	}
	stop()
	r.kernel.Ops()
	for range 3 {
		r.start()
		r.ready()
		stop()
	}
	if fastest > time.Second || r.said("snapshot not saved") {
		t.Errorf("stopping took %s: %v", fastest, r.logs.All())
	}
	if ops := r.kernel.Ops(); len(ops) != 0 || !r.kernel.State().Equal(before) {
		t.Errorf("restarts made %v", ops)
	}
	if k, again := r.own(); k != key || again.Modified != own.Modified {
		t.Errorf("the record was written again: %s at %d, %s at %d", key, own.Modified, k, again.Modified)
	}
}

func TestInvariant3StoreAwayChangesNothing(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	before := r.kernel.State()
	r.kernel.Ops()
	r.store.Away(true)
	r.kernel.Hand(func(s *backend.State) {
		s.Drop(backend.Route{Dst: second.Subnets[0]})
	})
	r.eventually("drift is healed while the store is away", func() bool { return r.kernel.State().Equal(before) })
	r.store.Away(false)
	third := r.join(3)
	r.eventually("the third is reached", func() bool { return r.reaches(third) && r.reaches(second) })
	for _, op := range r.kernel.Ops() {
		if op.Verb == backend.Delete {
			t.Errorf("%s", op)
		}
	}
}

// TestInvariant5LostLeaseIsNeverRenumbered: a lost lease is claimed again with
// the same subnet; one that another has taken is neither stolen nor replaced.
func TestInvariant5LostLeaseIsNeverRenumbered(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	key, own := r.own()
	r.store.Delete(key)
	r.eventually("the same subnet is claimed again", func() bool { k, l := r.own(); return k == key && l.SameContent(own) })

	thief := own
	thief.Node, thief.Endpoints[0].PublicIP, thief.Endpoints[0].MAC = "node9", netip.MustParseAddr("10.99.0.9"), subnet.MAC{2, 9}
	r.store.Put(key, thief.Record(), true)
	r.eventually("it says who has it", func() bool { return r.said("node9") })
	time.Sleep(300 * time.Millisecond)
	if k, _ := r.own(); k != "" {
		t.Errorf("took %s instead", k)
	}
	if value, _ := r.store.Record(key); string(value) != string(thief.Record()) {
		t.Errorf("stole it back: %s", value)
	}
	r.store.Delete(key)
	r.eventually("it is claimed once it is free", func() bool { k, l := r.own(); return k == key && l.SameContent(own) })
}

func TestWaitsForWhatMayPass(t *testing.T) {
	for name, tc := range map[string]struct {
		set  func(*rig)
		says string
		mend func(*rig)
	}{
		"store away": {func(r *rig) { r.store.Away(true) }, "away", func(r *rig) { r.store.Away(false) }},
		"no config":  {func(r *rig) { r.store.SetConfig(nil) }, "ripstop config set", func(r *rig) { r.store.SetConfig([]byte(testConfig)) }},
		"no free subnet": {
			func(r *rig) {
				r.store.SetConfig([]byte(`{"Network":"10.5.0.0/22","SubnetMin":"10.5.2.0","SubnetMax":"10.5.3.0"}`))
				r.join(2)
				r.join(3)
			},
			"all 2 of length /24 from 10.5.2.0 to 10.5.3.0 in 10.5.0.0/22 are held: 10.5.2.0/24 by node2 (10.99.0.2)",
			func(r *rig) { r.store.Expire("10.5.2.0-24") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			tc.set(r)
			r.start()
			r.eventually("it says what it waits for", func() bool { return r.said(tc.says) })
			time.Sleep(700 * time.Millisecond)
			if n := r.logs.FilterMessage("waiting").Len(); n != 1 {
				t.Errorf("said %d times: %v", n, r.logs.All())
			}
			if r.kernel.State().Len() != 0 {
				t.Errorf("touched the kernel:\n%s", r.kernel.State())
			}
			tc.mend(r)
			r.ready()
		})
	}
}

func TestGivesUpAtOnceOnWhatDoesNotPass(t *testing.T) {
	for name, tc := range map[string]struct {
		set  func(*rig)
		want string
	}{
		"no right":                       {func(r *rig) { r.host.preflight = backend.ErrNotPermitted }, "check the host: not permitted"},
		"malformed config":               {func(r *rig) { r.store.SetConfig([]byte(`{"Network":"x"}`)) }, `malformed network config: Network: "x"`},
		"unknown backend":                {func(r *rig) { r.store.SetConfig([]byte(`{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`)) }, `no backend of Type "udp": there are vxlan, host-gw, alloc`},
		"public address among the pods'": {func(r *rig) { r.opts.Underlay.PublicIP[subnet.V4] = netip.MustParseAddr("10.5.9.9") }, "10.5.9.9 is inside the network"},
		"refused":                        {func(r *rig) { r.store.Refuse(true) }, "refuses"},
		"tiny MTU":                       {func(r *rig) { r.host.host[0].MTU = 600 }, "interface eth0: MTU 550 is below"},
		"stranded": {
			func(r *rig) {
				l := r.join(2)
				l.Node = "node1"
				l.Subnets[0] = netip.MustParsePrefix("10.6.2.0/24")
				r.store.Put(l.Subnets.Key(), l.Record(), true)
			},
			"does not fit the network config: 10.6.2.0/24 is outside the network 10.5.0.0/16: set the config back",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			tc.set(r)
			r.start()
			if err := r.ends(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v", err)
			}
			if r.kernel.State().Len() != 0 {
				t.Errorf("touched the kernel:\n%s", r.kernel.State())
			}
		})
	}
}

func TestBrokenConfigIsReplacedByTheOneUsedLast(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	r.stop()
	for _, broken := range []string{`{"Network":`, `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":99999999}}`} {
		r.store.SetConfig([]byte(broken))
		r.start()
		r.ready()
		r.stop()
		if n := r.logs.FilterMessageSnippet("mend it with").Len(); n != 1 || !r.said("going on with the one used last") {
			t.Errorf("%s: said %d times: %v", broken, n, r.logs.All())
		}
	}
}

func TestChangedConfigIsReportedAndNotApplied(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	r.kernel.Ops()
	for _, step := range []struct{ config, says string }{
		{`{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":7}}`, "takes effect when this daemon is restarted"},
		{`{"Network":"10.6.0.0/16"}`, "has no room for this node's lease"},
		{`{"Network":`, "cannot be used"},
		{"", "was deleted"},
		{testConfig, "is the one in use"},
	} {
		var text []byte
		if step.config != "" {
			text = []byte(step.config)
		}
		r.store.SetConfig(text)
		r.eventually(step.says, func() bool { return r.said(step.says) })
	}
	if ops := r.kernel.Ops(); len(ops) != 0 || !r.reaches(second) {
		t.Errorf("ops %v", ops)
	}
}

func TestBadRecordIsNamedOnceAndHarmsNobody(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	r.kernel.Ops()
	r.store.Put("junk", []byte("junk"), true)
	r.store.Put("10.5.3.0-24", []byte("{"), true)
	r.store.Put(second.Subnets.Key(), []byte("{"), true)
	third := r.join(4)
	r.eventually("the fourth is reached", func() bool { return r.reaches(third) })
	for _, key := range []string{"junk", "10.5.3.0-24", "10.5.2.0-24"} {
		n := 0
		for _, e := range r.logs.FilterMessage("record passed over").All() {
			if e.ContextMap()["key"] == key {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s named %d times", key, n)
		}
	}
	if !r.reaches(second) {
		t.Error("the peer whose record broke is gone")
	}
}

func TestSecondDaemonInOneRunDirIsRefused(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	twin := newRig(t)
	twin.opts = r.opts
	twin.start()
	if err := twin.ends(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another ripstopd (process %d)", os.Getpid())) {
		t.Errorf("got %v", err)
	}
}

// TestStartListsOnce: among tens of thousands of nodes a listing is the dearest
// thing that a start asks for.
func TestStartListsOnce(t *testing.T) {
	r := newRig(t)
	l := r.join(2)
	r.start()
	r.ready()
	r.eventually("the peer is reached", func() bool { return r.reaches(l) })
	if n := r.lists.Load(); n != 1 {
		t.Errorf("%d listings", n)
	}
}

// TestStartsAreNoted in the run folder, and forgotten by one that is told to end after it
// was ready for a while; one that gives up, or whose surroundings do, is not told to.
func TestStartsAreNoted(t *testing.T) {
	r := newRig(t)
	has := func(when string, want int, ends ...rundir.End) {
		t.Helper()
		all, err := rundir.Starts(r.opts.RunDir)
		if err != nil || len(all) != want {
			t.Errorf("%s: %v, %v; want %d", when, all, err, want)
			return
		}
		for i, end := range ends {
			if last := all[len(all)-len(ends)+i]; last.End != end {
				t.Errorf("%s: %v, want the last to end %q", when, all, ends)
			}
		}
	}
	r.opts.EchoPort = 8472 // The tunnel's, at which it gives up.
	for i := range 3 {
		r.start()
		if err := r.ends(); err == nil {
			t.Fatal("it did not give up")
		}
		has("after it gave up", i+1)
	}
	r.opts.EchoPort = 0
	r.start()
	r.ready()
	has("while it runs", 4)
	r.stop()
	has("told to end at once", 4, rundir.ToldReady)
	r.store.SetConfig(nil)
	state := r.opts.StateDir
	r.opts.StateDir = t.TempDir() // Else it would go on with what is saved.
	r.start()
	r.eventually("it waits", func() bool { return r.node.Status().Waiting != nil })
	r.stop()
	has("told to end while it waits", 5, rundir.ToldReady, rundir.ToldUnready)
	r.store.SetConfig([]byte(testConfig))
	r.opts.StateDir = state
	r.start()
	r.ready()
	r.node.readyAt = r.node.readyAt.Add(-time.Hour)
	r.stop()
	has("told to end after an hour", 0)

	n := New(r.opts, r.store, r.store, r.kernel, r.host, zap.NewNop())
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }()
	<-n.Ready()
	cancel(errors.New("another part has failed"))
	if err := <-done; err != nil {
		t.Error(err)
	}
	has("ended by another part's fault", 1)
}
