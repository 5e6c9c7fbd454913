package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// Lab is a running network of hosts. Its methods are for one goroutine at a
// time, except those that only read.
type Lab struct {
	// Dir holds a folder for each host and one for etcd.
	Dir   string
	Hosts []*Host
	// Etcd is the hosts' store; it can be killed and started again.
	Etcd *etcdserver.Server
	// DaemonsStarted is when the first of the daemons of Start was started.
	DaemonsStarted time.Time

	opts     Options
	underlay *underlay
	etcdNS   *Namespace
	tempDir  bool
	saying   sync.Mutex
}

// etcdPort is where etcd listens in its namespace.
const etcdPort = "2379"

// Start builds a lab and returns once every daemon is ready and every pod
// stands. Pods may take a moment longer to reach each other. On an error
// nothing is left but the folder. The lab lives until Close, also when ctx
// ends.
func Start(ctx context.Context, opts Options) (*Lab, error) {
	if err := opts.complete(); err != nil {
		return nil, err
	}
	l := &Lab{Dir: opts.Dir, opts: opts}
	err := l.start(ctx)
	if err == nil {
		return l, nil
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return nil, errors.Join(err, l.Close())
}

func (l *Lab) start(ctx context.Context) (err error) {
	if l.Dir == "" {
		if l.Dir, err = os.MkdirTemp("", "ripstop-lab-"); err != nil {
			return fmt.Errorf("make the lab's folder: %w", err)
		}
		l.tempDir = true
	}
	segments := []segment{near}
	if l.opts.Far > 0 {
		segments = append(segments, far)
	}
	if l.underlay, err = newUnderlay(l.opts.Mode.Families(), segments...); err != nil {
		return err
	}
	for _, s := range segments {
		l.say("underlay: a bridge at %s", l.underlay.gateways(s))
	}
	if err := l.startEtcd(ctx); err != nil {
		return err
	}
	l.say("etcd: %s", l.EtcdURL())
	for i := range l.opts.Nodes {
		if _, err := l.plugHost(ctx, i+1); err != nil {
			return err
		}
	}
	if err := l.acquaint(0); err != nil {
		return err
	}
	l.say("hosts: %d", len(l.Hosts))
	if l.opts.NoDaemons {
		return nil
	}
	l.DaemonsStarted = time.Now()
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			return err
		}
	}
	return each(l.Hosts, func(h *Host) error { return l.settle(ctx, h) })
}

func (l *Lab) startEtcd(ctx context.Context) (err error) {
	if l.etcdNS, err = NewNamespace("etcd"); err != nil {
		return err
	}
	if err := l.underlay.plug(ctx, near, l.etcdNS, etcdNumber, underlayMTU); err != nil {
		return err
	}
	dir := filepath.Join(l.Dir, "etcd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make etcd's folder: %w", err)
	}
	l.Etcd, err = etcdserver.Start(ctx, etcdserver.Options{
		Dir:             dir,
		ListenClientURL: l.EtcdURL(),
		Run:             func(cmd *exec.Cmd) error { return l.etcdNS.Start(cmd) },
	})
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	return l.SetConfig(ctx, l.opts.Config)
}

// EtcdURL is etcd's URL as the hosts use it.
func (l *Lab) EtcdURL() string {
	f := l.opts.Mode.Families()[0]
	return "http://" + net.JoinHostPort(l.EtcdAddress(f).String(), etcdPort)
}

func (l *Lab) plugHost(ctx context.Context, number int) (*Host, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	h, err := l.newHost(ctx, number)
	if err != nil {
		return nil, err
	}
	l.Hosts = append(l.Hosts, h)
	return h, nil
}

// fewHosts find each other by ARP and neighbour discovery, as real ones do.
const fewHosts = 16

// acquaint makes hosts, from the given index on, and all others and etcd known
// to each other, except for the first few.
func (l *Lab) acquaint(from int) error {
	needed := func(a, b int) bool { return max(a, b) > from && max(a, b) > fewHosts }
	err := each(l.Hosts, func(h *Host) error {
		var others []int
		for _, o := range l.Hosts {
			if o != h && needed(h.number, o.number) {
				others = append(others, o.number)
			}
		}
		if needed(h.number, 0) {
			others = append(others, etcdNumber)
		}
		return l.underlay.acquaint(h.Namespace, others)
	})
	var hosts []int
	for _, h := range l.Hosts {
		if needed(h.number, 0) {
			hosts = append(hosts, h.number)
		}
	}
	return errors.Join(err, l.underlay.acquaint(l.etcdNS, hosts))
}

