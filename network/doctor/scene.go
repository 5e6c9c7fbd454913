package doctor

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/planners"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/rundir"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// Scene is what is known of the node before anything is judged: who it is, what the
// store and the daemon say, where it is on the underlay.
type Scene struct {
	At     time.Time
	Setup  Setup
	Status *status.Status // nil where the daemon does not answer.
	// StatusErr says why.
	StatusErr error
	// Hangs tells that there is a daemon, which does not answer.
	Hangs    bool
	Listing  *subnet.Listing // nil where the store does not answer.
	StoreErr error
	Saved    *Saved // nil where nothing is saved.
	SavedErr error
	// Source says what Config and the peers are from.
	Source string

	// Config is the one in use, ConfigErr why there is none.
	Config    subnet.Config
	Options   plan.Options
	ConfigErr error
	Node      string
	// Own is the node's lease; the zero Lease where it has none.
	Own        subnet.Lease
	Interfaces []backend.Interface
	// Sites are where the node is on the underlay.
	Sites subnet.PerFamily[Site]
	// Over is what the node goes on with of flannel's, or of its own earlier life.
	Over host.Takeover
	// Ended is when a daemon ended that was told to, the zero time where none was.
	Ended time.Time
	// Starts are those of daemons since one that had served was last told to end, the oldest first.
	Starts []rundir.Start
	// Elsewhere is the number of the daemon's process where that is in another network
	// namespace than whoever looks, else 0.
	Elsewhere int
	// have is what the kernel had when it was last read, differs what lasts of its
	// difference from what is wanted, once that was compared.
	once     sync.Mutex
	have     *backend.State
	compared bool
	differs  []backend.Op
	// mirror has the peers, nil where there is no config.
	mirror *subnet.Mirror
}

// Site is where a family's packets leave the host.
type Site struct {
	plan.Underlay
	// Public is the address at which peers send to it.
	Public netip.Addr
	// Problem says why it cannot be told, or why it does not serve.
	Problem string
}

// Times that the sources are given. The daemon's has room for a restart.
const (
	daemonLimit = 3 * time.Second
	daemonPause = 50 * time.Millisecond
	storeLimit  = 3 * time.Second
	// comingUp is for how long a daemon may be on its way.
	comingUp = 10 * time.Second
)

// Look gathers what there is to be known.
func Look(ctx context.Context, s Sources) (*Scene, error) {
	c := &Scene{At: time.Now(), Setup: s.Setup}
	c.askDaemon(ctx, s.Daemon)
	c.Starts, _ = rundir.Starts(s.Setup.RunDir) // What cannot be read tells nothing.
	if process, err := s.Daemon.Process(ctx); err == nil && elsewhere(process) {
		c.Elsewhere = process
	}
	c.Saved, c.SavedErr = s.Saved()
	c.Node = s.Setup.Node
	switch {
	case c.Status != nil:
		c.Node = c.Status.Node
	case c.Node == "" && c.Saved != nil:
		c.Node = c.Saved.Node
	}
	c.askStore(ctx, s.Store)
	if c.StoreErr != nil && c.Status != nil {
		// By now it may have noticed that the store is away.
		if now, err := s.Daemon.Status(ctx); err == nil {
			c.Status = &now
		}
	}
	c.readConfig()
	var err error
	if c.Interfaces, err = s.Host.Interfaces(ctx); err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	c.findOwn()
	c.findSites()
	c.readOver(ctx, s)
	c.readPeers()
	return c, nil
}

// elsewhere tells whether a process is in another network namespace. Where that cannot be
// seen, it is not.
func elsewhere(process int) bool {
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", process))
	ours, errOurs := os.Stat("/proc/self/ns/net")
	return process > 0 && err == nil && errOurs == nil && !os.SameFile(theirs, ours)
}

