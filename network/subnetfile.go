package network

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/subnet"
)

// fileAgain is the pause after the subnet file could not be written.
const fileAgain = 5 * time.Second

// env is what the subnet file is to say at a site.
func (n *Node) env(cfg subnet.Config, lease subnet.Lease, at site) envfile.Env {
	env := envfile.Env{Subnets: lease.Subnets, MTU: at.mtu, IPMasq: n.opts.IPMasq}
	for _, f := range cfg.Families() {
		env.Networks[f] = cfg.Ranges[f].Network
	}
	return env
}

// announce writes the subnet file for the first time, and returns the MTU that it
// has.
func (n *Node) announce(cfg subnet.Config, lease subnet.Lease) (mtu int, err error) {
	at, _ := n.place.now()
	if err := n.file.write(n.env(cfg, lease, at)); err != nil {
		return 0, err
	}
	n.log.Info("ready", zap.Stringer("subnets", lease.Subnets), zap.Int("mtu", at.mtu), zap.String("subnet_file", n.opts.SubnetFile))
	return at.mtu, nil
}

// keepSubnetFile writes the file whenever the underlay gives pods another MTU than
// it has, until ctx ends. A failure is said once, shown, and tried again.
func (n *Node) keepSubnetFile(ctx context.Context, cfg subnet.Config, lease subnet.Lease, written int) error {
	for {
		at, changed := n.place.now()
		var again <-chan time.Time
		if at.mtu != written {
			err := n.file.write(n.env(cfg, lease, at))
			switch news := n.view.fileFailed(err); {
			case err == nil:
				written = at.mtu
				n.log.Info("subnet file has another MTU", zap.Int("mtu", at.mtu))
			case news:
				n.log.Error("subnet file not written: new pods get an MTU that is not the underlay's", zap.Int("mtu", at.mtu), zap.Error(err))
				fallthrough
			default:
				again = time.After(fileAgain)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-again:
		}
	}
}
