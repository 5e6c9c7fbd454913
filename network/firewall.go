package network

import (
	"context"
	"net/netip"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// Firewall keeps the host's packet filter as the node needs it.
type Firewall interface {
	// Begin says what network it is for: the pods' address spaces, the node's own
	// part of them, the names of the VXLAN devices, the addresses of this host that
	// peers may send to, the tunnel's VNI and port, and whether the node was
	// flannel's, whose rules go once ours stand. It comes before all else, and again
	// where something of it is another.
	Begin(ranges, own subnet.Subnets, devices subnet.PerFamily[string], at subnet.PerFamily[[]netip.Addr], vni uint32, port uint16, flannels bool)
	// Update changes which public addresses are peers'. The first one brings all
	// that are known. When it returns, those that came may pass, or it would have
	// taken too long, and they may in a moment.
	Update(release, owe []netip.Addr)
	// SetCareful tells whether peers may be missing among those that are known.
	SetCareful(careful bool)
	// Run keeps the rules until ctx ends, which returns nil and leaves them as
	// they are. It calls tried once, after the first attempt.
	Run(ctx context.Context, tried func()) error
	// Report tells how the rules are, at once. It may be asked before Begin.
	Report(ctx context.Context) status.Firewall
}

// UseFirewall gives the node a firewall. Without one it keeps no rules. It comes
// before Run.
func (n *Node) UseFirewall(f Firewall) { n.firewall = f }

// noFirewall keeps no rules.
type noFirewall struct{}

func (noFirewall) Begin(subnet.Subnets, subnet.Subnets, subnet.PerFamily[string], subnet.PerFamily[[]netip.Addr], uint32, uint16, bool) {
}
func (noFirewall) Update([]netip.Addr, []netip.Addr) {}
func (noFirewall) SetCareful(bool)                   {}

func (noFirewall) Run(ctx context.Context, tried func()) error {
	tried()
	<-ctx.Done()
	return nil
}

func (noFirewall) Report(context.Context) status.Firewall { return status.Firewall{} }

// beginFirewall says what is known of the network once there is a lease, and where
// the node is. A backend without a device has no tunnel to guard.
func beginFirewall(filter Firewall, config subnet.Config, at site, own []backend.Entry, flannels bool) {
	var ranges subnet.Subnets
	var here subnet.PerFamily[[]netip.Addr]
	for _, f := range config.Families() {
		ranges[f] = config.Ranges[f].Network
		here[f] = append(here[f], at.self.Underlay[f].Addr)
		if a := at.public[f]; a != here[f][0] { // Another interface may have it.
			here[f] = append(here[f], a)
		}
	}
	var devices subnet.PerFamily[string]
	var vni uint32
	var port uint16
	for _, e := range own {
		if d, ok := e.(backend.Device); ok {
			devices[subnet.FamilyOf(d.Local)], vni, port = d.Name, d.VNI, d.Port
		}
	}
	filter.Begin(ranges, at.self.Subnets, devices, here, vni, port, flannels)
}

// runFirewall runs the firewall and returns a channel that is closed after its
// first attempt.
func runFirewall(ctx context.Context, filter Firewall, group interface{ Go(func() error) }) <-chan struct{} {
	tried := make(chan struct{})
	group.Go(func() error { return filter.Run(ctx, func() { close(tried) }) })
	return tried
}

// publicAddresses are where a peer sends from, as far as this node has the
// family.
func publicAddresses(own subnet.Subnets, l subnet.Lease) []netip.Addr {
	var out []netip.Addr
	for _, f := range subnet.Families {
		if a := l.Endpoints[f].PublicIP; a.IsValid() && own[f].IsValid() {
			out = append(out, a)
		}
	}
	return out
}
