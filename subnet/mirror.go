package subnet

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"
)

// Mirror is the node's copy of the store's leases, and the judge of which of
// them are peers: those that pass [Config.CheckPeer] and take nothing that an
// older lease holds already. It is a value of one goroutine.
//
// The verdict on a lease depends on the leases alone, not on the order in
// which they came. A change costs as much as it changes, not as much as there is.
//
// Peers whose records went in a way that makes the store doubtful are held for a
// while: they stay peers. See [Holds].
type Mirror struct {
	cfg   Config
	self  Identity
	check func(Lease) error

	epoch    string
	revision int64
	// listed says that a listing was told of, so that leases are all there were
	// then: what was restored is peers alone.
	listed bool
	leases *leaseTable
	peers  int // How many of them are peers.
	grace  grace
	// claims holds who claims what only one lease may have: those with a record
	// before those that are held, oldest first.
	claims *claims
	passed
}

// touched are the leases whose verdict may have changed, with the peers that
// they were, nil for none.
type touched map[leaseKey]*Lease

// Delta is a peer that came (Before is zero), went (After is zero) or changed.
type Delta struct{ Before, After Lease }

// NewMirror returns an empty mirror for a node of the given identity. The
// backend's own check, which may be nil, adds to what [Config.CheckPeer] asks
// of a peer.
func NewMirror(cfg Config, self Identity, check func(Lease) error) *Mirror {
	if check == nil {
		check = func(Lease) error { return nil }
	}
	leases := newLeaseTable()
	return &Mirror{
		cfg: cfg, self: self, check: check, leases: leases, claims: newClaims(leases),
		passed: newPassed(), grace: grace{since: map[Subnets]time.Time{}},
	}
}

// Revision is the store's revision that the mirror shows.
func (m *Mirror) Revision() int64 { return m.revision }

// Apply brings the mirror up to date and returns what that means for peers, in
// the order of their subnets. Now is when the change was heard.
//
// A record that can no longer be read leaves its lease as it was last read, as
// long as its key is there.
func (m *Mirror) Apply(now time.Time, c Change) []Delta {
	touched := touched{}
	m.hear(now)
	gone := m.missing(c)
	different := m.different(c)
	doubtful := m.doubtful(different, gone)
	if different {
		m.renewHolds(now)
	}
	for _, s := range gone {
		if doubtful && !m.held(s) {
			m.hold(s, now, touched)
		} else {
			m.set(s, Lease{}, touched)
		}
	}
	if c.Whole {
		m.epoch, m.listed = c.Epoch, true
		m.readAllBut(c.Bad)
	}
	m.revision = c.Revision
	for _, key := range c.Gone {
		m.setBad(key, "")
	}
	for _, b := range c.Bad {
		m.setBad(b.Key, cmp.Or(b.Reason, "cannot be read"))
		if s, err := ParseKey(b.Key); err == nil && m.held(s) {
			l, _ := m.leases.get(s)
			m.back(s, l, touched) // As any lease whose record breaks.
		}
	}
	for _, l := range c.Leases {
		if m.isBad(l.Subnets) {
			m.setBad(l.Subnets.Key(), "")
		}
		m.back(l.Subnets, l, touched)
	}
	m.giveWay(touched)
	m.expire(now, touched)
	return m.deltas(touched)
}

// Move makes the mirror that of a node with other addresses, or with another
// backend's check, and returns what that means for peers, in the order of their
// subnets. It costs as much as there are leases.
func (m *Mirror) Move(self Identity) []Delta {
	m.self = self
	var other []leaseID
	for id, at := range m.leases.all() {
		l := at.lease()
		// What is refused is judged again also for the sake of the reason.
		if own, sound := m.self.Owns(l), m.sound(l) == nil; own != at.own || sound != at.sound || !sound {
			other = append(other, id)
		}
	}
	touched := touched{}
	for _, id := range other {
		at := m.leases.at(id)
		m.note(id, touched)
		m.claim(id, false, touched)
		l := at.lease()
		at.own, at.sound = m.self.Owns(l), m.sound(l) == nil
		m.claim(id, true, touched)
	}
	return m.deltas(touched)
}

