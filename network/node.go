package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/network/converge"
	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/rundir"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/network/underlay"
	"github.com/ripstop-net/ripstop/subnet"
)

// Options are what an operator decides for one node.
type Options struct {
	// Name identifies the node: unique, and the same after a reboot.
	Name string
	// Underlay says where the tunnel leaves the host.
	Underlay underlay.Wish
	// StoreAddresses looks up where the store is, for the sake of the way there; it
	// ends with its ctx. With an error it may return a part. nil for not known.
	StoreAddresses func(ctx context.Context) ([]netip.Addr, error)
	// SubnetFile is where CNI plugins and Docker find the node's subnet.
	SubnetFile string
	// IPMasq is passed on in the subnet file.
	IPMasq bool
	// RunDir holds what ends with the boot, StateDir what outlives it. No two
	// daemons share either.
	RunDir, StateDir string
	// Serve makes the daemon known as the one that serves in the network namespace, as
	// [rundir.Serve] does; nil for who need not know.
	Serve func(ctx context.Context, runDir string) (stop func(), err error)
	// PeerGrace is how long peers are held whose records went with a store that
	// is not the one it was; 0 turns that off.
	PeerGrace time.Duration
	// AuditEvery is the mean time between comparisons of the kernel with all
	// that it announced; 0 is DefaultAuditEvery.
	AuditEvery time.Duration
	// Listen is the TCP address at which the status is answered beside the socket
	// in RunDir; "" for none.
	Listen string
	// EchoPort is the UDP port at which peers are answered that ask whether this node
	// can be reached; 0 for none.
	EchoPort uint16
	// ProbeInterval is the time between two turns in each of which some peers are asked
	// whether they can be reached; 0 asks none.
	ProbeInterval time.Duration
	// TxChecksum says what is done about the checksum offload of VXLAN devices.
	TxChecksum host.TxChecksum
	// Level is the log's, for whoever changes it while the node runs. Version is
	// what the status says of the program.
	Level   zap.AtomicLevel
	Version string
}

// DefaultPeerGrace is time enough for every node of a large network to find
// that the store is another and to claim its subnet again.
const DefaultPeerGrace = 5 * time.Minute

// DefaultAuditEvery catches within minutes what the kernel never announced, and
// costs next to nothing.
const DefaultAuditEvery = converge.DefaultAuditEvery

// Host is what a node asks of its host before it changes anything.
type Host interface {
	Ground
	// Preflight tells what is missing for the work: a right or a feature.
	Preflight(ctx context.Context) error
	// Interfaces lists the host's network interfaces.
	Interfaces(ctx context.Context) ([]backend.Interface, error)
	// Way tells how the host sends to an address, the zero Way where it cannot.
	Way(ctx context.Context, to netip.Addr) (backend.Way, error)
	// WatchInterfaces calls changed, which must not wait, at once and whenever the
	// answers of the other two may be others, until ctx ends; then it returns nil.
	// leads tells, to any goroutine, whether a route to a prefix matters beside
	// default routes and those without a gateway.
	WatchInterfaces(ctx context.Context, leads func(netip.Prefix) bool, changed func()) error
}

// Node is one node of the network. Run it once.
type Node struct {
	opts     Options
	store    observed
	presence subnet.Presence
	kernel   backend.Kernel
	host     Host
	firewall Firewall
	settings Settings
	log      *zap.Logger
	ready    chan struct{}
	readyAt  time.Time // Once ready is closed.

	// What tests make shorter.
	firstListing, firstOfBoot, settle, movedGrace, pendingFor, retryMove time.Duration

	clock   func() time.Time // The host's, which may be wrong.
	file    *keptFile
	view    view
	tracker status.Tracker
	sight   *sight
	place   place
	serving atomic.Bool   // Pods use what it has set up: what the store refuses no longer ends it.
	trouble atomic.Uint32 // What peers are told that ask, a probe.Trouble.

	mu sync.Mutex
	// twin and taken are why a node that came up is not ready any more: another
	// machine is known in its place, or its subnet is another's.
	twin, taken error
}

// How long a start waits for the store before it does without, if it can. What was
// saved may be old, so a store that is restarted itself is waited for; pods lose
// nothing by it while the device stands. After a boot there is none.
const (
	firstListing = 3 * time.Second
	firstOfBoot  = time.Second
)

