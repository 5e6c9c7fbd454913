package network

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/planners"
	"github.com/ripstop-net/ripstop/network/converge"
	"github.com/ripstop-net/ripstop/subnet"
)

// follower turns what happens in the store into what the loop is to want. It
// lives on the goroutine of the store's Watch.
type follower struct {
	config subnet.Config
	node   string
	subnet subnet.Subnets // The node's own.
	loop   *converge.Loop
	log    *zap.Logger
	// firewall lets a peer's packets in before there is a route to it.
	firewall Firewall

	// kick has something when a claim may succeed that did not before.
	kick chan struct{}
	// rewritten has the last record of the node's own that was written, by
	// whomever.
	rewritten chan subnet.Lease
	// changed is called after the peers changed, settled after a listing of
	// another epoch than that before, and when no peer is held any more.
	changed, settled func()
	epoch            string

	// leaves has something when an address begins to wait for the end of its grace.
	leaves     chan struct{}
	movedGrace time.Duration
	mostMoved  int
	// storeAway tells whether the store does not answer.
	storeAway func() bool

	// gathered is what is to be told when no more changes follow at once.
	gathered gathered
	// text is the config as it was last seen in the store.
	text string

	mu        sync.Mutex // For save, move and status, which other goroutines call.
	planner   plan.Planner
	mirror    *subnet.Mirror
	own       []backend.Entry // What the node owes for itself.
	begun     bool
	held      subnet.Holds
	unread    []subnet.Subnets
	problems  *problems
	ownRecord ownRecord
	ownMoved  func() // Called when ownRecord is another.
	left      []left // What peers have moved away from, the oldest first.
}

func newFollower(p prepared, planner plan.Planner, loop *converge.Loop, owed []backend.Entry, grace time.Duration, log *zap.Logger) *follower {
	f := &follower{
		config: p.config, planner: planner, node: p.self.Node, subnet: p.self.Subnets, loop: loop, log: log, own: owed, problems: newProblems(log), text: string(p.seen),
		firewall: noFirewall{}, kick: make(chan struct{}, 1), rewritten: make(chan subnet.Lease, 1), changed: func() {}, settled: func() {},
		leaves: make(chan struct{}, 1), storeAway: func() bool { return false }, movedGrace: movedGrace, mostMoved: mostMoved, ownMoved: func() {},
	}
	f.mirror = subnet.NewMirror(p.config, p.request.Self, f.check)
	f.mirror.SetGrace(grace)
	if p.saved != nil {
		f.mirror.Restore(p.saved.Epoch, p.saved.Revision, p.saved.Peers)
		p.saved.Peers = subnet.SavedPeers{} // They are the mirror's now, and many.
		f.held = f.mirror.Holds()
	}
	return f
}

// check tells why there is no way to a lease's holder. Who has taken this node's
// subnet is none of its peers: its pods use that on, and what is for them must not
// go to the other when the pods' bridge, with its own route, is away for a moment.
func (f *follower) check(l subnet.Lease) error {
	for family, own := range f.subnet {
		if s := l.Subnets[family]; own.IsValid() && s.IsValid() && own.Overlaps(s) {
			return fmt.Errorf("subnet %s is in use on this node", s)
		}
	}
	return f.planner.Check(l)
}

// begin wants what the mirror has. It is called before the first change only
// where there is a saved snapshot to go by.
func (f *follower) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.firewall.SetCareful(true)
	f.loop.SetCareful(true) // The kernel may know of peers that came after it was saved.
	f.tellAll()
}

// tell brings what changed to loop and firewall, also for the sake of the revision
// alone.
func (f *follower) tell(deltas []subnet.Delta) {
	var release, owe []backend.Entry
	var came []netip.Addr
	said := f.log.Level() <= zap.DebugLevel
	for _, d := range deltas {
		release = append(release, f.planner.Peer(d.Before)...)
		owe = append(owe, f.planner.Peer(d.After)...)
		came = append(came, publicAddresses(f.subnet, d.After)...)
		if said {
			f.log.Debug("peer changed", zap.Stringer("before", d.Before.Subnets), zap.Stringer("after", d.After.Subnets), zap.String("holder", d.After.Holder()))
		}
	}
	f.firewall.Update(nil, came)
	f.loop.Update(f.mirror.Revision(), release, owe)
	f.firewall.Update(f.gone(deltas, time.Now()), nil)
}