// missing lists the leases whose records a change takes away. Those that are
// held have none that a listing could lack.
func (m *Mirror) missing(c Change) []Subnets {
	var out []Subnets
	for _, key := range c.Gone {
		if s, err := ParseKey(key); err == nil {
			if _, ok := m.leases.id(s); ok {
				out = append(out, s)
			}
		}
	}
	if !c.Whole {
		return out
	}
	if m.leases.len() == 0 {
		return out
	}
	there := make(map[leaseKey]struct{}, len(c.Leases))
	for _, l := range c.Leases {
		there[l.Subnets.pack()] = struct{}{}
	}
	for _, b := range c.Bad {
		if s, err := ParseKey(b.Key); err == nil {
			there[s.pack()] = struct{}{}
		}
	}
	for _, l := range m.leases.all() {
		if _, ok := there[l.key]; !ok && !m.held(l.key.subnets()) {
			out = append(out, l.key.subnets())
		}
	}
	return out
}

// back puts the lease of a record that is there.
func (m *Mirror) back(s Subnets, l Lease, touched touched) {
	if m.held(s) {
		m.grace.count.Returned++
		delete(m.grace.since, s)
	} else if id, ok := m.leases.id(s); ok && m.leases.at(id).is(l) {
		return // As nearly all are in a listing that is not the first.
	}
	m.set(s, l, touched)
}

// set puts a lease (or, zero, removes it) and notes in touched all whose
// verdict may change by it, with what they were.
func (m *Mirror) set(s Subnets, l Lease, touched touched) {
	if id, ok := m.leases.id(s); ok {
		m.note(id, touched)
		m.claim(id, false, touched)
		m.leases.drop(id)
	} else if _, ok := touched[s.pack()]; !ok {
		touched[s.pack()] = nil
	}
	if l.Subnets == (Subnets{}) {
		delete(m.grace.since, s)
		return
	}
	id := m.leases.put(l)
	at := m.leases.at(id)
	at.own, at.sound = m.self.Owns(l), m.sound(l) == nil
	m.claim(id, true, touched)
}

// note remembers what a lease was before the change.
func (m *Mirror) note(id leaseID, touched touched) {
	at := m.leases.at(id)
	if _, ok := touched[at.key]; ok {
		return
	}
	var was *Lease
	if at.peer {
		l := at.lease()
		was = &l
	}
	touched[at.key] = was
}

// claim adds a lease to the claimants of what it claims, or takes it away, and
// notes the others.
func (m *Mirror) claim(id leaseID, add bool, touched touched) {
	var room [maxClaims]claim
	for _, c := range m.claimsOf(room[:0], m.leases.at(id)) {
		var one [1]leaseID
		for _, rival := range m.claims.all(c, &one) {
			m.note(rival, touched)
		}
		if add {
			m.claims.add(c, id, m.compareClaimants)
		} else {
			m.claims.remove(c, id)
		}
	}
}

func (m *Mirror) compareClaimants(a, b leaseID) int {
	l, o := m.leases.at(a), m.leases.at(b)
	if c := cmp.Or(m.compareHeld(l.key.subnets(), o.key.subnets()), cmp.Compare(l.created, o.created)); c != 0 {
		return c // As a rule: the texts of the keys cost more than all else.
	}
	return strings.Compare(l.key.subnets().Key(), o.key.subnets().Key())
}

// compareHeld puts leases that are held behind those that have a record.
func (m *Mirror) compareHeld(a, b Subnets) int {
	switch heldA := m.held(a); {
	case heldA == m.held(b):
		return 0
	case heldA:
		return 1
	default:
		return -1
	}
}

// claimsOf appends what a lease claims. One that is no peer by itself claims
// nothing, so that no broken record harms a sound one; the node's own lease
// claims its subnets.
func (m *Mirror) claimsOf(out []claim, l *packedLease) []claim {
	if !l.own && !l.sound {
		return out
	}
	s := l.key.subnets()
	for _, f := range m.cfg.Families() {
		if !s[f].IsValid() {
			continue
		}
		out = append(out, claimSubnet(f, s[f]))
		if l.mac[f] != (MAC{}) {
			out = append(out, claimMAC(f, l.mac[f]))
		}
	}
	return out
}

