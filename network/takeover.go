package network

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/subnet"
)

// records are what is known of the nodes' records by which a node may go on with what
// flannel, or its own earlier life, had for it: those of the store, or where the node
// comes up without it the one that was saved.
func (n *Node) records(ctx context.Context, p *prepared) (host.Records, error) {
	if p.unclaimed && p.saved != nil {
		return host.Records{Own: p.saved.Lease}, nil
	}
	if p.recent() == nil {
		seen, err := n.store.List(ctx)
		if err != nil {
			return host.Records{}, err
		}
		p.listing, p.listedAt = &seen, time.Now()
	}
	own, _ := p.request.Record(p.config, *p.listing)
	return host.Records{Own: own, All: p.listing.Leases}, nil
}

// goOnWith makes the node's own devices those that it goes on with, and so its record
// one of their MACs. It comes before the claim.
func (p *prepared) goOnWith(over host.Takeover, n *Node) {
	at, _ := n.place.now()
	for f, d := range over.Devices {
		at.self.Devices[f] = plan.Device{Name: d.Name, MAC: d.MAC}
	}
	at.publish(p.config, p.options)
	n.place.set(at)
	p.over, p.self, p.request = over, at.self, at.request(p.request)
}

// takeOver makes flannel's devices ours, once the lease is the node's. It changes
// nothing by which packets are carried; that is the loop's, for which they are a host
// like any other from here on. The claim may have taken long, so the host is looked at
// again.
func (n *Node) takeOver(ctx context.Context, p *prepared) error {
	was, err := wasFlannels(n.opts.RunDir)
	if err != nil {
		return err
	}
	p.flannels = was || p.over.Adopts()
	if len(p.over.New)+len(p.over.Routes) == 0 {
		return nil
	}
	again, err := n.checkHost(ctx, p)
	p.listing = nil
	if err != nil {
		return err
	}
	if again.Devices != p.over.Devices {
		return errors.New("flannel's devices changed while this node claimed its lease: start it again")
	}
	for _, name := range again.New {
		if err := n.host.Adopt(ctx, name); err != nil {
			return err
		}
	}
	// A route that is ours does not tell whose it was, as a device's mark does. So it is
	// noted first, or who is killed right after would leave flannel's rules for ever.
	if len(again.Routes) > 0 && !was {
		if err := noteFlannels(n.opts.RunDir); err != nil {
			return err
		}
	}
	if err := n.host.TakeRoutes(ctx, again.Routes); err != nil {
		return err
	}
	if len(again.Routes) > 0 {
		n.log.Info("flannel's direct routes are this node's from now on", zap.Int("routes", len(again.Routes)))
	}
	for _, f := range subnet.Families {
		if d := again.Devices[f]; d.Name != "" {
			n.log.Info("flannel's device is this node's from now on, with its MAC, its subnet and what leads out of it",
				zap.String("device", d.Name), zap.Stringer("mac", d.MAC), zap.Stringer("family", f))
		}
	}
	return nil
}
