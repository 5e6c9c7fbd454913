package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/network/converge"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/network/underlay"
	"github.com/ripstop-net/ripstop/subnet"
)

// view is what a node's parts tell of themselves as they go, so that a status
// can be given at any time and asks none of them.
type view struct {
	mu      sync.Mutex
	started time.Time
	// waiting has what is waited for, one thing or several at once, the oldest first.
	waiting  []status.Waiting
	underlay []status.Underlay
	moves    uint64
	// fileProblem says why the subnet file is not what it should be, "" if it is.
	fileProblem string
	lease       status.Lease
	leaseID     int64 // The store's own.
	store       status.Store
	peers       status.Peers
	// The rest is set when the node begins to serve.
	up       bool
	planner  plan.Planner
	options  plan.Options
	config   subnet.Config
	loop     *converge.Loop
	follower *follower
	probing  probing
}

// waits notes what is waited for, and goesOn that it no longer is.
func (v *view) waits(what string, why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range v.waiting {
		if w := &v.waiting[i]; w.For == what {
			w.Reason = why.Error()
			return
		}
	}
	v.waiting = append(v.waiting, status.Waiting{For: what, Reason: why.Error(), Since: time.Now()})
}

func (v *view) goesOn(what string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting = slices.DeleteFunc(v.waiting, func(w status.Waiting) bool { return w.For == what })
}

// longestWaited is what a status names, nil for nothing. It is for the holder of mu.
func (v *view) longestWaited() *status.Waiting {
	if len(v.waiting) == 0 {
		return nil
	}
	first := v.waiting[0]
	return &first
}

// chose notes the underlay.
func (v *view) chose(families []subnet.Family, choice subnet.PerFamily[underlay.Choice]) {
	v.heads(families, choice, subnet.PerFamily[string]{})
}

// heads is chose where the underlay is to be another, next.
func (v *view) heads(families []subnet.Family, choice subnet.PerFamily[underlay.Choice], next subnet.PerFamily[string]) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.underlay = nil
	for _, f := range families {
		c := choice[f]
		v.underlay = append(v.underlay, status.Underlay{
			Family: f.String(), Interface: c.Interface, Address: c.Local, Public: c.Public, MTU: c.MTU, Reason: c.Reason, Problem: c.Trouble, Next: next[f],
		})
	}
}

// moved notes that the underlay is another, and what is planned by that.
func (v *view) moved(planner plan.Planner, families []subnet.Family, choice subnet.PerFamily[underlay.Choice]) {
	v.chose(families, choice)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.planner = planner
	v.moves++
}

// fileFailed notes what became of writing the subnet file, and tells whether that
// is news.
func (v *view) fileFailed(err error) (news bool) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	news, v.fileProblem = text != v.fileProblem, text
	return news
}

// serves notes the parts that serve. saved, where not nil, is what stands in for
// the store.
func (v *view) serves(p prepared, l subnet.Lease, loop *converge.Loop, f *follower, saved *snapshot) {
	v.mu.Lock()
	v.up, v.planner, v.options, v.config, v.loop, v.follower = true, f.planner, p.options, p.config, loop, f
	v.lease.Subnets = prefixes(l.Subnets)
	v.lease.Reservation = l.Reservation()
	if saved != nil {
		v.leaseID, v.lease.Held, v.lease.Expires, v.store.Saved = l.ID, true, saved.Expires, true
	}
	v.mu.Unlock()
	v.count()
}

// probes notes how peers are asked and answered.
func (v *view) probes(p probing) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.probing = p
}

func prefixes(s subnet.Subnets) []netip.Prefix {
	out := []netip.Prefix{}
	for _, p := range s {
		if p.IsValid() {
			out = append(out, p)
		}
	}
	return out
}

// mostRecords bounds the records that a status names.
const mostRecords = 10

// count reads the follower's numbers.
func (v *view) count() {
	v.mu.Lock()
	f := v.follower
	v.mu.Unlock()
	if f == nil {
		return
	}
	peers, revision, epoch := f.numbers()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.peers, v.store.Revision, v.store.Epoch = peers, revision, epoch
}

// observed is a store whose news the view hears too.
type observed struct {
	subnet.Store
	view *view
}

// Hold implements subnet.Store.
func (o observed) Hold(ctx context.Context, l subnet.Lease, alive func(until time.Time)) error {
	v := o.view
	v.mu.Lock()
	if l.ID != v.leaseID { // Nothing is known yet of how long this one lasts.
		v.leaseID, v.lease.Expires = l.ID, time.Time{}
	}
	v.lease.Held, v.lease.Problem, v.lease.Reservation = true, "", l.Reservation()
	v.mu.Unlock()
	return o.Store.Hold(ctx, l, func(until time.Time) {
		v.mu.Lock()
		v.lease.Renewed, v.lease.Expires = time.Now(), until
		v.lease.Renewals++
		v.mu.Unlock()
		if alive != nil {
			alive(until)
		}
	})
}

// lost notes that the lease is.
func (v *view) lost(why error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lease.Held, v.lease.Problem = false, why.Error()
	v.lease.Losses++
}

// Watch implements subnet.Store.
func (o observed) Watch(ctx context.Context, to func(subnet.Change)) error {
	return o.Store.Watch(ctx, func(c subnet.Change) {
		to(c)
		o.view.heard(c)
		if !c.More {
			o.view.count()
		}
	})
}

// heard notes that the store has said something.
func (v *view) heard(c subnet.Change) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := &v.store
	s.Heard, s.Saved = time.Now(), false
	switch {
	case c.Whole:
		s.Listings++
	case !c.Empty():
		s.Changes++
	}
	if c.ConfigSet {
		s.Config = configNote(c.Config, v.config, v.options)
	}
}

// configNote says how the config in the store differs from the one in use.
func configNote(text []byte, used subnet.Config, opts plan.Options) string {
	if text == nil {
		return "the network config was deleted from the store: write it again with 'ripstop config set'"
	}
	c, err := parseConfig(text)
	switch {
	case err != nil:
		return fmt.Sprintf("the network config in the store cannot be used: %v: mend it with 'ripstop config set'", err)
	case c.config != used || c.options != opts:
		return "the network config in the store was changed: it takes effect when this daemon is restarted"
	}
	return ""
}

// storeSilence is longer than a store that is there ever says nothing: it gives
// a sign about each half minute.
const storeSilence = 90 * time.Second

// storeState judges how far the copy of the store is to be trusted.
func storeState(s status.Store, now time.Time, away bool) status.StoreState {
	switch {
	case s.Heard.IsZero() && !s.Saved:
		return status.Unread
	case away || s.Heard.IsZero():
		return status.Stale
	case now.Sub(s.Heard) > storeSilence:
		return status.Silent
	}
	return status.Current
}

// links are the underlay's interfaces.
func (v *view) links() []status.Underlay {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.underlay)
}
