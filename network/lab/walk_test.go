package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/planners"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

var (
	walkSeed  = flag.Uint64("walk.seed", 0, "seed of the random walk, 0 for one of the clock's")
	walkSteps = flag.Int("walk.steps", 15, "bursts of faults in the random walk")
)

// walkLimit is the time that a burst's last fault is given to be healed. An
// entry that is hit again and again is mended after pauses of up to 5 s, and a
// start without the store waits 3 s for it.
const walkLimit = 20 * time.Second

// walkFault is one fault. It acts on what it names as its targets and may leave
// them broken; the mend that it returns, if any, is what an operator or init
// would do, not what the daemon heals.
type walkFault struct {
	name    string
	targets func(w *walk, h *Host) []string
	do      func(w *walk, h *Host, r *rand.Rand) (mend func() error, err error)
}

func walkOnDaemon(_ *walk, h *Host) []string { return []string{h.Name} }
func walkOnEtcd(*walk, *Host) []string       { return []string{"etcd"} }
func walkOnLink(_ *walk, h *Host) []string   { return []string{h.Name + "'s link"} }
func walkOnKernel(*walk, *Host) []string     { return nil }

// walkFaults are drawn from with equal chances.
var walkFaults = []walkFault{
	{"daemon killed", walkOnDaemon, walkEnd(unix.SIGKILL)},
	{"daemon terminated", walkOnDaemon, walkEnd(unix.SIGTERM)},
	{"daemon stopped", walkOnDaemon, func(_ *walk, h *Host, _ *rand.Rand) (func() error, error) {
		pid := h.DaemonPID()
		return func() error { return unix.Kill(pid, unix.SIGCONT) }, unix.Kill(pid, unix.SIGSTOP)
	}},
	{"etcd killed", walkOnEtcd, func(w *walk, _ *Host, _ *rand.Rand) (func() error, error) {
		return func() error { return w.lab.Etcd.Restart(w.t.Context()) }, w.lab.Etcd.Kill()
	}},
	{"etcd paused", walkOnEtcd, func(w *walk, _ *Host, _ *rand.Rand) (func() error, error) {
		return w.lab.Etcd.Resume, w.lab.Etcd.Pause()
	}},
	{"etcd compacted", walkOnEtcd, func(w *walk, _ *Host, _ *rand.Rand) (func() error, error) {
		return nil, w.ask(func(ctx context.Context) error {
			now, err := w.store.Get(ctx, Prefix)
			if err == nil {
				_, err = w.store.Compact(ctx, now.Header.Revision)
			}
			if err != nil && strings.Contains(err.Error(), "has been compacted") {
				return nil
			}
			return err
		})
	}},
	{"etcd wiped", walkOnEtcd, func(w *walk, _ *Host, _ *rand.Rand) (func() error, error) {
		if err := w.lab.Etcd.Wipe(w.t.Context()); err != nil {
			return nil, err
		}
		return nil, w.ask(func(ctx context.Context) error {
			_, err := w.store.Put(ctx, Prefix+"/config", w.lab.opts.Config)
			return err
		})
	}},
	{"record deleted", walkOnEtcd, func(w *walk, h *Host, _ *rand.Rand) (func() error, error) {
		return nil, w.ask(func(ctx context.Context) error {
			_, err := w.store.Delete(ctx, Prefix+"/subnets/"+w.subnets[h].Key())
			return err
		})
	}},
	{"an entry deleted", walkOnKernel, walkDelete(func(*rand.Rand, int) bool { return true }, 1)},
	{"half of all entries, or of a kind, deleted", walkOnKernel, walkDelete(func(r *rand.Rand, _ int) bool { return r.IntN(2) == 0 }, 1<<30)},
	{"all entries, or those of a kind, deleted", walkOnKernel, walkDelete(func(*rand.Rand, int) bool { return true }, 1<<30)},
	{"device down", walkOnKernel, walkDevice(func(n *netlink.Handle, l netlink.Link) error { return n.LinkSetDown(l) })},
	{"device down and up", walkOnKernel, walkDevice(func(n *netlink.Handle, l netlink.Link) error {
		return errors.Join(n.LinkSetDown(l), n.LinkSetUp(l))
	})},
	{"device with another MTU", walkOnKernel, walkDevice(func(n *netlink.Handle, l netlink.Link) error { return n.LinkSetMTU(l, 1300) })},
	{"device with another MAC", walkOnKernel, walkDevice(func(n *netlink.Handle, l netlink.Link) error {
		return n.LinkSetHardwareAddr(l, []byte{2, 1, 2, 3, 4, 5})
	})},
	{"device deleted", walkOnKernel, walkDevice(func(n *netlink.Handle, l netlink.Link) error { return n.LinkDel(l) })},
	{"carrier lost", walkOnLink, func(w *walk, h *Host, _ *rand.Rand) (func() error, error) {
		set := func(how func(*netlink.Handle, netlink.Link) error) error {
			return w.lab.Underlay().netlink(func(n *netlink.Handle) error {
				port, err := n.LinkByName(h.Name)
				if err != nil {
					return err
				}
				return how(n, port)
			})
		}
		return func() error { return set((*netlink.Handle).LinkSetUp) }, set((*netlink.Handle).LinkSetDown)
	}},
}

