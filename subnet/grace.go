package subnet

import (
	"maps"
	"slices"
	"time"
)

// A store that is not the one it was, or from which most peers vanish at once,
// says more about the store than about the peers. So peers whose records are
// gone then are held for a grace time, in which their nodes claim again.

// Of at least massPeers peers more than half must go in one revision for it to be
// taken for the store's fault: nodes that leave or die have a revision each.
// A listing does not tell of revisions, so there it is half of all that went
// since the one before.
const massPeers = 10

// silence is how long the store must have said nothing for that time not to
// count as grace: a node cannot claim while the store is away. A store that is
// there gives a sign more often.
const silence = 75 * time.Second

// grace is what the mirror knows of the peers that are held.
type grace struct {
	length time.Duration // 0 for no grace at all.
	// since holds the peers that are held, and from when on. They are among
	// the mirror's leases, but come after all that have a record.
	since map[Subnets]time.Time
	// due is not after the end of the first hold.
	due time.Time
	// heard is when the store was heard last, zero for never yet.
	heard time.Time
	count Holds
}

// Holds counts peers that were held, from the mirror's beginning on.
type Holds struct {
	// Now is how many are held.
	Now int
	// Returned peers have their record again, Displaced ones gave way to
	// another's, Expired ones are gone for good.
	Returned, Displaced, Expired int
}

// Holds tells of the peers that are held.
func (m *Mirror) Holds() Holds {
	m.grace.count.Now = len(m.grace.since)
	return m.grace.count
}

// SetGrace sets how long peers are held, those included that are held by then; 0, as
// at first, is not at all.
func (m *Mirror) SetGrace(length time.Duration) {
	m.grace.length = length
	m.grace.due = time.Time{} // All that are held are looked at.
}

// Grace is how long peers are held.
func (m *Mirror) Grace() time.Duration { return m.grace.length }

func (m *Mirror) held(s Subnets) bool {
	_, held := m.grace.since[s]
	return held
}

// hear notes that the store was heard. Held peers are given the time back in
// which it was not.
func (m *Mirror) hear(now time.Time) {
	g := &m.grace
	gap := now.Sub(g.heard)
	switch {
	case g.heard.IsZero():
		m.renewHolds(now)
	case gap > silence:
		for s, t := range g.since {
			g.since[s] = t.Add(gap)
		}
		g.due = g.due.Add(gap)
	}
	g.heard = now
}

func (m *Mirror) renewHolds(now time.Time) {
	for s := range m.grace.since {
		m.grace.since[s] = now
	}
	m.grace.due = now.Add(m.grace.length)
}

// doubtful tells whether a change that takes the records of gone, perhaps of a
// different store, says more about the store than about them.
func (m *Mirror) doubtful(different bool, gone []Subnets) bool {
	switch {
	case m.grace.length == 0:
		return false
	case different:
		return true
	}
	peers := 0
	for _, s := range gone {
		if _, ok := m.peer(s); ok {
			peers++
		}
	}
	there := m.peers - len(m.grace.since)
	return there >= massPeers && 2*peers > there
}

// different tells whether a listing is of another store than the one before.
func (m *Mirror) different(c Change) bool {
	return c.Whole && (c.Different || m.epoch != "" && c.Epoch != m.epoch || c.Revision < m.revision ||
		slices.ContainsFunc(c.Leases, m.contradicted))
}

// contradicted tells whether a listed lease has another past than was told. All
// that was written up to the mirror's revision was told, so a record that was
// written or made by then and is otherwise than was told is that of a store with
// another history, such as one that was put back from a backup.
func (m *Mirror) contradicted(l Lease) bool {
	known, ok := m.leases.get(l.Subnets)
	bad := m.isBad(l.Subnets)
	switch {
	case !ok && !bad:
		return m.listed && l.Created <= m.revision
	case m.held(l.Subnets) || bad || known.Modified == 0: // Of the record that is there little was told.
		return false
	case l.Modified <= m.revision:
		return l.Modified != known.Modified || l.Created != known.Created || l.ID != known.ID
	}
	return l.Created <= m.revision && l.Created != known.Created
}

// hold keeps a peer whose record is gone. What is no peer goes.
func (m *Mirror) hold(s Subnets, now time.Time, touched touched) {
	l, ok := m.peer(s)
	if !ok {
		m.set(s, Lease{}, touched)
		return
	}
	g := &m.grace
	if len(g.since) == 0 { // Those held before are due no later.
		g.due = now.Add(g.length)
	}
	g.since[s] = now
	m.set(s, l, touched) // Now behind all that have a record.
}

// giveWay ends the holds of peers whose subnet or MAC somebody's record claims:
// that of touched leases alone can have changed.
func (m *Mirror) giveWay(touched touched) {
	var out []Subnets
	if len(m.grace.since) == 0 {
		return
	}
	for key := range touched {
		s := key.subnets()
		if !m.held(s) {
			continue
		}
		id, _ := m.leases.id(s)
		var room [maxClaims]claim
		for _, c := range m.claimsOf(room[:0], m.leases.at(id)) {
			if first, _ := m.claims.of(c); !m.held(m.leases.at(first).key.subnets()) {
				out = append(out, s)
				break
			}
		}
	}
	for _, s := range out {
		m.grace.count.Displaced++
		m.set(s, Lease{}, touched)
	}
}

// expire ends the holds whose time is over. It looks at all of them, but only
// when the first is due.
func (m *Mirror) expire(now time.Time, touched touched) {
	g := &m.grace
	if len(g.since) == 0 || now.Before(g.due) {
		return
	}
	due := now.Add(g.length)
	for s, since := range maps.Clone(g.since) {
		if end := since.Add(g.length); now.Before(end) {
			if end.Before(due) {
				due = end
			}
			continue
		}
		g.count.Expired++
		m.set(s, Lease{}, touched)
	}
	g.due = due
}
