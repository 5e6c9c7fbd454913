package subnet

import (
	"cmp"
	"fmt"
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
	leases map[Subnets]Lease
	peers  int // How many of them are peers.
	grace  grace
	// claims holds who claims what only one lease may have: those with a record
	// before those that are held, oldest first.
	claims map[claim][]Subnets
	// bad are the records that could not be read and refused the leases that are
	// no peers, by key, with the reasons.
	bad, refused map[string]string
}

// claim is a thing that only one node can have: a subnet of a family, or the
// MAC of a family's device.
type claim struct {
	family Family
	subnet Subnets // one family set
	mac    MAC     // or this
}

// Delta is a peer that came (Before is zero), went (After is zero) or changed.
type Delta struct{ Before, After Lease }

// NewMirror returns an empty mirror for a node of the given identity. The
// backend's own check, which may be nil, adds to what [Config.CheckPeer] asks
// of a peer.
func NewMirror(cfg Config, self Identity, check func(Lease) error) *Mirror {
	if check == nil {
		check = func(Lease) error { return nil }
	}
	return &Mirror{
		cfg: cfg, self: self, check: check, leases: map[Subnets]Lease{}, claims: map[claim][]Subnets{},
		bad: map[string]string{}, refused: map[string]string{},
		grace: grace{since: map[Subnets]time.Time{}},
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
	touched := map[Subnets]Lease{} // Peers as they were, zero where there was none.
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
		clear(m.bad)
	}
	m.revision = c.Revision
	for _, key := range c.Gone {
		delete(m.bad, key)
	}
	for _, b := range c.Bad {
		m.bad[b.Key] = b.Reason
		if s, err := ParseKey(b.Key); err == nil && m.held(s) {
			m.back(s, m.leases[s], touched) // As any lease whose record breaks.
		}
	}
	for _, l := range c.Leases {
		delete(m.bad, l.Subnets.Key())
		m.back(l.Subnets, l, touched)
	}
	m.giveWay(touched)
	m.expire(now, touched)
	return m.deltas(touched)
}

// missing lists the leases whose records a change takes away. Those that are
// held have none that a listing could lack.
func (m *Mirror) missing(c Change) []Subnets {
	var out []Subnets
	for _, key := range c.Gone {
		if s, err := ParseKey(key); err == nil {
			if _, ok := m.leases[s]; ok {
				out = append(out, s)
			}
		}
	}
	if !c.Whole {
		return out
	}
	there := make(map[Subnets]struct{}, len(c.Leases))
	for _, l := range c.Leases {
		there[l.Subnets] = struct{}{}
	}
	for _, b := range c.Bad {
		if s, err := ParseKey(b.Key); err == nil {
			there[s] = struct{}{}
		}
	}
	for s := range m.leases {
		if _, ok := there[s]; !ok && !m.held(s) {
			out = append(out, s)
		}
	}
	return out
}

// back puts the lease of a record that is there.
func (m *Mirror) back(s Subnets, l Lease, touched map[Subnets]Lease) {
	if m.held(s) {
		m.grace.count.Returned++
		delete(m.grace.since, s)
	}
	m.set(s, l, touched)
}

