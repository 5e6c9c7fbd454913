package network

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/network/underlay"
	"github.com/ripstop-net/ripstop/subnet"
)

const (
	// settling is what a hand that changes an address has for its other steps: the
	// routes that go with it.
	settling = 20 * time.Millisecond
	// lookShare bounds the time that looking takes, to one part of so many, as long as
	// that makes pauses of at most longestRest: a host may have all the Internet's
	// routes.
	lookShare   = 20
	longestRest = 10 * time.Second
	// lookAgain is the pause after the host could not be read.
	lookAgain = time.Second
	// An underlay that goes to and fro is followed mostMoves times, and then once
	// each moveEvery: each move is a write to the store and an event at every peer. So
	// are lines about an underlay that serves and does not, in turns.
	mostMoves = 20
	moveEvery = 2 * time.Second
)

// mover follows the underlay while the node runs.
type mover struct {
	n        *Node
	p        prepared
	follower *follower
	// seen is the host as it was last.
	seen underlay.Host
	// moves and words ration what is done and what is said.
	moves, words ration
	said         string // The error that was said last.
}

// ration is a number of times that grows by one each moveEvery up to mostMoves.
type ration struct {
	left int
	last time.Time // When it last grew.
}

// followUnderlay keeps the node where its underlay is, until ctx ends.
func (n *Node) followUnderlay(ctx context.Context, p prepared, f *follower) error {
	m := &mover{n: n, p: p, follower: f, moves: ration{mostMoves, time.Now()}, words: ration{mostMoves, time.Now()}}
	kick := make(chan struct{}, 1)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return n.host.WatchInterfaces(ctx, n.sight.leads, func() { signal(kick) })
	})
	group.Go(func() error { return m.run(ctx, kick) })
	return group.Wait()
}

func (m *mover) run(ctx context.Context, kick <-chan struct{}) error {
	var pause time.Duration
	for {
		again := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-kick:
		case <-again.C:
		}
		again.Reset(settling)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-again.C:
		}
		select {
		case <-kick:
		default:
		}
		began := time.Now()
		pause = m.look(ctx, began)
		rest := time.NewTimer(min(lookShare*time.Since(began), longestRest))
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		rest.Stop()
	}
}

// look sees where the underlay is and moves the node there. It returns when to
// look again at the latest.
func (m *mover) look(ctx context.Context, now time.Time) time.Duration {
	seen, err := m.n.sight.look(ctx)
	if err != nil {
		if ctx.Err() == nil && err.Error() != m.said {
			m.said = err.Error()
			m.n.log.Warn("underlay cannot be looked at, trying on", zap.Error(err))
		}
		return lookAgain
	}
	m.said = ""
	if store, ok := m.n.store.Store.(subnet.Redialer); ok && !reflect.DeepEqual(seen, m.seen) {
		store.Redial()
	}
	m.seen = seen
	before, _ := m.n.place.now()
	after := m.follow(before, seen)
	moved, news := false, false
	for _, f := range m.p.config.Families() {
		moved = moved || !after.choice[f].Same(before.choice[f])
		news = news || after.choice[f].Trouble != before.choice[f].Trouble
	}
	if !moved && !news {
		return m.next()
	}
	of := &m.words
	if moved {
		of = &m.moves
	}
	if wait := of.take(now); wait > 0 {
		return wait
	}
	m.say(before, after)
	if !moved {
		m.n.place.set(after)
		m.n.view.chose(m.p.config.Families(), after.choice)
		return m.next()
	}
	if err := m.move(after); err != nil {
		m.n.log.Error("underlay cannot be followed", zap.Error(err))
	}
	return m.next()
}

// next is when to look without having been told of anything.
func (m *mover) next() time.Duration {
	every := cmp.Or(m.n.opts.AuditEvery, DefaultAuditEvery)
	if m.n.sight.partly() {
		return min(every, lookupAgain)
	}
	return every
}

// follow gives the site that the host has for the node now. One that the network
// cannot use is none: the node stays where it was, in trouble.
func (m *mover) follow(before site, seen underlay.Host) site {
	choice := before.choice
	for _, f := range m.p.config.Families() {
		choice[f] = underlay.Follow(m.n.opts.Underlay, f, seen, before.choice[f])
	}
	after, err := newSite(before.self, m.p.config, m.p.options, choice)
	if err == nil {
		return after
	}
	for _, f := range m.p.config.Families() {
		if !choice[f].Same(before.choice[f]) {
			choice[f] = before.choice[f]
			choice[f].Trouble = err.Error()
		}
	}
	before.choice = choice
	return before
}

// take uses one up, or says how long to wait for one.
func (r *ration) take(now time.Time) (wait time.Duration) {
	if grown := int(now.Sub(r.last) / moveEvery); r.left+grown >= mostMoves {
		r.left, r.last = mostMoves, now
	} else {
		r.left += grown
		r.last = r.last.Add(time.Duration(grown) * moveEvery)
	}
	if r.left == 0 {
		return r.last.Add(moveEvery).Sub(now)
	}
	r.left--
	return 0
}

// move brings the node to a site: device and peers first, then what others are
// told by the record, the presence and the subnet file.
func (m *mover) move(to site) error {
	planner := m.p.options.Planner(to.self)
	own, err := planner.Own()
	if err != nil {
		return fmt.Errorf("plan for interface %s: %w", to.choice[m.p.config.Families()[0]].Interface, err)
	}
	var links subnet.PerFamily[string]
	for f, u := range to.self.Underlay {
		links[f] = u.Interface
	}
	m.n.settings.Move(links)
	m.follower.move(planner, subnet.Identity{Node: m.n.opts.Name, PublicIP: to.public}, own)
	m.n.view.moved(planner, m.p.config.Families(), to.choice)
	m.n.view.count()
	m.n.place.set(to)
	return nil
}

// say tells what becomes another.
func (m *mover) say(before, after site) {
	for _, f := range m.p.config.Families() {
		was, is := before.choice[f], after.choice[f]
		family := zap.Stringer("family", f)
		if !is.Same(was) {
			m.n.log.Info("underlay changed", append(choiceFields(f, is), zap.String("before", fmt.Sprintf("%s %s, public %s, MTU %d", was.Interface, was.Local, was.Public, was.MTU)))...)
		}
		switch {
		case is.Trouble == was.Trouble:
		case is.Trouble != "":
			m.n.log.Warn("underlay does not serve: going on with what it was", family, zap.String("reason", is.Trouble),
				zap.String("interface", is.Interface), zap.Stringer("local", is.Local))
		default:
			m.n.log.Info("underlay serves again", family, zap.String("interface", is.Interface), zap.Stringer("local", is.Local))
		}
	}
}

func choiceFields(f subnet.Family, c underlay.Choice) []zap.Field {
	return []zap.Field{
		zap.Stringer("family", f), zap.String("interface", c.Interface), zap.Stringer("local", c.Local),
		zap.Stringer("public", c.Public), zap.Int("mtu", c.MTU), zap.String("reason", c.Reason),
	}
}
