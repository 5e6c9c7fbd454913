package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/probe"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// around is what echo and prober know of the node and its peers.
type around struct {
	n        *Node
	follower *follower
	// tunnels tells whether there is a device with the subnet's address.
	tunnels bool
}

// Own implements probe.Here.
func (a around) Own(l probe.Layer, f subnet.Family) netip.Addr {
	at, _ := a.n.place.now()
	switch {
	case l == probe.Underlay:
		return at.self.Underlay[f].Addr
	case !a.tunnels || !at.self.Subnets[f].IsValid():
		return netip.Addr{}
	}
	return at.self.Subnets[f].Addr()
}

// Peer implements probe.Here.
func (a around) Peer(l probe.Layer, from netip.Addr) (subnet.Lease, bool) {
	a.follower.mu.Lock()
	defer a.follower.mu.Unlock()
	if l == probe.Underlay {
		return a.follower.mirror.ByPublic(from)
	}
	return a.follower.mirror.ByBase(from)
}

// Bound implements probe.Peers.
func (a around) Bound() int {
	a.follower.mu.Lock()
	defer a.follower.mu.Unlock()
	return a.follower.mirror.Bound()
}

// At implements probe.Peers.
func (a around) At(n int) (subnet.Lease, bool) {
	a.follower.mu.Lock()
	defer a.follower.mu.Unlock()
	return a.follower.mirror.At(n)
}

// Obstacle implements probe.Peers. A filter by the way back drops packets without a
// trace but in a counter of the kernel's, and before any rule sees them.
func (a around) Obstacle(ctx context.Context, peer subnet.Lease, f subnet.Family) string {
	at, _ := a.n.place.now()
	by, to := at.choice[f].Interface, peer.Endpoints[f].PublicIP
	if f != subnet.V4 || by == "" || !to.IsValid() || !a.n.settings.Strict(by) {
		return "" // IPv6 has no such filter.
	}
	way, err := a.n.host.Way(ctx, to)
	if err != nil || way.Interface == "" || way.Interface == by {
		return ""
	}
	return fmt.Sprintf("what comes from it by %s is dropped, for this host's way to it is by %s and rp_filter is strict: lead it out by %s, or: %s", by, way.Interface, by, host.Loosen(by))
}

// Trouble implements probe.Here. It is as old as the last look at the node's status.
func (a around) Trouble() probe.Trouble { return probe.Trouble(a.n.trouble.Load()) }

// troubleOf is what a status tells peers that ask.
func troubleOf(s status.Status) (t probe.Trouble) {
	for i, c := range s.Conditions {
		if !c.OK {
			t |= probe.Condition(i)
		}
	}
	for _, r := range s.Firewall.Findings {
		if r.Certain {
			t |= probe.InTheWay
		}
	}
	return t
}

// echoPort is where peers are answered, 0 for nowhere. A backend that carries no
// packets has nobody to answer.
func (n *Node) echoPort(opts plan.Options) uint16 {
	if !opts.Means().Carries() {
		return 0
	}
	return n.opts.EchoPort
}

// checkEchoPort tells why peers cannot be answered at a port: it is the tunnel's.
func checkEchoPort(port uint16, means plan.Means) error {
	if port != 0 && port == means.Port {
		return fmt.Errorf("--echo-port: UDP port %d is the tunnel's by the network config", port)
	}
	return nil
}

// probing is the node's part in it; what is nil is not done.
type probing struct {
	echo   *probe.Echo
	prober *probe.Prober
}

// newProbing makes the parts that the operator wants.
func (n *Node) newProbing(p prepared, f *follower) (out probing) {
	if !p.options.Means().Carries() {
		return out
	}
	here := around{n: n, follower: f, tunnels: p.options.Means().Tunnels()}
	if n.opts.EchoPort != 0 {
		out.echo = probe.NewEcho(n.opts.EchoPort, p.config.Families(), here, n.log)
	}
	if n.opts.ProbeInterval != 0 {
		out.prober = probe.NewProber(n.opts.ProbeInterval, p.config.Families(), here, here, n.log)
	}
	n.view.probes(out)
	return out
}

// run answers peers, and asks them once the node is ready, until ctx ends.
func (p probing) run(ctx context.Context, ready <-chan struct{}) error {
	group, ctx := errgroup.WithContext(ctx)
	if p.echo != nil {
		group.Go(func() error { return p.echo.Run(ctx) })
	}
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-ready:
		}
		if p.prober == nil {
			return nil
		}
		return p.prober.Run(ctx)
	})
	return group.Wait()
}

// status tells how it goes.
func (p probing) status() (s status.Probing) {
	if p.prober != nil {
		s = p.prober.Report()
	}
	if p.echo != nil {
		e := p.echo.Report()
		s.Port, s.Answered, s.Ignored, s.Problem = e.Port, e.Answered, e.Ignored, strings.Join(slices.DeleteFunc(e.Problem[:], func(t string) bool { return t == "" }), "; ")
	}
	return s
}
