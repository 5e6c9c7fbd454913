package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/ripstop-net/ripstop/network/lab"
)

// MaxNodes is the most hosts of a fleet, late joiners included.
const MaxNodes = lab.MaxNodes

// Options say what is measured.
type Options struct {
	// Nodes start at once; Joiners come afterwards, one after another.
	Nodes, Joiners int
	// Idle is for how long the processor time of daemons that have nothing to
	// do is measured; 0 leaves that out.
	Idle time.Duration
	// Lab has the hosts' families, the config, the daemon and the folder; what
	// it says of nodes and pods does not count.
	Lab lab.Options
}

// Report is what was measured.
type Report struct {
	Nodes, Mode, Load string
	// Starting is the time from the start of the first daemon to that of the
	// last, Whole from that of the last until every node knew every other.
	Starting, Whole time.Duration
	// StartCPU is the processor time of all daemons up to then, StartStore etcd's
	// share of the work.
	StartCPU   time.Duration
	StartStore Store

	// Resident, Share and Own have an element for each daemon, in bytes.
	Resident, Share, Own []uint64
	// Idle is how long there was nothing to do, IdleCPU what each daemon took
	// of a processor meanwhile (1 is a whole one), IdleStore what etcd did.
	Idle      time.Duration
	IdleCPU   []float64
	IdleStore Store

	// Known has the time from a joiner's start until each of the other nodes
	// knew it, and Everywhere, for each joiner, the longest of these.
	Known, Everywhere []time.Duration
	// Caught is, for each joiner, the time until it knew all others.
	Caught []time.Duration
}

// Limits on waiting: until all daemons know one another, and until a joiner is
// known; and the time that daemons are given to become quiet.
const (
	wholeLimit  = 3 * time.Minute
	joinLimit   = 30 * time.Second
	settleTime  = 5 * time.Second
	pollEvery   = 10 * time.Millisecond
	mebibyte    = 1 << 20
	firstOfMany = 5
)

// member is a host of the fleet.
type member struct {
	host    *lab.Host
	routes  *routes
	pid     int
	subnets []netip.Prefix
}

// run is one measurement.
type run struct {
	o       Options
	lab     *lab.Lab
	members []*member
}

// Run measures. It fails where a daemon ended, where not every node came to know
// every other, and where some kernel at the end has not just the routes that it
// should have; how long things took is not judged. Nothing is left running.
func Run(ctx context.Context, o Options) (report Report, err error) {
	if o.Nodes < 2 || o.Joiners < 0 || o.Nodes+o.Joiners > MaxNodes {
		return report, fmt.Errorf("a fleet has 2 to %d nodes, late joiners included: not %d and %d", MaxNodes, o.Nodes, o.Joiners)
	}
	o.Lab.Nodes, o.Lab.NoDaemons, o.Lab.Far = o.Nodes, true, 0
	r := &run{o: o}
	if r.lab, err = lab.Start(ctx, o.Lab); err != nil {
		return report, err
	}
	defer func() {
		for _, m := range r.members {
			err = errors.Join(err, m.routes.close())
		}
		err = errors.Join(err, r.lab.Close())
	}()
	report.Mode, report.Nodes = string(r.lab.Mode()), fmt.Sprint(o.Nodes)
	report.Load = load()
	for _, step := range []func(context.Context, *Report) error{r.start, r.idle, r.join} {
		if err := step(ctx, &report); err != nil {
			return report, errors.Join(err, r.alive())
		}
	}
	return report, errors.Join(r.alive(), r.check())
}

// say tells of progress.
func (r *run) say(format string, args ...any) {
	if r.o.Lab.Progress != nil {
		r.o.Lab.Progress(fmt.Sprintf(format, args...))
	}
}

// add makes a host a member before its daemon runs.
func (r *run) add(h *lab.Host) (*member, error) {
	routes, err := follow(h.Namespace)
	if err != nil {
		return nil, err
	}
	m := &member{host: h, routes: routes}
	r.members = append(r.members, m)
	return m, nil
}

// launch starts a member's daemon.
func (m *member) launch() error {
	if err := m.host.StartDaemon(); err != nil {
		return err
	}
	m.pid = m.host.DaemonPID()
	return nil
}

// settled waits until a member is ready and notes its subnets.
func (m *member) settled(ctx context.Context) error {
	if err := m.host.WaitReady(ctx); err != nil {
		return err
	}
	env, err := m.host.Env()
	if err != nil {
		return err
	}
	for _, p := range env.Subnets {
		if p.IsValid() {
			m.subnets = append(m.subnets, p)
		}
	}
	return nil
}

// others are the subnets of all members but one.
func (r *run) others(than *member) (out []netip.Prefix) {
	for _, m := range r.members {
		if m != than {
			out = append(out, m.subnets...)
		}
	}
	return out
}