// New joins a node's parts. Nothing happens before Run.
func New(opts Options, store subnet.Store, presence subnet.Presence, kernel backend.Kernel, host Host, log *zap.Logger) *Node {
	if opts.Level == (zap.AtomicLevel{}) {
		opts.Level = zap.NewAtomicLevel()
	}
	n := &Node{
		opts: opts, presence: presence, kernel: kernel, host: host, firewall: noFirewall{}, settings: noSettings{}, log: log, ready: make(chan struct{}),
		firstListing: firstListing, firstOfBoot: firstOfBoot, settle: settleTime, movedGrace: movedGrace, pendingFor: pendingFor, retryMove: retryMove,
		clock: time.Now,
	}
	n.file = newKeptFile(opts.SubnetFile, log)
	n.sight = newSight(host, opts.Underlay, opts.StoreAddresses)
	n.view.started = time.Now()
	n.store = observed{store, &n.view}
	return n
}

// Ready is closed once the device stands, the entries of all peers have been
// tried, and the subnet file is written.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// NotReady tells why pods on this node cannot be reached, nil if they can: it
// is not up yet, or another has its place or its subnet by now.
func (n *Node) NotReady() error {
	select {
	case <-n.ready:
	default:
		return errors.New("the node is coming up")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.twin != nil {
		return n.twin
	}
	return n.taken
}

// readyFor is for how long the node has been ready, 0 where it never was.
func (n *Node) readyFor() time.Duration {
	select {
	case <-n.ready:
		return max(time.Since(n.readyAt), 1)
	default:
		return 0
	}
}

func (n *Node) twinInPlace() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.twin
}

// setTaken notes that the subnet is another's, nil that it is not, and tells
// whether a node that was ready no longer is.
func (n *Node) setTaken(err error) (news bool) {
	was := n.NotReady()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.taken = err
	return was == nil && err != nil
}

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
	if err := rundir.Began(n.opts.RunDir, n.view.started); err != nil {
		n.log.Warn("'ripstop doctor' may not see it if this daemon ends again and again", zap.Error(err))
	}
	defer func() {
		if !errors.Is(context.Cause(ctx), context.Canceled) {
			return // It was not told to end, but gives up, or another part of the daemon did.
		}
		if err := rundir.Ended(n.opts.RunDir, n.readyFor()); err != nil {
			n.log.Warn("'ripstop doctor' may take this end for a crash", zap.Error(err))
		}
	}()
	if hush, err := rundir.Announce(n.opts.RunDir); err != nil {
		n.log.Warn("ripstop cleanup may not see that this daemon runs, if it is given another --run-dir", zap.Error(err))
	} else {
		defer hush()
	}
	stop, err := n.observe(ctx)
	if err != nil {
		return err
	}
	defer stop()
	id, booted, err := token(n.opts.RunDir)
	if err != nil {
		return err
	}
	patience := n.firstListing
	if booted {
		patience = n.firstOfBoot
	}
	saved, err := readSnapshot(n.opts.StateDir)
	if err != nil {
		n.log.Warn("saved snapshot passed over", zap.Error(err))
	}
	if saved != nil && saved.Node != n.opts.Name {
		n.log.Warn("saved snapshot passed over: it is another node's", zap.String("node", saved.Node))
		saved = nil
	}
	p, err := n.prepare(ctx, saved, patience)
	if err != nil {
		return err
	}
	// As long as it waits for config or underlay, it touches nothing.
	stop, err = n.alone(ctx)
	if err != nil {
		return err
	}
	defer stop()
	p.living.Token = id
	if p.unclaimed { // The store is away: the lease is known to last.
		return n.serve(ctx, p, saved.Lease)
	}
	lease, err := n.settleIn(ctx, &p)
	for errors.Is(err, errMoved) {
		var over host.Takeover
		if over, err = n.checkHost(ctx, &p); err == nil {
			p.goOnWith(over, n)
			lease, err = n.settleIn(ctx, &p)
		}
	}
	if err != nil {
		return err
	}
	return n.serve(ctx, p, lease)
}

