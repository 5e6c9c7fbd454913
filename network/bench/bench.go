package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/ripstop-net/ripstop/network/lab"
)

// Options say what is measured.
type Options struct {
	// Peers are the numbers of peers, each at most MaxPeers.
	Peers []int
	// Short measures less often, and the idle daemon for a shorter time.
	Short bool
	// Daemon is the path of ripstopd.
	Daemon string
	// Progress is called with one line for each thing done. It may be nil.
	Progress func(line string)

	pauses pauses
}

// pauses are how long things are waited for that do not tell when they are over.
type pauses struct {
	// settle is given to the daemon before its memory is read, quiet is how long
	// a restarted one is listened to, and idle how long it is left alone.
	settle, quiet, idle time.Duration
}

func (o *Options) complete() error {
	for _, n := range o.Peers {
		if n < 1 || n > MaxPeers {
			return fmt.Errorf("%d peers are not between 1 and %d", n, MaxPeers)
		}
	}
	if len(o.Peers) == 0 {
		return errors.New("no number of peers is given")
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.pauses == (pauses{}) {
		o.pauses = pauses{settle: 12 * time.Second, quiet: 3 * time.Second, idle: time.Minute}
		if o.Short {
			o.pauses.idle = 5 * time.Second
		}
	}
	return nil
}

// UsualPeers are the numbers of peers that the project's own page shows.
var UsualPeers = []int{3, 100, 1_000, 10_000, 40_000, 60_000}

// Result is what a run found.
type Result struct {
	Began   time.Time
	Took    time.Duration
	Sizes   []Size
	Traffic Traffic
	// Load is how many processes of others ran or waited for a processor when it
	// began.
	Load float64
}

// Size is what was found with one number of peers.
type Size struct {
	Peers int
	// Floors are what the kernel takes alone. The first is the one to which the
	// daemon is compared.
	Floors []Floor
	// List is the reading of all records from etcd, without the daemon.
	List Sample

	// Cold is from the start of the process on a host that holds nothing until it
	// is ready, with all entries in the kernel; ColdCPU is the daemon's processor
	// time until then.
	Cold, ColdCPU Sample
	// Warm is the same where the kernel holds all entries, and WarmEvents is what
	// the kernel announced meanwhile.
	Warm, WarmCPU Sample
	WarmEvents    int

	// Join, Leave and Move are changes of one peer.
	Join, Leave, Move Changes
	// Burst is the number of peers that join and then leave at once. Joins and
	// Leaves are from the first write to etcd until the last entry; JoinWrites
	// and LeaveWrites are the writing to etcd alone.
	Burst                                  int
	Joins, Leaves, JoinWrites, LeaveWrites Sample

	// Add and Remove bring all entries into the kernel and out of it by the
	// daemon's own code, without etcd.
	Add, Remove Sample

	// Started is the daemon's memory once it is ready, Settled after the changes
	// of single peers and a pause, Burdened after the bursts and a pause,
	// Restarted after a warm restart and a pause.
	Started, Settled, Burdened, Restarted Memory
	// Idle is the part of a processor that the daemon takes when nothing happens,
	// measured for IdleTime.
	Idle     float64
	IdleTime time.Duration
}

// Changes are changes of one peer after another. Kernel is from the moment at
// which another client of etcd sees the change until the kernel announces its
// last entry; Whole is from before the write to etcd.
type Changes struct{ Kernel, Whole Sample }

// burst is the number of peers that come and go at once.
const burst = 10_000

// Run measures. It needs root, and leaves nothing behind.
func Run(ctx context.Context, o Options) (r Result, err error) {
	if err := o.complete(); err != nil {
		return r, err
	}
	r.Load = load()
	dir, err := os.MkdirTemp("", "ripstop-bench-")
	if err != nil {
		return r, fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := lab.Start(ctx, lab.Options{
		// Without pods: to a daemon that has never been there, those of an earlier
		// one are somebody else's in the network.
		Nodes: 1, Mode: lab.IPv4, Dir: dir, Daemon: o.Daemon, Config: networkConfig, NoPods: true,
	})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	b := &run{opts: o, lab: l, dir: dir}
	if b.store, err = openStore(ctx, l); err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, b.store.close()) }()
	if b.node, err = openNode(l.Hosts[0]); err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, b.node.kernel.Close()) }()
	if b.peers.own, err = b.node.subnets(); err != nil {
		return r, err
	}
	r.Began = time.Now()
	if r.Traffic, err = measureTraffic(ctx, o, dir); err != nil {
		return r, err
	}
	for _, n := range slices.Sorted(slices.Values(o.Peers)) {
		s, err := b.size(ctx, n)
		if err != nil {
			return r, fmt.Errorf("with %d peers: %w", n, err)
		}
		r.Sizes = append(r.Sizes, s)
	}
	r.Took = time.Since(r.Began)
	return r, nil
}

// run is one run.
type run struct {
	opts  Options
	lab   *lab.Lab
	dir   string
	store *store
	node  *node
	peers peers
	// written is the number of peers that have a record.
	written int
}

func (b *run) say(format string, args ...any) { b.opts.Progress(fmt.Sprintf(format, args...)) }

// times is how often something is done, seldom or often.
func (b *run) times(often int) int {
	if b.opts.Short {
		return 1
	}
	return often
}