// start starts all daemons at once and waits until everybody knows everybody.
func (r *run) start(ctx context.Context, report *Report) error {
	ctx, cancel := context.WithTimeoutCause(ctx, wholeLimit, fmt.Errorf("not whole after %s", wholeLimit))
	defer cancel()
	for _, h := range r.lab.Hosts {
		if _, err := r.add(h); err != nil {
			return err
		}
	}
	before, err := readStore(ctx, r.lab)
	if err != nil {
		return err
	}
	r.say("starting %d daemons", len(r.members))
	first := time.Now()
	last := first
	for _, m := range r.members {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		last = time.Now()
		if err := m.launch(); err != nil {
			return err
		}
	}
	for i, m := range r.members {
		if err := m.settled(ctx); err != nil {
			return err
		}
		if i+1 == len(r.members) {
			r.say("all daemons are ready")
		}
	}
	whole := last
	for _, m := range r.members {
		at, err := r.await(ctx, m, r.others(m))
		if err != nil {
			return err
		}
		if at.After(whole) {
			whole = at
		}
	}
	report.Starting, report.Whole = last.Sub(first), whole.Sub(last)
	r.say("whole")
	after, err := readStore(ctx, r.lab)
	if err != nil {
		return err
	}
	report.StartStore = after.since(before)
	for _, m := range r.members {
		cpu, err := lab.ProcessorTime(m.pid)
		if err != nil {
			return err
		}
		report.StartCPU += cpu
	}
	return nil
}

// await returns when a member's kernel had the last of the routes.
func (r *run) await(ctx context.Context, m *member, to []netip.Prefix) (time.Time, error) {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for {
		at, missing, err := m.routes.known(to)
		if err != nil || missing == 0 {
			return at, err
		}
		if !m.host.Running() {
			return at, r.alive()
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return at, fmt.Errorf("%s lacks %d of %d routes: %w", m.host.Name, missing, len(to), context.Cause(ctx))
		}
	}
}

// idle measures daemons that have nothing to do.
func (r *run) idle(ctx context.Context, report *Report) error {
	if r.o.Idle > 0 {
		if err := pause(ctx, settleTime); err != nil {
			return err
		}
		r.say("measuring what they take while nothing happens, for %s", r.o.Idle)
		before, err := r.cpu()
		if err != nil {
			return err
		}
		store, err := readStore(ctx, r.lab)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := pause(ctx, r.o.Idle); err != nil {
			return err
		}
		report.Idle = time.Since(began)
		after, err := r.cpu()
		if err != nil {
			return err
		}
		for i := range after {
			report.IdleCPU = append(report.IdleCPU, (after[i]-before[i]).Seconds()/report.Idle.Seconds())
		}
		now, err := readStore(ctx, r.lab)
		if err != nil {
			return err
		}
		report.IdleStore = now.since(store)
	}
	for _, m := range r.members {
		memory, err := readMemory(m.pid)
		if err != nil {
			return err
		}
		report.Resident = append(report.Resident, memory.Resident)
		report.Share = append(report.Share, memory.Share)
		report.Own = append(report.Own, memory.Own)
	}
	return nil
}

func (r *run) cpu() (out []time.Duration, err error) {
	for _, m := range r.members {
		t, err := lab.ProcessorTime(m.pid)
		if err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// join adds hosts one after another and waits each time until it is known
// everywhere.
func (r *run) join(ctx context.Context, report *Report) error {
	for i := range r.o.Joiners {
		r.say("late joiner %d of %d", i+1, r.o.Joiners)
		if err := r.joinOne(ctx, report); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) joinOne(ctx context.Context, report *Report) error {
	ctx, cancel := context.WithTimeoutCause(ctx, joinLimit, fmt.Errorf("not known everywhere after %s", joinLimit))
	defer cancel()
	h, err := r.lab.AddHost(ctx)
	if err != nil {
		return err
	}
	old := slices.Clone(r.members)
	m, err := r.add(h)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := m.launch(); err != nil {
		return err
	}
	if err := m.settled(ctx); err != nil {
		return err
	}
	var longest time.Duration
	for _, o := range old {
		at, err := r.await(ctx, o, m.subnets)
		if err != nil {
			return err
		}
		report.Known = append(report.Known, at.Sub(began))
		longest = max(longest, at.Sub(began))
	}
	report.Everywhere = append(report.Everywhere, longest)
	at, err := r.await(ctx, m, r.others(m))
	report.Caught = append(report.Caught, at.Sub(began))
	return err
}

// alive tells which daemons ended.
func (r *run) alive() error {
	var dead []error
	for _, m := range r.members {
		if m.pid != 0 && m.host.DaemonPID() != m.pid {
			dead = append(dead, fmt.Errorf("the daemon of %s ended: see %s", m.host.Name, m.host.LogFile()))
		}
	}
	if len(dead) > firstOfMany {
		dead = append(dead[:firstOfMany], fmt.Errorf("and %d more", len(dead)-firstOfMany))
	}
	return errors.Join(dead...)
}

// check reads every kernel's routes: announcements alone do not tell of routes
// that went in silence.
func (r *run) check() error {
	for _, m := range r.members {
		have, err := dump(m.host.Namespace)
		if err != nil {
			return err
		}
		want := map[netip.Prefix]bool{}
		for _, p := range r.others(m) {
			want[p] = true
		}
		if !maps.Equal(have, want) {
			return fmt.Errorf("the kernel of %s has %d of Ripstop's routes, and should have just those of its %d peers", m.host.Name, len(have), len(want))
		}
	}
	return nil
}