// settleIn makes a node that starts known and claims its lease, or finds that the one
// that it had will do, also where the store refuses to write. It returns errMoved where the node is not where it was chosen
// to be by then.
func (n *Node) settleIn(ctx context.Context, p *prepared) (subnet.Lease, error) {
	lease, err := n.arrive(ctx, p, nil, true)
	req := p.request
	req.Seen = p.recent()
	p.listing = nil // It is large.
	if err == nil {
		had := lease
		lease, err = n.claimWhere(ctx, p.config, req, nil, func() error { return n.stillThere(ctx, p) })
		if errors.Is(err, subnet.ErrRefused) && had.Subnets != (subnet.Subnets{}) {
			lease, err = had, fmt.Errorf("%w: %w", errStanding, err)
		}
	}
	if errors.Is(err, errStanding) {
		n.log.Info("coming up with the lease that this machine had, which the store has still", zap.Stringer("subnets", lease.Subnets), zap.Error(err))
		p.unclaimed = true
		return lease, nil
	}
	return lease, err
}

// prepared is what a node knows before it claims its lease.
type prepared struct {
	text    []byte // The config in use, as written.
	seen    []byte // The config in the store, which may be broken.
	config  subnet.Config
	options plan.Options
	self    plan.Self
	request subnet.Request
	living  subnet.Living
	// over is what the node goes on with of flannel's.
	over host.Takeover
	// flannels says that the node was flannel's, so that its rules are to go.
	flannels bool
	// noted is what was said already of what may be in the way.
	noted []string
	// presence is the id under which the node is known as living.
	presence int64
	// saved is what the node knew before it was started, nil for nothing.
	saved *snapshot
	// unclaimed says that the node comes up by what was saved, and that its
	// presence and its lease are yet to be taken up.
	unclaimed bool
	// listing is what the store held at listedAt, when the config was read.
	listing  *subnet.Listing
	listedAt time.Time
	// lookedAt is when the host was last looked at.
	lookedAt time.Time
}

// listingLasts is how old a listing may be for a start to go by it.
const listingLasts = 5 * time.Second

// recent is what the store held a moment ago, nil where that is not known.
func (p *prepared) recent() *subnet.Listing {
	if time.Since(p.listedAt) > listingLasts {
		return nil
	}
	return p.listing
}

// prepare reads the config and chooses the underlay.
func (n *Node) prepare(ctx context.Context, saved *snapshot, patience time.Duration) (p prepared, err error) {
	c, alone, err := n.config(ctx, saved, patience)
	if err != nil {
		return prepared{}, err
	}
	cfg, opts := c.config, c.options
	if err := checkEchoPort(n.opts.EchoPort, opts.Means()); err != nil {
		return prepared{}, err
	}
	for _, what := range opts.Unheeded() {
		n.log.Warn("config option has no effect", zap.String("option", what))
	}
	choice, err := n.underlay(ctx, cfg.Families())
	if err != nil {
		return prepared{}, err
	}
	for _, f := range cfg.Families() {
		choice[f] = heeded(choice[f], opts)
	}
	n.view.chose(cfg.Families(), choice)
	self := plan.Self{Node: n.opts.Name, NoTxChecksum: n.opts.TxChecksum.Without(host.Release())}
	at, err := newSite(self, cfg, opts, choice)
	if err != nil {
		return prepared{}, err
	}
	n.place.set(at)
	previous, err := envfile.Read(n.opts.SubnetFile)
	if err != nil {
		n.log.Warn("old subnet file passed over", zap.Error(err))
	}
	req := at.request(subnet.Request{
		Self:     subnet.Identity{Node: n.opts.Name},
		Backend:  cfg.Backend.Type,
		EchoPort: n.echoPort(opts),
		Previous: previous.Subnets,
	})
	if saved != nil {
		req.Preferred = saved.Lease.Subnets // After a reboot there is no subnet file.
	}
	p = prepared{
		text: c.text, seen: c.seen, config: cfg, options: opts, self: at.self, saved: saved, unclaimed: alone, listing: c.listing, listedAt: c.listedAt, lookedAt: time.Now(),
		living: at.living(subnet.Living{Node: n.opts.Name}), request: req,
	}
	over, err := n.checkHost(ctx, &p)
	if err == nil {
		p.goOnWith(over, n)
	}
	return p, err
}