func (f *follower) tellAll() {
	count := f.mirror.Count()
	const each = 4 // As a rule: what one peer owes in one family.
	owe := append(make([]backend.Entry, 0, len(f.own)+each*count), f.own...)
	public := make([]netip.Addr, 0, count)
	for l := range f.mirror.All() {
		owe = append(owe, f.planner.Peer(l)...)
		public = append(public, publicAddresses(f.subnet, l)...)
	}
	f.firewall.Update(nil, public)
	f.loop.Update(f.mirror.Revision(), nil, owe)
	f.begun = true
}

// move plans anew for a node that has another underlay, and so other addresses and
// others on its link. The loop makes the difference, in one go.
func (f *follower) move(planner plan.Planner, self subnet.Identity, own []backend.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.begun { // By the plan that was owed until now.
		f.tell(f.gathered.deltas)
		f.gathered.deltas, f.gathered.at = nil, nil
	}
	before := f.planner
	release, owe := slices.Clone(f.own), slices.Clone(own)
	f.planner, f.own = planner, own
	var came []netip.Addr
	changed := map[subnet.Subnets]bool{}
	deltas := f.mirror.Move(self)
	for _, d := range deltas {
		changed[d.Before.Subnets], changed[d.After.Subnets] = true, true
		release = append(release, before.Peer(d.Before)...)
		owe = append(owe, planner.Peer(d.After)...)
		came = append(came, publicAddresses(f.subnet, d.After)...)
	}
	if !f.begun { // All is yet to be told.
		return
	}
	defer func() { f.problems.report(time.Now(), f.mirror.NewProblems(), f.mirror.Problem, f.mirror.Passed()) }()
	for l := range f.mirror.All() {
		if changed[l.Subnets] {
			continue
		}
		if was, is := before.Peer(l), planner.Peer(l); !slices.Equal(was, is) {
			release, owe = append(release, was...), append(owe, is...)
		}
	}
	f.firewall.Update(nil, came)
	f.loop.Update(f.mirror.Revision(), release, owe)
	f.firewall.Update(f.gone(deltas, time.Now()), nil)
}

// save returns the peers of now.
func (f *follower) save() (epoch string, revision int64, peers subnet.SavedPeers) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mirror.Save()
}

// follow takes one change of the store. The first one is whole, so the loop's
// first want is whole too.
func (f *follower) follow(c subnet.Change) {
	if c.ConfigSet {
		f.configChanged(c.Config)
	}
	f.apply(c)
	if c.Whole || c.Empty() || slices.ContainsFunc(c.Gone, f.touchesOwn) {
		select {
		case f.kick <- struct{}{}:
		default:
		}
	}
	for _, l := range c.Leases {
		if l.Node == f.node && l.Subnets == f.subnet {
			f.tellRewritten(l)
			f.noteOwn(l, true)
		}
	}
	if c.More {
		return
	}
	g := f.told()
	if g.news || g.whole {
		f.changed()
	}
	if g.settled {
		f.settled()
	}
}

// told returns what was gathered, which loop and firewall know by then, and says
// what is wrong with records.
func (f *follower) told() gathered {
	f.mu.Lock()
	defer f.mu.Unlock()
	g := f.gathered
	f.gathered = gathered{}
	f.problems.report(time.Now(), f.mirror.NewProblems(), f.mirror.Problem, f.mirror.Passed())
	return g
}

// tellRewritten puts a record where the last one may be that nobody took yet.
func (f *follower) tellRewritten(l subnet.Lease) {
	select {
	case <-f.rewritten:
	default:
	}
	select {
	case f.rewritten <- l: // There is room: nobody else puts anything there.
	default:
	}
}

