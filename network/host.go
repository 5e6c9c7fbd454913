package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// Ground is what a network is to be on.
type Ground interface {
	// CanTunnel tells what is missing for a tunnel.
	CanTunnel(ctx context.Context) error
	// Survey tells what the host has of its own that may be in the way of a network
	// of the given address spaces.
	Survey(ctx context.Context, networks []netip.Prefix) (backend.Survey, error)
	// Adopt makes another's VXLAN device ours, as it is.
	Adopt(ctx context.Context, device string) error
	// TakeRoutes makes another's routes over the host's links ours to replace.
	TakeRoutes(ctx context.Context, routes []backend.HostRoute) error
}

// Settings sees to those settings of the host without which pods cannot talk.
type Settings interface {
	// Check tells why they cannot be made what is needed, and of what may be in the
	// way one day. It changes nothing, and comes first.
	Check(ctx context.Context, needs host.Needs) (notes []string, err error)
	// Set makes them what is needed.
	Set(ctx context.Context) error
	// Move says by which interfaces packets leave the host from now on. It does not
	// wait.
	Move(underlay subnet.PerFamily[string])
	// Keep puts them back where somebody changes them, until ctx ends, which
	// returns nil.
	Keep(ctx context.Context) error
	// Strict tells whether an interface drops packets to whose sender the way is by
	// another.
	Strict(link string) bool
	// Report tells what is kept and how it stands, at once. It may be asked at any time.
	Report() status.Host
}

// UseSettings gives the node the host's settings to see to. Without them it
// changes none. It comes before Run.
func (n *Node) UseSettings(s Settings) { n.settings = s }

// noSettings are as they are.
type noSettings struct{}

func (noSettings) Check(context.Context, host.Needs) ([]string, error) { return nil, nil }
func (noSettings) Set(context.Context) error                           { return nil }
func (noSettings) Strict(string) bool                                  { return false }
func (noSettings) Move(subnet.PerFamily[string])                       {}
func (noSettings) Report() status.Host                                 { return status.Host{} }

func (noSettings) Keep(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// checkHost finds what stands in the network's way, before anything is changed.
// What an operator can do away with under a running daemon is waited for; a network
// that overlaps the host's own is refused. A backend that carries no packets needs
// nothing of the host. It returns what the node goes on with of flannel's.
func (n *Node) checkHost(ctx context.Context, p *prepared) (over host.Takeover, err error) {
	means := p.options.Means()
	if !means.Carries() {
		return over, nil
	}
	network := host.Network{VNI: means.VNI, Port: means.Port, Own: p.ownSubnets()}
	needs := host.Needs{Families: p.config.Families(), Direct: means.Direct}
	var ranges []netip.Prefix
	for _, f := range needs.Families {
		network.Ranges[f], network.Lengths[f] = p.config.Ranges[f].Network, p.config.Ranges[f].SubnetLen
		needs.Underlay[f] = p.self.Underlay[f].Interface
		ranges = append(ranges, network.Ranges[f])
	}
	needs.Networks = ranges
	var notes []string
	err = n.until(ctx, "host", nil, func() error {
		if means.Tunnels() {
			if err := n.host.CanTunnel(ctx); err != nil {
				return final(err)
			}
		}
		survey, err := n.host.Survey(ctx, ranges)
		if err != nil {
			return fmt.Errorf("look at the host: %w", err)
		}
		records, err := n.records(ctx, p)
		if err != nil {
			return err
		}
		over = host.TakeOver(network, survey, records)
		if notes, err = host.Obstacles(network, survey, over); errors.Is(err, host.ErrOverlap) {
			return final(err)
		} else if err != nil {
			return err
		}
		more, err := n.settings.Check(ctx, needs)
		notes = append(notes, more...)
		return err
	})
	for _, note := range notes {
		if slices.Contains(p.noted, note) {
			continue // A host that is taken over is looked at twice.
		}
		p.noted = append(p.noted, note)
		n.log.Warn("host has what may be in the way", zap.String("what", note))
	}
	return over, err
}

// ownSubnets are those that the node has, or had before its start.
func (p *prepared) ownSubnets() []subnet.Subnets {
	own := []subnet.Subnets{p.request.Previous, p.request.Preferred}
	if p.listing != nil {
		for _, l := range p.listing.Leases {
			if p.request.Self.Owns(l) {
				own = append(own, l.Subnets)
			}
		}
	}
	return own
}
