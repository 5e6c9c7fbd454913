package firewall

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
)

const (
	// auditEvery is the mean time between readings of what nobody announced.
	auditEvery = 5 * time.Minute
	// countEvery is how often the guard's count is read, and legacy iptables,
	// which announces nothing.
	countEvery = 30 * time.Second
	// shortestPause holds a pass back, so that a burst of events costs one.
	shortestPause = 5 * time.Millisecond
	// A failure is tried again after firstRetry, doubling to longestRetry.
	firstRetry   = 100 * time.Millisecond
	longestRetry = 30 * time.Second
	// Reading others' rules may take mostReading at once, and one part in
	// readShare of the time after that: hosts with many services change them
	// often.
	mostReading = time.Second
	readShare   = 20
)

// Run keeps the rules as they are wanted until ctx ends, which returns nil and
// leaves them as they are. tried is called once, after the first attempt to
// write them.
func (f *Firewall) Run(ctx context.Context, tried func()) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.listen(ctx) })
	group.Go(func() error { return f.loop(ctx, tried) })
	return group.Wait()
}

func (f *Firewall) loop(ctx context.Context, tried func()) error {
	audit, count := time.Now().Add(auditEvery/2+rand.N(auditEvery)), time.Now().Add(countEvery)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.kick:
		case <-timer.C:
		}
		now := time.Now()
		if !audit.After(now) {
			f.heard.all()
			audit = now.Add(auditEvery/2 + rand.N(auditEvery))
		}
		next := audit
		if f.take(ctx) != nil {
			return nil
		}
		if !count.After(now) {
			f.count(ctx)
			if f.settled {
				f.tell()
			}
			count = now.Add(countEvery)
		}
		next = earlier(earlier(next, count), f.pass(ctx, true))
		attempted := f.settled || f.tries > 0
		f.give()
		if attempted && tried != nil {
			tried()
			tried = nil
		}
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(shortestPause):
		}
	}
}

func earlier(a, b time.Time) time.Time {
	if b.IsZero() || (!a.IsZero() && a.Before(b)) {
		return a
	}
	return b
}

// pass makes the rules as they are wanted; look says whether others' may be read as
// well, of which there may be many. It is for the holder of the turn, and returns
// when to come back without being woken, zero for no such time.
func (f *Firewall) pass(ctx context.Context, look bool) (again time.Time) {
	f.mu.Lock()
	network, ready := f.network, f.begun && f.told
	f.mu.Unlock()
	if !ready {
		return time.Time{}
	}
	now := time.Now()
	own, others, hand := f.heard.take()
	if own && f.fight.until.After(now) {
		f.heard.putBack(true, false, hand)
		own, again = false, f.fight.until
	}
	if others && !look {
		f.heard.putBack(false, true, "")
		others = false
	}
	if at := f.reading.allowed(now); others && at.After(now) {
		f.heard.putBack(false, true, "")
		others, again = false, earlier(again, at)
	}
	var err error
	keep := func() error {
		doubt := own || f.have == nil
		w := f.wishes(doubt)
		return f.try(ctx, func(c *conn) error { return f.keepOwn(c, network, w, doubt, hand) })
	}
	if own || f.have != nil {
		// What another hand changes while it is read makes the reading fail, with
		// an errno that the library does not hand on. Once is no failure.
		if err = keep(); err != nil && ctx.Err() == nil {
			err = keep()
		}
	}
	if others && err == nil {
		began := time.Now()
		if err = f.with(ctx, func(c *conn) error { return f.keepOthers(c, network) }); err != nil {
			f.heard.putBack(false, true, "")
		}
		f.blind = err
		f.reading.spent += time.Since(began)
	} else if err == nil {
		err = f.blind
	}
	if ctx.Err() != nil {
		return time.Time{}
	}
	f.conclude(err)
	if err != nil {
		again = now.Add(min(firstRetry<<min(f.tries-1, 10), longestRetry))
	}
	return again
}

