package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network/converge"
	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/underlay"
	"github.com/ripstop-net/ripstop/subnet"
)

// Options are what an operator decides for one node.
type Options struct {
	// Name identifies the node: unique, and the same after a reboot.
	Name string
	// Underlay says where the tunnel leaves the host.
	Underlay underlay.Wish
	// SubnetFile is where CNI plugins and Docker find the node's subnet.
	SubnetFile string
	// IPMasq is passed on in the subnet file.
	IPMasq bool
	// RunDir holds what ends with the boot, StateDir what outlives it. No two
	// daemons share either.
	RunDir, StateDir string
}

// Host is what a node asks of its host before it changes anything.
type Host interface {
	// Preflight tells what is missing for the work: a right or a feature.
	Preflight(ctx context.Context) error
	// Interfaces lists the host's network interfaces.
	Interfaces(ctx context.Context) ([]backend.Interface, error)
}

// Node is one node of the network. Run it once.
type Node struct {
	opts   Options
	store  subnet.Store
	kernel backend.Kernel
	host   Host
	log    *zap.Logger
	ready  chan struct{}
}

// New joins a node's parts. Nothing happens before Run.
func New(opts Options, store subnet.Store, kernel backend.Kernel, host Host, log *zap.Logger) *Node {
	return &Node{opts: opts, store: store, kernel: kernel, host: host, log: log, ready: make(chan struct{})}
}

// Ready is closed once the device stands, the entries of all peers have been
// tried, and the subnet file is written.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Run lives the node's life until ctx ends, which returns nil and leaves lease,
// device and entries as they are. What may pass (the store is away, the config
// or an address is not there yet) is waited for and said once; what does not
// pass is returned.
func (n *Node) Run(ctx context.Context) error {
	err := n.run(ctx)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (n *Node) run(ctx context.Context) error {
	if err := n.host.Preflight(ctx); err != nil {
		return fmt.Errorf("check the host: %w", err)
	}
	unlock, err := lockRunDir(n.opts.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	p, err := n.prepare(ctx)
	if err != nil {
		return err
	}
	lease, err := n.claim(ctx, p.config, p.request)
	if err != nil {
		return err
	}
	p.self.Subnets = lease.Subnets
	if err := saveConfig(n.opts.StateDir, p.text); err != nil {
		n.log.Warn("network config not saved: a start with a broken config in the store will fail", zap.Error(err))
	}
	return n.serve(ctx, p, lease)
}

// prepared is what a node knows before it claims its lease.
type prepared struct {
	text    []byte // The config in use, as written.
	seen    []byte // The config in the store, which may be broken.
	config  subnet.Config
	self    vxlan.Self
	request subnet.Request
}

// prepare reads the config and chooses the underlay.
func (n *Node) prepare(ctx context.Context) (prepared, error) {
	c, err := n.config(ctx)
	if err != nil {
		return prepared{}, err
	}
	cfg, opts := c.config, c.options
	for _, what := range opts.Unheeded() {
		n.log.Warn("config option has no effect", zap.String("option", what))
	}
	choice, err := n.underlay(ctx, cfg.Families())
	if err != nil {
		return prepared{}, err
	}
	self := vxlan.Self{Node: n.opts.Name, Options: opts}
	var public subnet.PerFamily[netip.Addr]
	for _, f := range cfg.Families() {
		c := choice[f]
		self.Underlay[f] = vxlan.Underlay{Addr: c.Local, MTU: c.MTU}
		public[f] = c.Public
		if _, err := opts.MTUFor(f, c.MTU); err != nil {
			return prepared{}, fmt.Errorf("interface %s: %w", c.Interface, err)
		}
		if err := cfg.CheckPublic(f, c.Public); err != nil {
			return prepared{}, fmt.Errorf("interface %s: %w: no peer could send to it; choose another with --iface or --public-ip, or another network", c.Interface, err)
		}
		n.log.Info("underlay chosen", zap.Stringer("family", f), zap.String("interface", c.Interface), zap.Stringer("local", c.Local),
			zap.Stringer("public", c.Public), zap.Int("mtu", c.MTU), zap.String("reason", c.Reason))
	}
	previous, err := envfile.Read(n.opts.SubnetFile)
	if err != nil {
		n.log.Warn("old subnet file passed over", zap.Error(err))
	}
	return prepared{text: c.text, seen: c.seen, config: cfg, self: self, request: subnet.Request{
		Self:      subnet.Identity{Node: n.opts.Name, PublicIP: public},
		Backend:   vxlan.Type,
		Endpoints: vxlan.Endpoints(n.opts.Name, opts, public),
		Previous:  previous.Subnets,
	}}, nil
}

// chosenConfig is a network config and what was read from it.
type chosenConfig struct {
	text, seen []byte
	config     subnet.Config
	options    vxlan.Options
}

func parseConfig(text []byte) (c chosenConfig, err error) {
	c.text, c.seen = text, text
	if c.config, err = subnet.ParseConfig(text); err == nil {
		c.options, err = vxlan.ParseOptions(c.config.Backend)
	}
	return c, err
}

// config waits for the network config. One that is malformed is an error,
// unless the config that this node last worked with is there to go on with.
func (n *Node) config(ctx context.Context) (c chosenConfig, err error) {
	err = n.until(ctx, "network config", func() error {
		seen, err := n.store.List(ctx)
		if err != nil {
			return err
		}
		if seen.Config == nil {
			return errors.New("there is no network config in the store: write one with 'ripstop config set'")
		}
		if c, err = parseConfig(seen.Config); err == nil {
			return nil
		}
		saved, savedErr := savedConfig(n.opts.StateDir)
		if savedErr != nil {
			return final(fmt.Errorf("%w: mend it with 'ripstop config set'", err))
		}
		n.log.Error("network config in the store cannot be used, going on with the one used last: mend it with 'ripstop config set'", zap.Error(err))
		saved.seen = seen.Config
		c = saved
		return nil
	})
	return c, err
}

func (n *Node) underlay(ctx context.Context, families []subnet.Family) (choice subnet.PerFamily[underlay.Choice], err error) {
	err = n.until(ctx, "underlay", func() error {
		host, err := n.host.Interfaces(ctx)
		if err != nil {
			return fmt.Errorf("list interfaces: %w", err)
		}
		choice, err = underlay.Choose(n.opts.Underlay, families, host)
		return err
	})
	return choice, err
}

func (n *Node) claim(ctx context.Context, cfg subnet.Config, req subnet.Request) (lease subnet.Lease, err error) {
	err = n.until(ctx, "lease", func() error {
		lease, err = subnet.Claim(ctx, n.store, cfg, req)
		var stranded *subnet.StrandedError
		if errors.As(err, &stranded) {
			return final(err)
		}
		return err
	})
	if err == nil {
		n.log.Info("lease held", zap.Stringer("subnets", lease.Subnets), zap.String("node", lease.Node), zap.Bool("reservation", lease.Reservation()))
	}
	return lease, err
}

// serve holds the lease and keeps the kernel as the store wants it.
func (n *Node) serve(ctx context.Context, p prepared, lease subnet.Lease) error {
	own, err := p.self.Own()
	if err != nil {
		return err
	}
	mtu, err := p.self.MTU()
	if err != nil {
		return err
	}
	env := envfile.Env{Subnets: lease.Subnets, MTU: mtu, IPMasq: n.opts.IPMasq}
	for _, f := range p.config.Families() {
		env.Networks[f] = p.config.Ranges[f].Network
	}
	loop := converge.New(n.kernel, n.log)
	follower := newFollower(p, loop, own, n.log)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return loop.Run(ctx) })
	group.Go(func() error { return n.store.Watch(ctx, follower.follow) })
	group.Go(func() error { return n.hold(ctx, p, lease) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-loop.Converged():
		}
		if err := env.Write(n.opts.SubnetFile); err != nil {
			return err
		}
		n.log.Info("ready", zap.Stringer("subnets", lease.Subnets), zap.Int("mtu", mtu), zap.String("subnet_file", n.opts.SubnetFile))
		close(n.ready)
		return nil
	})
	return group.Wait()
}