// touchesOwn tells whether the record of a key stands in the way of the node's own.
func (f *follower) touchesOwn(key string) bool {
	s, err := subnet.ParseKey(key)
	if err != nil {
		return false
	}
	for _, family := range subnet.Families {
		if s[family].Overlaps(f.subnet[family]) {
			return true
		}
	}
	return false
}

// apply brings the mirror up to date, with each change at its own time, and then
// loop and firewall, once for all changes that come together: an answer of etcd's
// may have a thousand, and each would be a transaction of the firewall.
func (f *follower) apply(c subnet.Change) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, held := &f.gathered, f.held.Now
	g.add(f.mirror.Apply(time.Now(), c))
	g.news = f.reportHolds() || g.news
	g.settled = g.settled || c.Whole && c.Epoch != f.epoch || f.held.Now == 0 && held > 0
	if c.Whole {
		g.whole, f.epoch = true, c.Epoch
	}
	if c.More {
		return
	}
	unread, another := f.unread, false
	if f.mirror.NewUnread() {
		unread = f.mirror.Unread()
		another = !slices.Equal(unread, f.unread)
	}
	if another { // What is no longer kept goes only when it is known what is owed in its place.
		f.keep(slices.Concat(f.unread, unread))
	}
	if f.begun {
		f.tell(g.deltas)
	} else {
		f.tellAll()
	}
	if another {
		f.keep(unread)
		f.unread = unread
	}
	if g.whole {
		f.firewall.SetCareful(len(unread) > 0)
		f.loop.SetCareful(false)
	}
}

// keep makes loop and firewall leave alone what the kernel has for subnets of
// which nothing could be read. Where their holders send from is not known, so the
// firewall takes nobody out.
func (f *follower) keep(unread []subnet.Subnets) {
	var keep []netip.Prefix
	for _, s := range unread {
		for _, p := range s {
			if p.IsValid() {
				keep = append(keep, p)
			}
		}
	}
	f.loop.Keep(keep...)
	f.firewall.SetCareful(len(keep) > 0)
}

// reportHolds says once that peers are held, and once that none is any more.
// It tells whether anything about it changed.
func (f *follower) reportHolds() bool {
	was, now := f.held, f.mirror.Holds()
	if was == now {
		return false
	}
	f.held.Now = now.Now
	switch {
	case now.Now > was.Now:
		f.log.Warn("records of peers are gone with a store that is not the one it was, or most at once: the peers are held",
			zap.Int("peers", now.Now), zap.Duration("for", f.mirror.Grace()))
	case now.Now == 0:
		f.log.Info("no peer is held any more", zap.Int("returned", now.Returned-was.Returned),
			zap.Int("displaced", now.Displaced-was.Displaced), zap.Int("expired", now.Expired-was.Expired))
		f.held = now
	}
	return true
}

// configChanged reports a config that is no longer the one in use. It is not
// applied: pods live by the old one.
func (f *follower) configChanged(text []byte) {
	if string(text) == f.text {
		return
	}
	f.text = string(text)
	if text == nil {
		f.log.Error("network config was deleted from the store: this node goes on with the one it has, others cannot start; write it again with 'ripstop config set'")
		return
	}
	cfg, err := subnet.ParseConfig(text)
	if err == nil {
		_, err = planners.Parse(cfg.Backend)
	}
	switch {
	case err != nil:
		f.log.Error("network config in the store was changed and cannot be used: this node goes on with the one it has; mend it with 'ripstop config set'", zap.Error(err))
	case cfg == f.config:
		f.log.Info("network config in the store is the one in use")
	case cfg.CheckOwn(f.subnet) != nil:
		f.log.Error("network config in the store was changed so that it has no room for this node's lease: this node will refuse to start with it; set it back",
			zap.Stringer("subnets", f.subnet), zap.Error(cfg.CheckOwn(f.subnet)))
	default:
		f.log.Warn("network config in the store was changed: it takes effect when this daemon is restarted")
	}
}
