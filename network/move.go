package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
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
	// looked is how long the last look took.
	looked time.Duration
	said   string // The error that was said last.
	// pending is a move that waits, nil where none does.
	pending *pending
	// told has something when more is known of what peers are told.
	told chan struct{}
}

// ration is a number of times that grows by one each moveEvery up to mostMoves.
type ration struct {
	left int
	last time.Time // When it last grew.
}

// rest is the pause after a look that took so long. Of it and the one before the shorter
// counts: one alone takes long where the kernel's lock was held meanwhile, as while an
// interface goes, and what comes next, as another interface, is not to wait for that.
func (m *mover) rest(took time.Duration) time.Duration {
	shorter := min(took, m.looked)
	m.looked = took
	return min(lookShare*shorter, longestRest)
}

// followUnderlay keeps the node where its underlay is, until ctx ends.
func (n *Node) followUnderlay(ctx context.Context, p prepared, f *follower) error {
	m := &mover{n: n, p: p, follower: f, told: make(chan struct{}, 1), moves: ration{mostMoves, time.Now()}, words: ration{mostMoves, time.Now()}}
	kick := make(chan struct{}, 1)
	f.tellMoved(func() { signal(m.told) })
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		return n.host.WatchInterfaces(ctx, n.sight.leads, func() { signal(kick) })
	})
	group.Go(func() error { return m.run(ctx, kick) })
	return group.Wait()
}

// errMoved says that the node that starts is elsewhere than was chosen.
var errMoved = errors.New("the underlay is another")

// lookLasts is how old a look at the host may be for a start to go by it.
const lookLasts = time.Second

// stillThere looks again where the underlay is before a start makes anything known:
// it may have waited for long. Where that is elsewhere by now, the node is placed
// there and errMoved ends the wait; what goes by the place is then to be done anew.
func (n *Node) stillThere(ctx context.Context, p *prepared) error {
	if time.Since(p.lookedAt) < lookLasts {
		return nil
	}
	seen, err := n.sight.look(ctx)
	if err != nil {
		return err
	}
	p.lookedAt = time.Now()
	m := &mover{n: n, p: *p}
	seen.StoreAway = m.n.storeAway()
	before, _ := n.place.now()
	after := m.follow(before, seen)
	if after.same(before, p.config) {
		return nil
	}
	m.say(underlayChanged, before, after)
	m.sayTrouble(before, after)
	n.place.set(after)
	n.view.chose(p.config.Families(), after.choice)
	p.self, p.request, p.living = after.self, after.request(p.request), after.living(p.living)
	return final(errMoved)
}

func (m *mover) run(ctx context.Context, kick <-chan struct{}) error {
	var pause time.Duration
	for {
		again := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-kick:
		case <-m.told:
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
		resting := m.rest(time.Since(began))
		var told <-chan struct{}
		if m.pending != nil { // What peers were told holds for movedGrace alone.
			resting, told = min(resting, pause), m.told
		}
		rest := time.NewTimer(resting)
		select {
		case <-ctx.Done():
		case <-told:
			pause = 0
		case <-rest.C:
			pause = max(0, pause-resting)
		}
		rest.Stop()
	}
}

// look sees where the underlay is and moves the node there. It returns when to
// look again at the latest.
func (m *mover) look(ctx context.Context, now time.Time) time.Duration {
	if m.due(now) { // A look may take long.
		return min(m.arrive(), settling)
	}
	seen, err := m.n.sight.look(ctx)
	if err != nil {
		if ctx.Err() == nil && err.Error() != m.said {
			m.said = err.Error()
			m.n.log.Warn("underlay cannot be looked at, trying on", zap.Error(err))
		}
		return lookAgain
	}
	m.said = ""
	seen.StoreAway = m.n.storeAway()
	if store, ok := m.n.store.Store.(subnet.Redialer); ok && !reflect.DeepEqual(seen, m.seen) {
		store.Redial()
	}
	m.seen = seen
	at, goal := m.where()
	from := goal
	if !goal.stands(m.p.config.Families(), seen) { // Else what has gone again would be waited for.
		from = at
	}
	after := m.follow(from, seen)
	moved, news := !after.same(goal, m.p.config), false
	for _, f := range m.p.config.Families() {
		news = news || after.choice[f].Trouble != goal.choice[f].Trouble
	}
	if !moved && !news {
		return m.goOn(now)
	}
	of := &m.words
	if moved {
		of = &m.moves
	}
	if wait := of.take(now); wait > 0 {
		return wait
	}
	m.sayTrouble(goal, after)
	m.headFor(at, after, now)
	return m.goOn(now)
}

// storeAway tells whether the store does not answer.
func (n *Node) storeAway() bool {
	reporter, ok := n.store.Store.(subnet.Reporter)
	if !ok {
		return false
	}
	_, away := reporter.Outage()
	return away
}

// next is when to look without having been told of anything.
func (m *mover) next() time.Duration {
	if m.seen.StoreAway { // When it is back, the way to it counts again.
		return lookAgain
	}
	every := cmp.Or(m.n.opts.AuditEvery, DefaultAuditEvery)
	if m.n.sight.partly() {
		return min(every, lookupAgain)
	}
	return every
}

// follow gives the site that the host has for the node now. Where the network cannot
// use it as it is for a family, the node stays where it was with that one, in trouble,
// and goes on with the other.
func (m *mover) follow(before site, seen underlay.Host) site {
	choice := before.choice
	for _, f := range m.p.config.Families() {
		choice[f] = heeded(underlay.Follow(m.n.opts.Underlay, f, seen, before.choice[f]), m.p.options)
	}
	after, err := newSite(before.self, m.p.config, m.p.options, choice)
	if err == nil {
		return after
	}
	kept := before.choice
	for _, f := range m.p.config.Families() {
		with := kept
		with[f] = choice[f]
		if _, err := newSite(before.self, m.p.config, m.p.options, with); err != nil {
			kept[f].Trouble = err.Error()
		} else {
			kept = with
		}
	}
	if after, err = newSite(before.self, m.p.config, m.p.options, kept); err != nil {
		before.choice = kept
		return before
	}
	return after
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
// told by the record, the presence and the subnet file, as far as they were not told
// before.
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
	beginFirewall(m.follower.firewall, m.p.config, to, own, m.p.flannels)
	m.follower.move(planner, subnet.Identity{Node: m.n.opts.Name, PublicIP: to.public}, own)
	m.n.view.moved(planner, m.p.config.Families(), to.choice)
	m.n.view.count()
	m.n.place.set(to)
	return nil
}

// say tells what becomes another.
func (m *mover) say(what string, before, after site, more ...zap.Field) {
	for _, f := range m.p.config.Families() {
		was, is := before.choice[f], after.choice[f]
		if !is.Same(was) {
			was := fmt.Sprintf("%s %s, public %s, MTU %d", was.Interface, was.Local, was.Public, was.MTU)
			m.n.log.Info(what, slices.Concat(choiceFields(f, is), []zap.Field{zap.String("before", was)}, more)...)
		}
	}
}

// sayTrouble tells what does not serve any more, and what does again.
func (m *mover) sayTrouble(before, after site) {
	for _, f := range m.p.config.Families() {
		was, is := before.choice[f], after.choice[f]
		family := zap.Stringer("family", f)
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