// hold keeps the lease, and claims it again where it was lost. The subnets are
// in use by then: no others will do.
func (n *Node) hold(ctx context.Context, p prepared, lease subnet.Lease) error {
	req := p.request
	req.Previous, req.OnlyPrevious = lease.Subnets, true
	for {
		err := n.store.Hold(ctx, lease)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, subnet.ErrLeaseLost) {
			return fmt.Errorf("hold the lease: %w", err)
		}
		n.log.Warn("lease lost, claiming it again", zap.Stringer("subnets", lease.Subnets), zap.Error(err))
		if lease, err = n.claim(ctx, p.config, req); err != nil {
			return err
		}
	}
}

// Pauses between tries of what is waited for.
const (
	firstWait   = 200 * time.Millisecond
	longestWait = 5 * time.Second
)

// final marks an error that waiting does not mend.
func final(err error) error { return backoff.Permanent(err) }

// until tries until it succeeds, saying once why it waits and once that it has
// what it waited for. It gives up on what does not pass by itself.
func (n *Node) until(ctx context.Context, what string, try func() error) error {
	said := ""
	pauses := &backoff.ExponentialBackOff{InitialInterval: firstWait, RandomizationFactor: 0.5, Multiplier: 2, MaxInterval: longestWait}
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := try()
		if errors.Is(err, subnet.ErrRefused) {
			err = final(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(pauses), backoff.WithMaxElapsedTime(0), backoff.WithNotify(func(err error, _ time.Duration) {
		if err.Error() != said {
			said = err.Error()
			n.log.Warn("waiting", zap.String("for", what), zap.Error(err))
		}
	}))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if said != "" {
		n.log.Info("waiting is over", zap.String("for", what))
	}
	return nil
}
