package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/subnet"
)

// Ground is what a network is to be on.
type Ground interface {
	// CanTunnel tells what is missing for a tunnel.
	CanTunnel(ctx context.Context) error
	// Survey tells what the host has of its own that may be in the way of a network
	// of the given address spaces.
	Survey(ctx context.Context, networks []netip.Prefix) (backend.Survey, error)
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
}

// UseSettings gives the node the host's settings to see to. Without them it
// changes none. It comes before Run.
func (n *Node) UseSettings(s Settings) { n.settings = s }

// noSettings are as they are.
type noSettings struct{}

func (noSettings) Check(context.Context, host.Needs) ([]string, error) { return nil, nil }
func (noSettings) Set(context.Context) error                           { return nil }
func (noSettings) Move(subnet.PerFamily[string])                       {}

func (noSettings) Keep(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// checkHost finds what stands in the network's way, before anything is changed.
// What an operator can do away with under a running daemon is waited for; a network
// that overlaps the host's own is refused. A backend that carries no packets needs
// nothing of the host.
func (n *Node) checkHost(ctx context.Context, p prepared) error {
	means := p.options.Means()
	if !means.Carries() {
		return nil
	}
	network := host.Network{VNI: means.VNI, Port: means.Port, Own: p.ownSubnets()}
	needs := host.Needs{Families: p.config.Families(), Direct: means.Direct}
	var ranges []netip.Prefix
	for _, f := range needs.Families {
		network.Ranges[f], network.Lengths[f] = p.config.Ranges[f].Network, p.config.Ranges[f].SubnetLen
		needs.Underlay[f] = p.self.Underlay[f].Interface
		ranges = append(ranges, network.Ranges[f])
	}
	var notes []string
	err := n.until(ctx, "host", nil, func() error {
		if means.Tunnels() {
			if err := n.host.CanTunnel(ctx); err != nil {
				return final(err)
			}
		}
		survey, err := n.host.Survey(ctx, ranges)
		if err != nil {
			return fmt.Errorf("look at the host: %w", err)
		}
		if notes, err = host.Obstacles(network, survey); errors.Is(err, host.ErrOverlap) {
			return final(err)
		} else if err != nil {
			return err
		}
		more, err := n.settings.Check(ctx, needs)
		notes = append(notes, more...)
		return err
	})
	for _, note := range notes {
		n.log.Warn("host has what may be in the way", zap.String("what", note))
	}
	return err
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