func walkEnd(sig unix.Signal) func(*walk, *Host, *rand.Rand) (func() error, error) {
	return func(w *walk, h *Host, _ *rand.Rand) (func() error, error) {
		_, _, err := h.StopDaemon(w.t.Context(), sig)
		return h.StartDaemon, err
	}
}

// walkDelete deletes what picks says of a host's entries, devices apart, in an
// order of the random's own.
func walkDelete(picks func(r *rand.Rand, i int) bool, most int) func(*walk, *Host, *rand.Rand) (func() error, error) {
	return func(w *walk, h *Host, r *rand.Rand) (func() error, error) {
		k, err := kernel.OpenAt(h.Namespace.file, vxlan.OwnsDevice)
		if err != nil {
			return nil, err
		}
		defer k.Close()
		have, err := k.Dump(w.t.Context())
		if err != nil {
			return nil, err
		}
		// An address that goes makes the daemon read all again, so most of the
		// time it is entries of one kind alone.
		kind, every := backend.KindAddress+backend.Kind(r.IntN(5)), r.IntN(4) == 0
		var ops []backend.Op
		for e := range have.All() {
			if e.Kind() == kind || every && e.Kind() != backend.KindDevice {
				ops = append(ops, backend.Op{Verb: backend.Delete, Entry: e})
			}
		}
		slices.SortFunc(ops, func(a, b backend.Op) int { return strings.Compare(a.String(), b.String()) })
		r.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
		i := -1
		ops = slices.DeleteFunc(ops, func(backend.Op) bool { i++; return !picks(r, i) })
		// What the daemon or the kernel was faster to delete does not matter.
		k.Apply(w.t.Context(), ops[:min(most, len(ops))])
		return nil, nil
	}
}

// walkDevice changes one of a host's VXLAN devices, if it is there.
func walkDevice(change func(*netlink.Handle, netlink.Link) error) func(*walk, *Host, *rand.Rand) (func() error, error) {
	return func(_ *walk, h *Host, r *rand.Rand) (func() error, error) {
		name := vxlan.DeviceName(subnet.Families[r.IntN(2)], vxlanVNI)
		err := h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(name)
			if err != nil {
				return err
			}
			return change(n, link)
		})
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
			return nil, nil
		}
		return nil, err
	}
}

// walk is a random walk of a lab through faults.
type walk struct {
	t       *testing.T
	lab     *Lab
	store   *clientv3.Client
	subnets map[*Host]subnet.Subnets
	steps   []string // What the burst of now has done.
}

