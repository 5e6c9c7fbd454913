package network

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/network/underlay"
	"github.com/ripstop-net/ripstop/subnet"
)

// site is where a node is on the underlay, and what follows from that. It is a
// value: where the underlay becomes another, another site takes its place.
type site struct {
	choice subnet.PerFamily[underlay.Choice]
	self   plan.Self
	public subnet.PerFamily[netip.Addr]
	// endpoints and mtu, in bytes, are what the node publishes.
	endpoints subnet.PerFamily[subnet.Endpoint]
	mtu       int
	// between tells that the public addresses are where the node is to be: peers are
	// told of them before the device is there.
	between bool
}

// newSite places a node, of which self says all but the underlay. Its error says why
// it cannot be there.
func newSite(self plan.Self, cfg subnet.Config, opts plan.Options, choice subnet.PerFamily[underlay.Choice]) (site, error) {
	s := site{choice: choice, self: self}
	s.self.Underlay = subnet.PerFamily[plan.Underlay]{}
	for _, f := range cfg.Families() {
		c := choice[f]
		if err := cfg.CheckPublic(f, c.Public); err != nil {
			return s, fmt.Errorf("interface %s: %w: no peer could send to it; choose another with --iface or --public-ip, or another network", c.Interface, err)
		}
		s.self.Underlay[f] = plan.Underlay{Interface: c.Interface, Addr: c.Local, MTU: c.MTU, OnLink: c.OnLink, Broadcasts: c.Broadcasts}
		s.public[f] = c.Public
	}
	s.publish(cfg, opts)
	var err error
	if s.mtu, err = opts.Planner(s.self).MTU(); err != nil {
		return s, err
	}
	return s, nil
}

// publish says where the node's tunnel ends.
func (s *site) publish(cfg subnet.Config, opts plan.Options) {
	s.endpoints = opts.Endpoints(s.self, s.public)
	for _, f := range cfg.Families() {
		s.endpoints[f].Translated = s.choice[f].Translated
	}
}

// same tells whether a node at either site is where it is at the other.
func (s site) same(o site, cfg subnet.Config) bool {
	for _, f := range cfg.Families() {
		if !s.choice[f].Same(o.choice[f]) {
			return false
		}
	}
	return true
}

// heeded is a choice without what the backend does not go by: who is on the link counts
// for direct routes alone, and changes with every pod where pods are of the link's prefix.
func heeded(c underlay.Choice, opts plan.Options) underlay.Choice {
	if !opts.Means().Direct {
		c.OnLink, c.Broadcasts = nil, nil
	}
	return c
}

// request and living are those of a node that is at the site.
func (s site) request(r subnet.Request) subnet.Request {
	r.Self.PublicIP, r.Endpoints, r.MTU = s.public, s.endpoints, s.mtu
	return r
}

func (s site) living(l subnet.Living) subnet.Living {
	l.Addresses = s.public
	return l
}

// place holds the site of now for all who go by it.
type place struct {
	mu      sync.Mutex
	site    site
	changed chan struct{}
}

// set puts a site in place and wakes those who wait for one.
func (p *place) set(s site) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.site = s
	if p.changed != nil {
		close(p.changed)
	}
	p.changed = make(chan struct{})
}

// now returns the site, and a channel that is closed when it is another. There is
// one once the underlay has been chosen.
func (p *place) now() (s site, changed <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.site, p.changed
}