// reading bounds the time spent on reading others' rules.
type reading struct {
	spent time.Duration
	last  time.Time
}

// allowed says from when on there may be a reading.
func (r *reading) allowed(now time.Time) time.Time {
	if !r.last.IsZero() {
		r.spent = max(0, r.spent-now.Sub(r.last)/readShare)
	}
	r.last = now
	return now.Add(readShare * (r.spent - mostReading))
}

// conclude notes how a pass went. A failure is said when it is another than the
// last.
func (f *Firewall) conclude(err error) {
	f.mu.Lock()
	before := f.status.Err
	f.status.Err = err
	f.mu.Unlock()
	switch {
	case err == nil && before != nil:
		f.log.Info("firewall rules are right again", zap.Int("tries", f.tries))
		f.tries = 0
	case err == nil:
		f.tries = 0
	default:
		f.tries++
		if before == nil || before.Error() != err.Error() {
			f.log.Error("firewall rules are not as wanted: tried again", zap.Error(err))
		}
	}
}

// errShortSet is the answer to a set that did not take all that was sent.
var errShortSet = errors.New("the kernel took fewer peers than it was sent")

// wish is which peers are wanted: all of them if it is whole, else those that
// changed.
type wish struct {
	whole, careful bool
	peers, gone    []netip.Addr
	count          int // All that are wanted.
}

// wishes takes what changed since the last pass.
func (f *Firewall) wishes(whole bool) (w wish) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.whole, w.careful, w.count = whole || f.recheck || f.peers.len() > int(f.room), f.careful, f.peers.len()
	if w.whole {
		w.peers = slices.Collect(f.peers.all())
	} else {
		for a := range f.changed {
			if f.peers.has(a) {
				w.peers = append(w.peers, a)
			} else {
				w.gone = append(w.gone, a)
			}
		}
	}
	f.recheck = false
	f.changed = map[netip.Addr]struct{}{} // A map does not shrink.
	return w
}

// keepOwn brings our table to what is wanted. Where it is in doubt it is read
// first, and written only if it differs.
func (f *Firewall) keepOwn(c *conn, n Network, w wish, doubt bool, hand string) error {
	healed := false
	grown := f.have != nil && w.count > int(f.room)
	if doubt || grown {
		before, was, planned := f.have, f.settled, f.planned
		wrote, err := f.settle(c, n, w)
		if err != nil {
			return err
		}
		healed = was && !grown && slices.Equal(planned, f.planned) && (wrote || before != nil && !before.equal(f.have))
	}
	if f.room == 0 {
		f.have = nil
	} else if err := f.matchPeers(c, w); err != nil {
		return err
	}
	if healed {
		f.healed(hand)
	}
	return nil
}

// settle reads our table and writes it if it differs.
func (f *Firewall) settle(c *conn, n Network, w wish) (wrote bool, err error) {
	have, err := c.readOwn()
	if err != nil {
		return false, err
	}
	opts, room := f.opts, w.count
	opts.forgetful = f.forgetful
	if w.careful { // There may be more in it.
		room += have.peers.len()
	}
	want := Plan(opts, n, room)
	want.widen(have.size)
	if !slices.Equal(have.skeleton, want.skeleton()) {
		peers := w.peers
		if w.careful {
			peers = union(peers, have.peers)
		}
		f.counted.see(have.dropped)
		if err := f.write(c, want, peers, f.counted.CounterObj); err != nil {
			if lacksPart(err) { // It may be that by which strangers are noted: the next try does without, or again with it.
				f.forgetful = !f.forgetful
			}
			return false, err
		}
		wrote = true
		f.note(func(s *Status) { s.Writes++ })
		have = own{peers: newAddresses()}
		if err := c.readSets(&have); err != nil {
			return false, err
		}
		if len(want.Sets) > 0 && missing(peers, have.peers) {
			return false, errShortSet
		}
		if !f.settled {
			f.log.Info("firewall rules written", zap.Int("rules", want.rules()), zap.Int("peers", have.peers.len()))
		}
	}
	f.have, f.settled, f.planned, f.room = have.peers, true, Ruleset{Chains: want.Chains}.skeleton(), 0
	if len(want.Sets) > 0 {
		f.room = have.size
	}
	return wrote, nil
}

