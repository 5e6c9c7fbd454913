package network

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/underlay"
	"github.com/ripstop-net/ripstop/subnet"
)

const (
	// peersFollowIn is what peers have to follow a record that the store has shown to
	// this node, too, before packets come from where it says.
	peersFollowIn = 750 * time.Millisecond
	// heardLate is how long a record that was written may take to be shown. It is less
	// than for how long peers let packets in from the old address.
	heardLate = movedGrace / 2
	// pendingFor is how long peers are told in vain, and retryMove how long that is given
	// up then: the new address may be another machine's.
	pendingFor = 10 * time.Second
	retryMove  = time.Minute
)

const underlayChanged = "underlay changed"

// step is how a node goes from one site to another.
type step int

const (
	// atOnce is for where nothing is lost by it that is not lost already.
	atOnce step = iota
	// peersFirst has the record say the new address while packets are sent from the old
	// one still. The new one takes packets meanwhile: the tunnel's socket is bound to none.
	peersFirst
	// whenStoreAnswers and whenUnique leave all as it is until peers can be told, and
	// until the link has shown that nobody else has the new address.
	whenStoreAnswers
	whenUnique
	// inAWhile leaves all as it is since peers could not be told.
	inAWhile
	undecided step = -1
)

func (s step) String() string {
	return [...]string{"at once", "when peers know of it", "when the store answers, so that peers can be told", "when no other host is found to have the address", "later, since peers could not be told"}[s]
}

// stepTo decides how a node goes from where its device is to another site. As long as
// packets have a way by the old address, peers are told before they come from the new one;
// told says that they have been.
func stepTo(at, to site, families []subnet.Family, host underlay.Host, told bool) step {
	how := atOnce
	for _, f := range families {
		was, is := at.choice[f], to.choice[f]
		if was.Local != is.Local && !serves(host, was.Local) {
			return atOnce
		}
		if was.Public == is.Public {
			continue // There is nothing to be told.
		}
		how = max(how, peersFirst)
		if f == subnet.V6 && slices.ContainsFunc(host.Interfaces, func(i backend.Interface) bool { return i.Tentative && slices.Contains(i.Addresses, is.Local) }) {
			how = whenUnique
		}
	}
	if how != atOnce && host.StoreAway && !told {
		return whenStoreAnswers
	}
	return how
}

// serves tells whether packets can be sent from an address.
func serves(host underlay.Host, a netip.Addr) bool {
	return slices.ContainsFunc(host.Interfaces, func(i backend.Interface) bool { return i.Up && slices.Contains(i.Addresses, a) })
}

// stands tells whether the host has all that a node at the site is bound to.
func (s site) stands(families []subnet.Family, host underlay.Host) bool {
	return !slices.ContainsFunc(families, func(f subnet.Family) bool { return !serves(host, s.choice[f].Local) })
}

// between is the site of a node whose device is at one and whose peers are told to send
// to another. No packet is larger than either carries.
func between(at, to site) site {
	at.public, at.endpoints, at.mtu, at.between = to.public, to.endpoints, min(at.mtu, to.mtu), true
	return at
}

// pending is a move that waits.
type pending struct {
	from, to site // The device is at from.
	how      step
	// since is when it began to wait for what it waits for.
	since time.Time
	said  bool
}

// where returns the site that the device is at, and the one that it is to be at.
func (m *mover) where() (at, goal site) {
	if p := m.pending; p != nil {
		return p.from, p.to
	}
	at, _ = m.n.place.now()
	return at, at
}

// headFor makes a site the one that the node is to be at.
func (m *mover) headFor(at, to site, now time.Time) {
	families := m.p.config.Families()
	if to.same(at, m.p.config) { // There it is, and may have been on its way elsewhere.
		if m.pending != nil {
			m.say("underlay is what it was: this node stays where it is", m.pending.to, to)
			m.pending = nil
			m.begin(to)
		}
		m.n.place.set(to)
		m.n.view.chose(families, to.choice)
		return
	}
	if p := m.pending; p != nil && to.same(p.to, m.p.config) {
		p.to = to
		m.show()
		return
	}
	m.pending = &pending{from: at, to: to, how: undecided, since: now}
}