// settle waits for a host's daemon and makes its pods.
func (l *Lab) settle(ctx context.Context, h *Host) error {
	if err := h.WaitReady(ctx); err != nil {
		return err
	}
	ready := time.Since(l.DaemonsStarted)
	if !l.opts.NoPods {
		if err := h.addPods(ctx, l.opts.PodsPerNode); err != nil {
			return err
		}
	}
	env, err := h.Env()
	if err != nil {
		return err
	}
	l.say("%s: ready after %s with %s", h.Name, ready.Round(time.Millisecond), env.Subnets)
	return nil
}

// AddHost adds one more host with its daemon and pods, as a late joiner; where
// the lab is one of NoDaemons, the host alone.
func (l *Lab) AddHost(ctx context.Context) (*Host, error) {
	if len(l.Hosts) >= MaxNodes {
		return nil, fmt.Errorf("the lab is full: it has %d nodes", MaxNodes)
	}
	h, err := l.plugHost(ctx, len(l.Hosts)+1)
	if err != nil {
		return nil, err
	}
	if err := l.acquaint(len(l.Hosts) - 1); err != nil {
		return nil, err
	}
	if l.opts.NoDaemons {
		return h, nil
	}
	if err := h.StartDaemon(); err != nil {
		return nil, err
	}
	return h, l.settle(ctx, h)
}

// Mode tells which families the lab has.
func (l *Lab) Mode() Mode { return l.opts.Mode }

// Families lists the families of the lab.
func (l *Lab) Families() []subnet.Family { return l.opts.Mode.Families() }

// Pods lists all pods, host by host.
func (l *Lab) Pods() []*Pod {
	var out []*Pod
	for _, h := range l.Hosts {
		out = append(out, h.Pods...)
	}
	return out
}

// Namespaces lists all namespaces of the lab.
func (l *Lab) Namespaces() []*Namespace {
	out := []*Namespace{l.underlay.ns, l.etcdNS}
	for _, h := range l.Hosts {
		out = append(out, h.Namespace)
	}
	for _, p := range l.Pods() {
		out = append(out, p.Namespace)
	}
	return out
}

// Underlay is the namespace of the bridge between the hosts; the bridge's ports
// bear the hosts' names.
func (l *Lab) Underlay() *Namespace { return l.underlay.ns }

// EtcdNamespace is the namespace in which etcd runs.
func (l *Lab) EtcdNamespace() *Namespace { return l.etcdNS }

// EtcdAddress is etcd's on the underlay.
func (l *Lab) EtcdAddress(f subnet.Family) netip.Addr { return near.prefix(f, etcdNumber).Addr() }

// Close ends all processes and lets go of all namespaces. The folder stays,
// unless it was a temporary one.
func (l *Lab) Close() error {
	err := each(l.Hosts, (*Host).close)
	if l.Etcd != nil {
		err = errors.Join(err, l.Etcd.Kill())
	}
	err = errors.Join(err, l.etcdNS.Close())
	if l.underlay != nil {
		err = errors.Join(err, l.underlay.ns.Close())
	}
	if l.tempDir {
		err = errors.Join(err, os.RemoveAll(l.Dir))
	}
	if err != nil {
		return fmt.Errorf("take the lab away: %w", err)
	}
	return nil
}

func (l *Lab) say(format string, args ...any) {
	l.saying.Lock()
	defer l.saying.Unlock()
	l.opts.Progress(fmt.Sprintf(format, args...))
}

// each calls fn for all hosts at once and joins their errors.
func each(hosts []*Host, fn func(*Host) error) error {
	errs := make([]error, len(hosts))
	var group sync.WaitGroup
	for i, h := range hosts {
		group.Go(func() { errs[i] = fn(h) })
	}
	group.Wait()
	return errors.Join(errs...)
}
