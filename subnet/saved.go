package subnet

import (
	"iter"
	"slices"
	"time"
)

// Saved is a peer as it is kept across a restart.
type Saved struct {
	Lease Lease
	// Held says that its record was gone.
	Held bool
}

// SavedPeers are many of them, packed as the mirror has them. The zero value is
// none.
type SavedPeers struct {
	packed []packedLease
	held   map[leaseKey]struct{}
}

// Len is their number.
func (p *SavedPeers) Len() int { return len(p.packed) }

// Grow makes room for n more.
func (p *SavedPeers) Grow(n int) { p.packed = slices.Grow(p.packed, max(n, 0)) }

// Add adds one.
func (p *SavedPeers) Add(s Saved) {
	var packed packedLease
	packed.set(s.Lease)
	p.add(packed, s.Held)
}

func (p *SavedPeers) add(packed packedLease, held bool) {
	packed.own, packed.sound, packed.peer = false, false, false // That is for a mirror to judge.
	p.packed = append(p.packed, packed)
	if !held {
		return
	}
	if p.held == nil {
		p.held = map[leaseKey]struct{}{}
	}
	p.held[packed.key] = struct{}{}
}

// All visits them, in the order in which they were added.
func (p *SavedPeers) All() iter.Seq[Saved] {
	return func(yield func(Saved) bool) {
		for i := range p.packed {
			_, held := p.held[p.packed[i].key]
			if !yield(Saved{p.packed[i].lease(), held}) {
				return
			}
		}
	}
}

// Save gives all peers for [Mirror.Restore], in no order. It is a copy of what
// the mirror has, so that there is time to write it down.
func (m *Mirror) Save() (epoch string, revision int64, peers SavedPeers) {
	peers.packed = make([]packedLease, 0, m.peers)
	for _, l := range m.leases.all() {
		if !l.peer {
			continue
		}
		packed, s := *l, l.key.subnets()
		if m.isBad(s) {
			packed.modified = 0 // What was written then is not this.
		}
		peers.add(packed, m.held(s))
	}
	return m.epoch, m.revision, peers
}

// Restore fills an empty mirror with what another one saved. The store's first
// listing counts against it as any listing does; the grace of peers that are
// held begins with that.
func (m *Mirror) Restore(epoch string, revision int64, peers SavedPeers) {
	m.epoch, m.revision = epoch, revision
	touched := touched{}
	for p := range peers.All() {
		if p.Held && m.grace.length > 0 {
			m.grace.since[p.Lease.Subnets] = time.Time{}
		}
		m.set(p.Lease.Subnets, p.Lease, touched)
	}
	m.settle(touched)
}
