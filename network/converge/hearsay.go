package converge

import (
	"iter"
	"maps"
	"slices"

	"github.com/ripstop-net/ripstop/backend"
)

// SetCareful tells whether what is wanted is known by hearsay only, such as from
// a snapshot that may be older than the kernel's state. Then the first comparison
// adds entries of peers, and replaces and deletes none: what it finds otherwise is
// taken for the work of an earlier life that knew more. From then on both what was
// found and what was made is kept against other hands, until the loop is to be
// careful no longer.
func (l *Loop) SetCareful(careful bool) {
	l.mu.Lock()
	if l.careful != careful {
		l.recompare, l.found = true, nil
	}
	l.careful = careful
	l.mu.Unlock()
	l.wake()
}

// differ returns the ops that lead to what is wanted: of all, or of what is looked
// at. It is called with the lock.
func (p *pass) differ() []backend.Op {
	have, want := p.have, p.ledger.Want()
	if !p.whole {
		have, want = have.Pick(maps.Keys(p.look)), want.Pick(maps.Keys(p.look))
	}
	if !p.careful {
		return backend.Diff(have, want)
	}
	if p.found == nil && p.unread == none {
		p.find()
	}
	untold := p.found == nil // The mirror is in doubt: it is not known yet what there is.
	ops := backend.Diff(have, p.heed(want))
	return slices.DeleteFunc(ops, func(op backend.Op) bool {
		return op.Verb != backend.Add && ofPeer(op.Entry) && (untold || p.stranded(op.Entry))
	})
}

func ofPeer(e backend.Entry) bool { return e.Kind() > backend.KindAddress }

// stranded tells whether an entry is on a device of ours that is not wanted.
func (p *pass) stranded(e backend.Entry) bool {
	_, there := p.have.Device(e.On())
	_, wanted := p.ledger.Want().Device(e.On())
	return there && !wanted
}

// find notes what there is of peers that is not wanted so. It is called with the
// lock, in a pass that compares all.
func (p *pass) find() {
	p.found = map[backend.Entry]backend.Entry{}
	want := p.ledger.Want()
	for e := range p.have.All() {
		if ofPeer(e) && !want.Has(e) && !p.stranded(e) {
			p.found[backend.Identity(e)] = e
		}
	}
}

// heed returns what is wanted with what was found in its place. That is what is put
// back, too, where another hand deletes or replaces it, and not what is wanted: the
// earlier life that made it knew at least as much as the snapshot says, and what a
// peer has of it belongs together, as a neighbour entry needs the FDB entry of just
// its MAC. What was found of a form that we never make is no work of an earlier
// life: it is left alone as long as it stands, and then forgotten. So is a plain route,
// which needs nothing else of its peer's: it may have gone with the interface by which the
// underlay was left before, and could not be put back.
func (p *pass) heed(want *backend.State) *backend.State {
	if len(p.found) == 0 {
		return want
	}
	var ids iter.Seq[backend.Entry] = maps.Keys(p.look)
	if p.whole {
		want, ids = want.Clone(), maps.Keys(p.found)
	}
	for id := range ids {
		e, ok := p.found[id]
		switch {
		case !ok:
		case (!isOurs(e) || isPlain(e)) && !p.have.Has(e):
			delete(p.found, id)
		default:
			want.Put(e)
		}
	}
	return want
}

func isPlain(e backend.Entry) bool {
	r, ok := e.(backend.Route)
	return ok && r.Plain
}

// isOurs tells whether a peer's entry is of a form that we make.
func isOurs(e backend.Entry) bool {
	switch e := e.(type) {
	case backend.FDB:
		return e.Odd == "" && e.MAC != (backend.MAC{}) && e.MAC[0]&1 == 0
	case backend.Nexthop:
		return e.Stray == 0
	case backend.Route:
		return e == backend.Route{Dst: e.Dst, Plain: e.Plain, MTU: e.MTU, Via: e.Via} && e.Via != (backend.Nexthop{}) && e.Via.Stray == 0
	}
	return true
}

// wantAt returns what is to be there of an identity. It is called with the lock.
func (l *Loop) wantAt(id backend.Entry) (backend.Entry, bool) {
	if e, ok := l.found[id]; ok {
		return e, true
	}
	return l.ledger.Want().At(id)
}