// sound tells why a lease can be no peer, whatever other leases there are.
func (m *Mirror) sound(l Lease) error {
	if err := m.cfg.CheckPeer(m.self, l); err != nil {
		return err
	}
	return m.check(l)
}

// rivalry tells which older lease has something that a lease claims.
func (m *Mirror) rivalry(id leaseID) error {
	l := m.leases.at(id)
	var room [maxClaims]claim
	for _, c := range m.claimsOf(room[:0], l) {
		first, _ := m.claims.of(c)
		if first == id {
			continue
		}
		rival := m.leases.at(first).lease()
		switch {
		case c.bits != macClaim:
			return fmt.Errorf("subnet %s is held by an older lease, %s of %s", l.key.subnets()[c.family], rival.Subnets.Key(), rival.Holder())
		case rival.Endpoints[c.family].PublicIP != l.lease().Endpoints[c.family].PublicIP:
			return fmt.Errorf("VtepMAC %s is that of another node too: %s, whose lease is older", l.mac[c.family], rival.Holder())
		}
	}
	return nil
}

// peer returns the lease at s if it was judged to be a peer.
func (m *Mirror) peer(s Subnets) (Lease, bool) {
	id, ok := m.leases.id(s)
	if !ok || !m.leases.at(id).peer {
		return Lease{}, false
	}
	return m.leases.at(id).lease(), true
}

// settle judges all that were touched anew.
func (m *Mirror) settle(touched touched) {
	for key, was := range touched {
		if was != nil {
			m.peers--
		}
		if m.judge(key.subnets()) {
			m.peers++
		}
	}
}

func (m *Mirror) deltas(touched touched) []Delta {
	m.settle(touched)
	out := make([]Delta, 0, len(touched))
	for _, key := range slices.SortedFunc(maps.Keys(touched), leaseKey.compare) {
		var before Lease
		if was := touched[key]; was != nil {
			before = *was
		}
		if after, _ := m.peer(key.subnets()); !before.SameContent(after) {
			out = append(out, Delta{Before: before, After: after})
		}
	}
	return out
}

// judge notes whether the lease at s is a peer, which it returns, or whether and
// why it is refused. The node's own is a problem only where an older one has what it
// claims; a reservation that waits for its node is none.
func (m *Mirror) judge(s Subnets) (peer bool) {
	why := ""
	if id, ok := m.leases.id(s); ok {
		at := m.leases.at(id)
		err := m.rivalry(id)
		if !at.own && !at.sound {
			err = m.sound(at.lease())
		}
		if peer = !at.own && err == nil; err != nil && !(at.id == 0 && at.backend.Value() == "") {
			why = err.Error()
		}
		at.peer = peer
	}
	if why != "" || len(m.refused) > 0 {
		m.setRefused(s.Key(), why)
	}
	return peer
}

// All visits all peers, in no order.
func (m *Mirror) All() iter.Seq[Lease] {
	return func(yield func(Lease) bool) {
		for _, l := range m.leases.all() {
			if l.peer && !yield(l.lease()) {
				return
			}
		}
	}
}

// Peers lists all peers in the order of their subnets.
func (m *Mirror) Peers() []Lease {
	keys := make([]leaseKey, 0, m.peers)
	for _, l := range m.leases.all() {
		if l.peer {
			keys = append(keys, l.key)
		}
	}
	slices.SortFunc(keys, leaseKey.compare)
	out := make([]Lease, 0, len(keys))
	for _, key := range keys {
		id, _ := m.leases.idOf(key)
		out = append(out, m.leases.at(id).lease())
	}
	return out
}

// Own returns the node's own lease as the store has it.
func (m *Mirror) Own() (Lease, bool) {
	var own []Lease
	for _, l := range m.leases.all() {
		if l.own {
			own = append(own, l.lease())
		}
	}
	return ownLease(m.self, own)
}