func (n *Node) underlay(ctx context.Context, families []subnet.Family) (choice subnet.PerFamily[underlay.Choice], err error) {
	var seen underlay.Host
	lack, there := "", ""
	err = n.until(ctx, "underlay", nil, func() error {
		if seen, err = n.sight.look(ctx); err != nil {
			return err
		}
		if choice, err = underlay.Choose(n.opts.Underlay, families, seen); err == nil {
			return nil
		}
		if why := err.Error(); why != lack { // Else the line would be another with each pod that comes or goes.
			lack, there = why, underlay.List(seen.Interfaces)
		}
		return fmt.Errorf("%w: there are %s", err, there)
	})
	if err != nil {
		return choice, err
	}
	for _, f := range families {
		c := choice[f]
		n.log.Info("underlay chosen", append(choiceFields(f, c), zap.String("candidates", underlay.List(seen.Interfaces)))...)
		if c.Trouble != "" {
			n.log.Warn("underlay does not serve", zap.Stringer("family", f), zap.String("reason", c.Trouble))
		}
	}
	return choice, nil
}

// serve holds the lease and keeps the kernel as the store wants it.
func (n *Node) serve(ctx context.Context, p prepared, lease subnet.Lease) error {
	n.serving.Store(true)
	if err := n.takeOver(ctx, &p); err != nil {
		return err
	}
	at, _ := n.place.now()
	at.self.Subnets = lease.Subnets
	p.self = at.self
	n.place.set(at)
	_, elsewhere := n.place.now()
	planner := p.options.Planner(p.self)
	own, err := planner.Own()
	if err != nil {
		return err
	}
	if p.options.Means().Carries() {
		if err := n.settings.Set(ctx); err != nil {
			return err
		}
	}
	loop := converge.New(n.kernel, n.log)
	loop.AuditEvery(cmp.Or(n.opts.AuditEvery, DefaultAuditEvery))
	// A backend by which no packet of a pod's is carried changes nothing on the host.
	filter := n.firewall
	if !p.options.Means().Carries() {
		filter = noFirewall{}
	}
	beginFirewall(filter, p.config, at, own, p.flannels)
	follower := newFollower(p, planner, loop, own, n.opts.PeerGrace, n.log)
	follower.storeAway = n.storeAway
	follower.firewall, follower.movedGrace = filter, n.movedGrace
	keeper := newKeeper(n.opts.StateDir, n.log, p.saved, snapshot{Node: n.opts.Name, Config: p.text, Lease: lease}, follower.save)
	follower.changed, follower.settled = keeper.changed, keeper.settled
	var standsIn *snapshot
	if p.unclaimed {
		follower.begin()
		standsIn = p.saved
	}
	n.view.serves(p, lease, loop, follower, standsIn)

	probing := n.newProbing(p, follower)
	// What the others note as they end is saved, too: a lease that was just written, a
	// peer that was just heard of.
	keeping, othersEnded := context.WithCancel(context.WithoutCancel(ctx))
	defer othersEnded()
	kept := make(chan struct{})
	group, ctx := errgroup.WithContext(ctx)
	go func() {
		select {
		case <-ctx.Done():
		case <-n.ready: // A start among many peers has more urgent things to do.
		}
		defer close(kept)
		keeper.run(keeping)
	}()
	filtered := runFirewall(ctx, filter, group)
	group.Go(func() error { return loop.Run(ctx) })
	if p.options.Means().Carries() {
		group.Go(func() error { return n.settings.Keep(ctx) })
	}
	group.Go(func() error { return n.store.Watch(ctx, follower.follow) })
	group.Go(func() error { return follower.graces(ctx) })
	group.Go(func() error { return n.hold(ctx, p, lease, keeper, follower, elsewhere) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-loop.Converged():
		}
		select {
		case <-ctx.Done():
			return nil
		case <-filtered:
		}
		mtu, err := n.announce(p.config, lease)
		if err != nil {
			return err
		}
		n.readyAt = time.Now()
		close(n.ready)
		n.Status() // Peers that ask are told of the last look: not of one before.
		return n.keepSubnetFile(ctx, p.config, lease, mtu)
	})
	group.Go(func() error { return n.file.keep(ctx) })
	group.Go(func() error { return n.file.hear(ctx) })
	group.Go(func() error { return n.followUnderlay(ctx, p, follower) })
	group.Go(func() error { return probing.run(ctx, n.ready) })
	err = group.Wait()
	othersEnded()
	<-kept
	return err
}