// askDaemon waits for one that is being restarted. One that was killed, of which the
// socket is left, is not waited for.
func (c *Scene) askDaemon(ctx context.Context, d Daemon) {
	socket := filepath.Join(c.Setup.RunDir, status.SocketName)
	ctx, cancel := context.WithTimeout(ctx, daemonLimit)
	defer cancel()
	for {
		now, err := d.Status(ctx)
		if err == nil {
			c.Status, c.StatusErr = &now, nil
			if now.Ready {
				return
			}
		} else if ctx.Err() == nil {
			c.Status, c.StatusErr = nil, err
			if _, killed := os.Lstat(socket); killed == nil && errors.Is(err, status.ErrNotRunning) {
				return
			}
			if info, err := os.Stat(c.Setup.RunDir); err == nil {
				c.Ended = info.ModTime() // The socket was in there.
			}
		} else if c.Status == nil && c.StatusErr == nil {
			c.Hangs = true
			c.StatusErr = errors.New("ripstopd does not answer at its socket: it is stopped (SIGSTOP), or the host is out of processor time")
		}
		timer := time.NewTimer(daemonPause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		c.At = time.Now()
	}
}

func (c *Scene) askStore(ctx context.Context, s Store) {
	if s == nil {
		c.StoreErr = errors.New("it is not known where the store is: give --etcd-endpoints")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeLimit)
	defer cancel()
	l, err := s.List(ctx)
	if err != nil {
		c.StoreErr = err
		return
	}
	c.Listing = &l
}

// readConfig finds the config that is in use: a daemon that runs goes on with the one
// that it started with, which it has saved.
func (c *Scene) readConfig() {
	text := []byte(nil)
	switch saved := c.Saved != nil && c.Saved.Node == c.Node; {
	case c.Listing != nil && c.Listing.Config != nil && (c.Status == nil || c.Status.Store.Config == "" || !saved):
		text = c.Listing.Config
	case saved:
		text = c.Saved.Config
	case c.Listing != nil:
		c.ConfigErr = errors.New("there is no network config in the store")
		return
	default:
		c.ConfigErr = errors.New("the store does not answer and nothing is saved")
		return
	}
	if c.Config, c.ConfigErr = subnet.ParseConfig(text); c.ConfigErr == nil {
		c.Options, c.ConfigErr = planners.Parse(c.Config.Backend)
	}
	if c.ConfigErr != nil && c.Saved != nil && c.Saved.Node == c.Node {
		if cfg, err := subnet.ParseConfig(c.Saved.Config); err == nil {
			if opts, err := planners.Parse(cfg.Backend); err == nil {
				c.Config, c.Options, c.ConfigErr = cfg, opts, nil
			}
		}
	}
}

// findOwn finds the node's lease: in the store, else as it was saved.
func (c *Scene) findOwn() {
	if c.Listing != nil {
		for _, l := range c.Listing.Leases {
			if l.Node == c.Node && l.Node != "" && (c.Own.Subnets == (subnet.Subnets{}) || c.inUse(l)) {
				c.Own = l
			}
		}
		return
	}
	if c.Saved != nil && c.Saved.Node == c.Node {
		c.Own = c.Saved.Lease
	}
}

// inUse tells whether the daemon has the lease's subnets.
func (c *Scene) inUse(l subnet.Lease) bool {
	if c.Status == nil {
		return false
	}
	return slices.ContainsFunc(c.Status.Lease.Subnets, func(p netip.Prefix) bool { return p == l.Subnets[subnet.FamilyOf(p.Addr())] })
}

// findSites goes by what the daemon says, else by the address in the node's record.
func (c *Scene) findSites() {
	for _, f := range c.Config.Families() {
		s := &c.Sites[f]
		s.Public = c.Own.Endpoints[f].PublicIP
		wanted := s.Public
		if c.Status != nil {
			for _, u := range c.Status.Underlay {
				if u.Family == f.String() {
					s.Interface, wanted, s.Public, s.Problem = u.Interface, u.Address, u.Public, u.Problem
				}
			}
		}
		if !wanted.IsValid() {
			s.Problem = "it is not known by which interface packets leave this host: there is no record of this node, and no daemon that says it"
			continue
		}
		s.Addr = wanted
		at := slices.IndexFunc(c.Interfaces, func(i backend.Interface) bool { return slices.Contains(i.Addresses, wanted) })
		if at < 0 && s.Interface != "" {
			at = slices.IndexFunc(c.Interfaces, func(i backend.Interface) bool { return i.Name == s.Interface })
		}
		if at < 0 {
			if s.Problem == "" {
				s.Problem = c.absent(wanted, s.Interface)
			}
			continue
		}
		i := c.Interfaces[at]
		s.Interface, s.MTU, s.OnLink = i.Name, i.MTU, ofFamily(i.OnLink, f)
		switch {
		case s.Problem != "":
		case !slices.Contains(i.Addresses, wanted):
			s.Problem = fmt.Sprintf("interface %s has not the address %s any more", i.Name, wanted)
		case !i.Up:
			s.Problem = fmt.Sprintf("interface %s is down or has no carrier", i.Name)
		}
	}
}

// absent says that no interface has an address.
func (c *Scene) absent(a netip.Addr, name string) string {
	var have []string
	for _, i := range c.Interfaces {
		have = append(have, i.Name)
	}
	text := fmt.Sprintf("no interface has the address %s", a)
	if name != "" {
		text = fmt.Sprintf("there is no interface %s, and none has the address %s", name, a)
	}
	return text + "; there are " + strings.Join(have, ", ")
}

func ofFamily(all []netip.Prefix, f subnet.Family) (out []netip.Prefix) {
	for _, p := range all {
		if subnet.FamilyOf(p.Addr()) == f {
			out = append(out, p)
		}
	}
	return out
}

// kernel is what the kernel has, as it was last read.
func (c *Scene) kernel(ctx context.Context, s Sources) (*backend.State, error) {
	c.once.Lock()
	defer c.once.Unlock()
	if c.have == nil {
		var err error
		if c.have, err = s.Kernel.Dump(ctx); err != nil {
			return nil, fmt.Errorf("read the kernel: %w", err)
		}
	}
	return c.have, nil
}

// Self is what a planner is to know of the node.
func (c *Scene) Self() plan.Self {
	self := plan.Self{Node: c.Node, Subnets: c.Own.Subnets, NoTxChecksum: c.Setup.TxChecksum.Without(c.Setup.Release)}
	for f, s := range c.Sites {
		if s.Addr.IsValid() {
			self.Underlay[f] = s.Underlay
		}
		self.Devices[f] = plan.Device{Name: c.Over.Devices[f].Name, MAC: c.Over.Devices[f].MAC}
	}
	return self
}

// readOver finds with which devices the node goes on. Where the host cannot be surveyed
// that is with its own.
func (c *Scene) readOver(ctx context.Context, s Sources) {
	if c.ConfigErr != nil {
		return
	}
	means := c.Options.Means()
	n := host.Network{VNI: means.VNI, Port: means.Port}
	for _, f := range c.Config.Families() {
		n.Ranges[f], n.Lengths[f] = c.Config.Ranges[f].Network, c.Config.Ranges[f].SubnetLen
	}
	survey, err := s.Host.Survey(ctx, nil)
	if err != nil {
		return
	}
	records := host.Records{Own: c.Own}
	if c.Listing != nil {
		records.All = c.Listing.Leases
	}
	c.Over = host.TakeOver(n, survey, records)
	if c.Status == nil {
		return
	}
	for _, d := range c.Status.Devices { // A daemon that runs knows, whatever its record says by now.
		if mac, err := subnet.ParseMAC(d.MAC); err == nil && d.Local.IsValid() {
			c.Over.Devices[subnet.FamilyOf(d.Local)].MAC = mac
		}
	}
}

// Planner is that of the node, nil where too little is known.
func (c *Scene) Planner() plan.Planner { return c.planner() }

// Peers are those that the node has, or is to have; none where too little is known.
func (c *Scene) Peers() iter.Seq[subnet.Lease] {
	if c.mirror == nil {
		return func(func(subnet.Lease) bool) {}
	}
	return c.mirror.All()
}

// planner is that of the node, nil where too little is known.
func (c *Scene) planner() plan.Planner {
	if c.ConfigErr != nil || c.Own.Subnets == (subnet.Subnets{}) {
		return nil
	}
	for _, f := range c.Config.Families() {
		if c.Sites[f].MTU == 0 {
			return nil
		}
	}
	return c.Options.Planner(c.Self())
}

// identity is by what the node's own records are known.
func (c *Scene) identity() subnet.Identity {
	id := subnet.Identity{Node: c.Node}
	for f, s := range c.Sites {
		id.PublicIP[f] = s.Public
	}
	return id
}

// readPeers makes the mirror of the store that the daemon has, or is to have.
func (c *Scene) readPeers() {
	if c.ConfigErr != nil {
		return
	}
	check := func(subnet.Lease) error { return nil }
	if p := c.planner(); p != nil {
		check = p.Check
	}
	m := subnet.NewMirror(c.Config, c.identity(), check)
	switch {
	case c.Listing != nil:
		m.Apply(c.At, c.Listing.Whole())
		c.Source = fmt.Sprintf("the store, revision %d", c.Listing.Revision)
	case c.Saved != nil && c.Saved.Node == c.Node:
		m.Restore(c.Saved.Epoch, c.Saved.Revision, c.Saved.Peers)
		c.Source = fmt.Sprintf("what was saved %s ago, of revision %d", c.At.Sub(c.Saved.Written).Truncate(time.Second), c.Saved.Revision)
	default:
		return
	}
	c.mirror = m
}

// peerAddresses are those that the guard is to let in.
func (c *Scene) peerAddresses() (out []netip.Addr) {
	if c.mirror == nil {
		return nil
	}
	for l := range c.mirror.All() {
		for _, f := range c.Config.Families() {
			if a := l.Endpoints[f].PublicIP; a.IsValid() && c.Own.Subnets[f].IsValid() {
				out = append(out, a)
			}
		}
	}
	return out
}

// startDaemon is the remedy for a daemon that is not there, or that hangs: one that
// systemd takes for running is not started by it.
func (c *Scene) startDaemon() []string {
	if c.Hangs {
		return []string{Command("systemctl restart ripstopd"), "Nothing is lost by it. Its log may say why it stands still:", Command("journalctl -u ripstopd -n 50")}
	}
	return []string{Command("systemctl start ripstopd"), "If it ends again, its log says why:", Command("journalctl -u ripstopd -n 50")}
}