// widen keeps the size that sets have, if it is one of ours and enough: a table
// is not written anew because peers went.
func (r Ruleset) widen(size uint32) {
	for i := range r.Sets {
		if size&(size-1) == 0 && size > r.Sets[i].Size && r.Sets[i].Lasts == 0 {
			r.Sets[i].Size = size
		}
	}
}

// matchPeers changes the elements of the sets that differ.
func (f *Firewall) matchPeers(c *conn, w wish) error {
	var add, remove []netip.Addr
	for _, a := range w.peers {
		if !f.have.has(a) {
			add = append(add, a)
		}
	}
	if w.whole && f.have.len()+len(add) > len(w.peers) {
		wanted := newAddresses()
		for _, a := range w.peers {
			wanted.set(a, 1)
		}
		for a := range f.have.all() {
			if !wanted.has(a) {
				remove = append(remove, a)
			}
		}
	}
	for _, a := range w.gone {
		if f.have.has(a) {
			remove = append(remove, a)
		}
	}
	if w.careful {
		remove = nil
	}
	if len(add)+len(remove) == 0 {
		return nil
	}
	if err := f.changePeers(c, add, remove); err != nil {
		return err
	}
	if len(add) <= mostElements {
		return nil
	}
	have := own{peers: newAddresses()}
	err := c.readSets(&have)
	if err == nil && missing(add, have.peers) {
		err = errShortSet
	}
	return err
}

// changePeers changes elements and their mirror.
func (f *Firewall) changePeers(c *conn, add, remove []netip.Addr) error {
	if err := c.changePeers(add, remove); err != nil {
		return err
	}
	f.note(func(s *Status) { s.Writes++ })
	for _, a := range add {
		f.have.set(a, 1)
	}
	for _, a := range remove {
		f.have.set(a, 0)
	}
	return nil
}

func union(a []netip.Addr, b *addresses) []netip.Addr {
	all := slices.Clone(a)
	mine := newAddresses()
	for _, x := range a {
		mine.set(x, 1)
	}
	for x := range b.all() {
		if !mine.has(x) {
			all = append(all, x)
		}
	}
	return all
}

func missing(want []netip.Addr, have *addresses) bool {
	return slices.ContainsFunc(want, func(a netip.Addr) bool { return !have.has(a) })
}

func (r Ruleset) rules() int {
	n := 0
	for _, c := range r.Chains {
		n += len(c.Rules)
	}
	return n
}

// fight holds back mending what another hand undoes again and again.
type fight struct {
	last, until time.Time
	rounds      int
}

const (
	calmAfter    = 30 * time.Second
	firstPause   = 10 * time.Millisecond
	longestPause = 5 * time.Second
	// manyRounds is when it is called a fight in the log.
	manyRounds = 5
)

// healed notes that another hand's change was undone.
func (f *Firewall) healed(hand string) {
	now := time.Now()
	f.note(func(s *Status) { s.Heals++; s.LastHeal = now })
	if now.Sub(f.fight.last) > calmAfter {
		f.fight.rounds = 0
	}
	f.fight.rounds++
	f.fight.last = now
	f.fight.until = now.Add(min(firstPause<<min(f.fight.rounds-1, 20), longestPause))
	switch {
	case f.fight.rounds < manyRounds:
		f.log.Warn("firewall rules were changed by another hand and are put back", zap.String("hand", hand))
	case f.fight.rounds == manyRounds:
		f.log.Error("another hand changes the firewall rules again and again: they are put back more and more seldom", zap.String("hand", hand))
	}
}