// set puts a lease (or, zero, removes it) and notes in touched all whose
// verdict may change by it, with what they were.
func (m *Mirror) set(s Subnets, l Lease, touched map[Subnets]Lease) {
	old, had := m.leases[s]
	note := func(s Subnets) {
		if _, ok := touched[s]; !ok {
			touched[s], _ = m.peer(s)
		}
	}
	note(s)
	for _, c := range append(m.claimsOf(old), m.claimsOf(l)...) {
		for _, rival := range m.claims[c] {
			note(rival)
		}
	}
	if had {
		for _, c := range m.claimsOf(old) {
			m.unclaim(c, s)
		}
		delete(m.leases, s)
	}
	if l.Subnets == (Subnets{}) {
		delete(m.grace.since, s)
		return
	}
	m.leases[s] = l
	for _, c := range m.claimsOf(l) {
		m.claims[c] = append(m.claims[c], s)
		slices.SortFunc(m.claims[c], func(a, b Subnets) int {
			return cmp.Or(m.compareHeld(a, b), cmp.Compare(m.leases[a].Created, m.leases[b].Created), strings.Compare(a.Key(), b.Key()))
		})
	}
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

// claimsOf lists what a lease claims. One that is no peer by itself claims
// nothing, so that no broken record harms a sound one; the node's own lease
// claims its subnets.
func (m *Mirror) claimsOf(l Lease) []claim {
	own := m.self.Owns(l)
	if l.Subnets == (Subnets{}) || !own && m.sound(l) != nil {
		return nil
	}
	var out []claim
	for _, f := range m.cfg.Families() {
		if !l.Subnets[f].IsValid() {
			continue
		}
		var one Subnets
		one[f] = l.Subnets[f]
		out = append(out, claim{family: f, subnet: one})
		if mac := l.Endpoints[f].MAC; mac != (MAC{}) {
			out = append(out, claim{family: f, mac: mac})
		}
	}
	return out
}

func (m *Mirror) unclaim(c claim, s Subnets) {
	rest := slices.DeleteFunc(m.claims[c], func(o Subnets) bool { return o == s })
	if len(rest) == 0 {
		delete(m.claims, c)
		return
	}
	m.claims[c] = rest
}

// sound tells why a lease can be no peer, whatever other leases there are.
func (m *Mirror) sound(l Lease) error {
	if err := m.cfg.CheckPeer(m.self, l); err != nil {
		return err
	}
	return m.check(l)
}

// refusal tells why the lease at s is no peer.
func (m *Mirror) refusal(s Subnets) error {
	if err := m.sound(m.leases[s]); err != nil {
		return err
	}
	return m.rivalry(s)
}

// rivalry tells which older lease has something that the lease at s claims.
func (m *Mirror) rivalry(s Subnets) error {
	l := m.leases[s]
	for _, c := range m.claimsOf(l) {
		first := m.claims[c][0]
		if first == s {
			continue
		}
		rival := m.leases[first]
		switch {
		case c.mac == MAC{}:
			return fmt.Errorf("subnet %s is held by an older lease, %s of %s", c.subnet, first.Key(), rival.Holder())
		case rival.Endpoints[c.family].PublicIP != l.Endpoints[c.family].PublicIP:
			return fmt.Errorf("VtepMAC %s is that of another node too: %s, whose lease is older", c.mac, rival.Holder())
		}
	}
	return nil
}

// peer returns the lease at s if it is a peer.
func (m *Mirror) peer(s Subnets) (Lease, bool) {
	l, ok := m.leases[s]
	if !ok || m.self.Owns(l) || m.refusal(s) != nil {
		return Lease{}, false
	}
	return l, true
}

func (m *Mirror) deltas(touched map[Subnets]Lease) []Delta {
	var out []Delta
	for s, before := range touched {
		m.judge(s)
		after, is := m.peer(s)
		if is {
			m.peers++
		}
		if before.Subnets != (Subnets{}) {
			m.peers--
		}
		if !before.SameContent(after) {
			out = append(out, Delta{Before: before, After: after})
		}
	}
	slices.SortFunc(out, func(a, b Delta) int { return compareSubnets(a.subnets(), b.subnets()) })
	return out
}

// judge notes whether and why the lease at s is refused. The node's own is a
// problem only where an older one has what it claims; a reservation that waits
// for its node is none.
func (m *Mirror) judge(s Subnets) {
	delete(m.refused, s.Key())
	l, ok := m.leases[s]
	if !ok || l.Reservation() && l.Backend == "" {
		return
	}
	refusal := m.refusal
	if m.self.Owns(l) {
		refusal = m.rivalry
	}
	if err := refusal(s); err != nil {
		m.refused[s.Key()] = err.Error()
	}
}

func (d Delta) subnets() Subnets {
	if d.After.Subnets == (Subnets{}) {
		return d.Before.Subnets
	}
	return d.After.Subnets
}

func compareSubnets(a, b Subnets) int {
	for _, f := range Families {
		if c := cmp.Or(a[f].Addr().Compare(b[f].Addr()), cmp.Compare(a[f].Bits(), b[f].Bits())); c != 0 {
			return c
		}
	}
	return 0
}

// Peers lists all peers in the order of their subnets.
func (m *Mirror) Peers() []Lease {
	var out []Lease
	for s := range m.leases {
		if l, ok := m.peer(s); ok {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Lease) int { return compareSubnets(a.Subnets, b.Subnets) })
	return out
}

// Own returns the node's own lease as the store has it.
func (m *Mirror) Own() (Lease, bool) {
	return ownLease(m.self, slices.Collect(maps.Values(m.leases)))
}

// Problems says which records are passed over, by key, and why. It costs as
// much as there are problems.
func (m *Mirror) Problems() map[string]string {
	out := maps.Clone(m.refused)
	maps.Copy(out, m.bad)
	return out
}
