package network

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/underlay"
)

const (
	// lookupLimit bounds a look-up of the store's names, which is tried again after
	// lookupAgain.
	lookupLimit = time.Second
	lookupAgain = 30 * time.Second
	// mostTargets bounds the store's addresses that are heeded.
	mostTargets = 16
)

// sight sees what there is to choose the underlay from.
type sight struct {
	host Host
	wish underlay.Wish
	// lookup gives the store's addresses; it is nil where they do not matter.
	lookup func(context.Context) ([]netip.Addr, error)

	mu sync.Mutex
	// store are the addresses as far as they are known; due is when to look them
	// up again, if not all are.
	store    []netip.Addr
	complete bool
	due      time.Time
}

func newSight(host Host, wish underlay.Wish, lookup func(context.Context) ([]netip.Addr, error)) *sight {
	if !wish.ByStore() {
		lookup = nil
	}
	return &sight{host: host, wish: wish, lookup: lookup}
}

// look reads the host.
func (s *sight) look(ctx context.Context) (underlay.Host, error) {
	interfaces, err := s.host.Interfaces(ctx)
	if err != nil {
		return underlay.Host{}, fmt.Errorf("list interfaces: %w", err)
	}
	seen := underlay.Host{Interfaces: interfaces, Store: s.addresses(ctx), Ways: map[netip.Addr]backend.Way{}}
	for _, to := range s.wish.Targets(seen.Store) {
		if seen.Ways[to], err = s.host.Way(ctx, to); err != nil {
			return underlay.Host{}, err
		}
	}
	return seen, nil
}

// addresses are the store's. A name's are looked up once: which of them the
// resolver names first is no reason to move.
func (s *sight) addresses(ctx context.Context) []netip.Addr {
	s.mu.Lock()
	known, due := s.store, s.lookup != nil && !s.complete && !time.Now().Before(s.due)
	s.mu.Unlock()
	if !due {
		return known
	}
	ctx, cancel := context.WithTimeout(ctx, lookupLimit)
	defer cancel()
	found, err := s.lookup(ctx) // Without the lock: who reads the kernel's news asks leads meanwhile.
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store, s.complete, s.due = found[:min(len(found), mostTargets)], err == nil, time.Now().Add(lookupAgain)
	return s.store
}

// partly tells whether names of the store's are yet to be looked up.
func (s *sight) partly() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lookup != nil && !s.complete
}

// leads tells whether the choice may depend on a route to a prefix.
func (s *sight) leads(to netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.wish.Targets(s.store) {
		if to.Contains(a) {
			return true
		}
	}
	return false
}