// ask asks etcd until it answers: a client that lost it comes back in its own time.
func (w *walk) ask(request func(context.Context) error) error {
	for end := time.Now().Add(walkLimit); ; {
		ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
		err := request(ctx)
		cancel()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// burst does some faults, one upon the other, and then mends what the daemons
// are not there to mend. All choices are the random's.
func (w *walk) burst(r *rand.Rand) {
	w.steps = nil
	busy := map[string]bool{}
	var mends []func()
	do := func(what string, f func() error) {
		w.steps = append(w.steps, what)
		if err := f(); err != nil {
			w.t.Fatalf("%s: %v", w.said(), err)
		}
	}
	for range 1 + r.IntN(4) {
		f, h := walkFaults[r.IntN(len(walkFaults))], w.lab.Hosts[r.IntN(len(w.lab.Hosts))]
		own, pause := rand.New(rand.NewPCG(r.Uint64(), 0)), time.Duration(r.IntN(300))*time.Millisecond
		targets := f.targets(w, h)
		if slices.ContainsFunc(targets, func(target string) bool { return busy[target] }) {
			continue
		}
		name := f.name
		if !slices.Contains(targets, "etcd") || name == "record deleted" {
			name += " on " + h.Name
		}
		var mend func() error
		do(name, func() (err error) {
			mend, err = f.do(w, h, own)
			return err
		})
		if mend != nil {
			for _, target := range targets {
				busy[target] = true
			}
			mends = append(mends, func() { do("mended: "+name, mend) })
		}
		time.Sleep(pause)
	}
	r.Shuffle(len(mends), func(i, j int) { mends[i], mends[j] = mends[j], mends[i] })
	for _, mend := range mends {
		time.Sleep(time.Duration(r.IntN(700)) * time.Millisecond)
		mend()
	}
}

func (w *walk) said() string { return strings.Join(w.steps, ", ") }

// healed waits until every pair talks and each host is as it should be, and
// says how long that took.
func (w *walk) healed() (took time.Duration, err error) {
	began := time.Now()
	for {
		if err = w.asPlanned(); err == nil {
			break
		}
		if time.Since(began) > walkLimit {
			return 0, err
		}
		time.Sleep(20 * time.Millisecond)
	}
	took = time.Since(began)
	m, err := w.lab.Matrix(w.t.Context(), walkLimit)
	if err = errors.Join(err, m.Err()); err != nil {
		return took, err
	}
	took = max(took, time.Since(began)-time.Second) // The matrix calls some twice.
	return took, w.asPlanned()
}

// asPlanned tells how the store's records or the hosts' kernels differ from what
// they should be: each node has the record of its first subnet and no other, and
// each kernel has exactly what a new plan made of these records says.
func (w *walk) asPlanned() error {
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
	defer cancel()
	answer, err := w.store.Get(ctx, Prefix+"/", clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	var config []byte
	var leases []subnet.Lease
	for _, kv := range answer.Kvs {
		key := strings.TrimPrefix(string(kv.Key), Prefix+"/")
		if key == "config" {
			config = kv.Value
		}
		if key, ok := strings.CutPrefix(key, "subnets/"); ok {
			l, err := subnet.ParseRecord(key, kv.Value)
			if err != nil {
				return err
			}
			l.ID, l.Created, l.Modified = kv.Lease, kv.CreateRevision, kv.ModRevision
			leases = append(leases, l)
		}
	}
	cfg, err := subnet.ParseConfig(config)
	if err != nil {
		return err
	}
	var errs []error
	for _, h := range w.lab.Hosts {
		errs = append(errs, w.hostAsPlanned(ctx, h, cfg, leases))
	}
	if len(leases) != len(w.lab.Hosts) {
		errs = append(errs, fmt.Errorf("the store has %d records of %d nodes", len(leases), len(w.lab.Hosts)))
	}
	return errors.Join(errs...)
}

func (w *walk) hostAsPlanned(ctx context.Context, h *Host, cfg subnet.Config, leases []subnet.Lease) error {
	if !h.Running() {
		return fmt.Errorf("%s: ripstopd has ended", h.Name)
	}
	own := slices.IndexFunc(leases, func(l subnet.Lease) bool { return l.Node == h.Name })
	env, err := h.Env()
	switch {
	case err != nil:
		return err
	case env.Subnets != w.subnets[h]:
		return fmt.Errorf("%s: the subnet file has %s, at first it had %s", h.Name, env.Subnets, w.subnets[h])
	case own < 0:
		return fmt.Errorf("%s has no record", h.Name)
	case leases[own].Subnets != w.subnets[h]:
		return fmt.Errorf("%s: the record is of %s, at first it was of %s", h.Name, leases[own].Subnets, w.subnets[h])
	}
	want, err := walkPlan(h, cfg, leases, w.subnets[h])
	if err != nil {
		return err
	}
	k, err := kernel.OpenAt(h.Namespace.file, vxlan.OwnsDevice)
	if err != nil {
		return err
	}
	defer k.Close()
	have, err := k.Dump(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	if !have.Equal(want) {
		return fmt.Errorf("%s: the kernel differs from the plan, it lacks %v", h.Name, backend.Diff(have, want))
	}
	return nil
}

// walkPlan is what a host owes for records, planned from nothing.
func walkPlan(h *Host, cfg subnet.Config, leases []subnet.Lease, own subnet.Subnets) (*backend.State, error) {
	opts, err := planners.Parse(cfg.Backend)
	if err != nil {
		return nil, err
	}
	node, id := plan.Self{Node: h.Name, Subnets: own}, subnet.Identity{Node: h.Name}
	for _, f := range cfg.Families() {
		node.Underlay[f] = plan.Underlay{Interface: hostInterface, Addr: h.Address(f), MTU: underlayMTU}
		id.PublicIP[f] = h.Address(f)
	}
	self := opts.Planner(node)
	mirror := subnet.NewMirror(cfg, id, self.Check)
	mirror.Apply(time.Now(), subnet.Change{Whole: true, Leases: leases})
	entries, err := self.Own()
	if err != nil {
		return nil, err
	}
	for _, l := range mirror.Peers() {
		entries = append(entries, self.Peer(l)...)
	}
	return backend.NewState(entries...), nil
}

// TestWalk puts bursts of random faults to five hosts. After each, every pair
// talks, each kernel has exactly what the store's records ask for, and no node
// has another subnet than at first. -walk.seed replays the faults in their order,
// though not to the millisecond.
func TestWalk(t *testing.T) {
	t.Parallel()
	seed := *walkSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test -run 'TestWalk$' ./network/lab -walk.seed=%d -walk.steps=%d", seed, *walkSteps)
	w := &walk{t: t, lab: startLab(t, Options{Nodes: 5, Mode: Dual}), subnets: map[*Host]subnet.Subnets{}}
	w.store = openStore(t, w.lab)
	everyPairTalks(t, w.lab, talkLimit)
	for _, h := range w.lab.Hosts {
		env, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		w.subnets[h] = env.Subnets
	}
	began := time.Now()
	var longest time.Duration
	for step := range *walkSteps {
		w.burst(rand.New(rand.NewPCG(seed, uint64(step))))
		took, err := w.healed()
		longest = max(longest, took)
		t.Logf("step %d, healed after %5v: %s", step, took.Round(10*time.Millisecond), w.said())
		if err != nil {
			t.Fatalf("seed %d, step %d: not healed within %s: %v", seed, step, walkLimit, err)
		}
	}
	t.Logf("%d steps in %s, the longest healing took %s", *walkSteps, time.Since(began).Round(time.Second), longest.Round(10*time.Millisecond))
}