// goOn brings a move that waits as far as it goes by now, and returns when to look again.
func (m *mover) goOn(now time.Time) time.Duration {
	p := m.pending
	if p == nil {
		return m.next()
	}
	due := m.follower.toldBy(p.to)
	how := stepTo(p.from, p.to, m.p.config.Families(), m.seen, !due.IsZero())
	switch {
	case how == atOnce:
		return m.arrive()
	case p.how == peersFirst:
		how = peersFirst // What was begun goes on.
	case p.how == inAWhile && now.Sub(p.since) < m.n.retryMove:
		how = inAWhile
	}
	if how != p.how {
		m.wait(how, now)
	}
	waited := now.Sub(p.since)
	switch {
	case how == inAWhile:
		return min(m.next(), m.n.retryMove-waited)
	case how != peersFirst:
		return min(m.next(), lookAgain)
	case !due.IsZero() && !now.Before(due):
		return m.arrive()
	case !due.IsZero():
		return min(m.next(), due.Sub(now))
	case waited < m.n.pendingFor:
		return min(m.next(), m.n.pendingFor-waited)
	}
	// Record and presence go back, too: else neither would be kept for where the node is.
	if !p.said {
		p.said = true
		m.n.log.Warn("peers cannot be told that the underlay is to be another: this node stays where it is while that serves", zap.Duration("tried_for", waited), zap.Duration("again_after", m.n.retryMove))
	}
	m.wait(inAWhile, now)
	return min(m.next(), m.n.retryMove)
}

// due tells whether peers have followed to where the device is to be.
func (m *mover) due(now time.Time) bool {
	p := m.pending
	if p == nil || p.how != peersFirst {
		return false
	}
	due := m.follower.toldBy(p.to)
	return !due.IsZero() && !now.Before(due)
}

// wait has a move wait for what its step waits for.
func (m *mover) wait(how step, now time.Time) {
	p := m.pending
	if again := p.said && (how == peersFirst || how == inAWhile); !again {
		m.say("underlay is to change", p.from, p.to, zap.Stringer("when", how))
	}
	p.how, p.since = how, now
	at := p.from
	if how == peersFirst {
		at = between(p.from, p.to)
	}
	m.begin(at)
	m.n.place.set(at)
	m.show()
}

// begin has the firewall know of a site where the device is already.
func (m *mover) begin(at site) {
	if own, err := m.p.options.Planner(at.self).Own(); err == nil { // It was there before.
		beginFirewall(m.follower.firewall, m.p.config, at, own, m.p.flannels)
	}
}

// show has the status say where the device is, where peers are told that the node is,
// and where it is to be.
func (m *mover) show() {
	p := m.pending
	at, _ := m.n.place.now()
	shown := p.from.choice
	var next subnet.PerFamily[string]
	for _, f := range m.p.config.Families() {
		is := p.to.choice[f]
		if !is.Same(shown[f]) {
			next[f] = fmt.Sprintf("%s %s %s", is.Interface, is.Local, p.how)
		}
		shown[f].Public, shown[f].Trouble = at.public[f], is.Trouble
	}
	m.n.view.heads(m.p.config.Families(), shown, next)
}

// arrive brings the device where it is to be.
func (m *mover) arrive() time.Duration {
	p := m.pending
	m.pending = nil
	m.say(underlayChanged, p.from, p.to)
	if err := m.move(p.to); err != nil {
		m.n.log.Error("underlay cannot be followed", zap.Error(err))
	}
	return m.next()
}

// ownRecord is what is known of the node's own record: which addresses it has, and since
// when the store has taken that, and has shown it.
type ownRecord struct {
	public         subnet.PerFamily[netip.Addr]
	written, heard time.Time
}

// noteOwn notes that the node's own record was written, or was heard of from the store.
func (f *follower) noteOwn(l subnet.Lease, heard bool) {
	now := time.Now()
	f.mu.Lock()
	r, was := &f.ownRecord, f.ownRecord
	var public subnet.PerFamily[netip.Addr]
	for family, e := range l.Endpoints {
		public[family] = e.PublicIP
	}
	if public != r.public {
		*r = ownRecord{public: public}
	}
	if at := &r.written; !heard && at.IsZero() {
		*at = now
	}
	if at := &r.heard; heard && at.IsZero() {
		*at = now
	}
	moved, tell := *r != was, f.ownMoved
	f.mu.Unlock()
	if moved {
		tell()
	}
}

// tellMoved has moved called whenever more is known of the node's own record.
func (f *follower) tellMoved(moved func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ownMoved = moved
}

// toldBy tells when peers will have followed the node's own record to a site, the zero
// time while it does not name that.
func (f *follower) toldBy(to site) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.ownRecord
	for family, e := range to.endpoints {
		if e.PublicIP != r.public[family] {
			return time.Time{}
		}
	}
	switch {
	case !r.heard.IsZero():
		return r.heard.Add(peersFollowIn)
	case !r.written.IsZero():
		return r.written.Add(heardLate)
	}
	return time.Time{}
}