// size measures one number of peers.
func (b *run) size(ctx context.Context, n int) (s Size, err error) {
	s = Size{Peers: n, Burst: burst}
	if b.opts.Short {
		s.Burst = 1_000
	}
	if n < 100 {
		s.Burst = 0 // It would say nothing of so few peers.
	}
	b.say("%d peers: writing the records", n)
	// The daemon of the size before takes no part in that, nor in the floor.
	if err := b.node.stop(ctx); err != nil {
		return s, err
	}
	if err := b.fill(ctx, n); err != nil {
		return s, err
	}
	for range b.times(5) {
		records, took, err := b.store.list(ctx)
		if err != nil || records < n {
			return s, fmt.Errorf("list: %d records: %w", records, err)
		}
		s.List = append(s.List, took)
	}
	for _, step := range []struct {
		what string
		do   func(context.Context, *Size) error
	}{
		{"the kernel alone", b.floors}, {"cold starts", b.cold}, {"single changes", b.changes}, {"bursts", b.bursts},
		{"warm restarts", b.warm}, {"idle", b.idle},
	} {
		b.say("%d peers: %s", n, step.what)
		if err := step.do(ctx, &s); err != nil {
			return s, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return s, nil
}

// fill makes the records those of n peers, and etcd forget how they came.
func (b *run) fill(ctx context.Context, n int) error {
	revision, err := b.store.do(ctx, b.peers.between(b.written, n), b.store.put)
	if err != nil || revision == 0 {
		return err
	}
	b.written = n
	return b.store.compact(ctx, revision)
}

func (b *run) floors(ctx context.Context, s *Size) error {
	ways := []func(*lab.Namespace, int) (loader, error){
		func(ns *lab.Namespace, index int) (loader, error) { return &bareLoader{ns: ns, index: index}, nil },
	}
	ip, ipErr := exec.LookPath("ip")
	bridge, bridgeErr := exec.LookPath("bridge")
	if ipErr == nil && bridgeErr == nil {
		ways = slices.Insert(ways, 0, func(ns *lab.Namespace, _ int) (loader, error) {
			return &toolLoader{ns: ns, ip: ip, bridge: bridge, dir: b.dir}, nil
		})
	}
	for _, way := range ways {
		f, err := measureFloor(ctx, way, s.Peers, s.Burst, b.times(3), b.peers)
		if err != nil {
			return err
		}
		s.Floors = append(s.Floors, f)
	}
	return nil
}

// cold starts the daemon of a node that has never been there.
func (b *run) cold(ctx context.Context, s *Size) error {
	want := b.peers.entries(b.peers.between(0, s.Peers))
	for range b.times(3) {
		if err := b.node.stop(ctx); err != nil {
			return err
		}
		if _, _, err := b.node.empty(ctx); err != nil {
			return err
		}
		if err := b.store.forget(ctx, b.peers.own); err != nil {
			return err
		}
		if err := b.node.forget(); err != nil {
			return err
		}
		ready, cpu, err := b.node.start(ctx)
		if err != nil {
			return err
		}
		if s.Started, err = b.node.memory(); err != nil {
			return err
		}
		if own, err := b.node.subnets(); err != nil || own != b.peers.own {
			return fmt.Errorf("the node leased %s and not %s again: %w", own, b.peers.own, err)
		}
		if err := b.node.holds(ctx, want); err != nil {
			return err
		}
		s.Cold, s.ColdCPU = append(s.Cold, ready), append(s.ColdCPU, cpu)
	}
	return nil
}

// warm restarts the daemon, and then has its entries removed and added by its
// own code.
func (b *run) warm(ctx context.Context, s *Size) error {
	for range b.times(3) {
		if err := b.node.stop(ctx); err != nil {
			return err
		}
		heard, err := listen(b.node.host.Namespace, allGroups...)
		if err != nil {
			return err
		}
		ready, cpu, err := b.node.start(ctx)
		if err == nil {
			err = pause(ctx, b.opts.pauses.quiet)
		}
		events, heardErr := heard.total()
		if err = errors.Join(err, heardErr, heard.close()); err != nil {
			return err
		}
		s.Warm, s.WarmCPU = append(s.Warm, ready), append(s.WarmCPU, cpu)
		s.WarmEvents = max(s.WarmEvents, events)
	}
	if err := b.node.stop(ctx); err != nil {
		return err
	}
	for range b.times(3) {
		had, took, err := b.node.empty(ctx)
		if err != nil {
			return err
		}
		s.Remove = append(s.Remove, took)
		have, err := b.node.kernel.Dump(ctx)
		if err != nil {
			return err
		}
		if took, err = b.node.bring(ctx, have, had); err != nil {
			return err
		}
		s.Add = append(s.Add, took)
	}
	if _, _, err := b.node.start(ctx); err != nil {
		return err
	}
	if err := pause(ctx, b.opts.pauses.settle); err != nil {
		return err
	}
	var err error
	s.Restarted, err = b.node.memory()
	return err
}

func (b *run) idle(ctx context.Context, s *Size) error {
	if sizes := slices.Sorted(slices.Values(b.opts.Peers)); s.Peers != sizes[0] && s.Peers != sizes[len(sizes)-1] {
		return nil // It lies in between.
	}
	if err := pause(ctx, b.opts.pauses.settle); err != nil {
		return err
	}
	began := time.Now()
	before, err := b.node.cpu()
	if err != nil {
		return err
	}
	if err := pause(ctx, b.opts.pauses.idle); err != nil {
		return err
	}
	after, err := b.node.cpu()
	s.IdleTime = time.Since(began)
	s.Idle = float64(after-before) / float64(s.IdleTime)
	return err
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
