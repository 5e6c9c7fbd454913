package path

// Way says whether packets get through one layer in one direction.
type Way int

// What can be known of a way.
const (
	Unknown Way = iota
	Works
	Broken
)

// ways are those of both layers, by layer and direction.
type ways [2][2]Way

// deduce finds out which ways work from requests that went by one layer and whose
// answers were to come by another. An answer shows two ways to work; where one of two
// is known to work and there is no answer, the other one is broken. A refusal is the
// host's own, which has no thought of the other layer: it comes back by the one of the
// request. Where nothing is answered at all silence tells nothing: there may be nobody who
// answers.
func deduce(echoes [2][2]Outcome) (w ways) {
	each := func(learn func(reply Reply, out, back *Way)) {
		for there := range echoes {
			for here, o := range echoes[there] {
				if o.Reply == Refused {
					here = there
				}
				learn(o.Reply, &w[there][Out], &w[here][Back])
			}
		}
	}
	each(func(reply Reply, out, back *Way) {
		if reply == Answered || reply == Refused {
			*out, *back = Works, Works
		}
	})
	if !(Seen{Echoes: echoes}).answered() {
		return w // Nobody listens, and nobody has to say so.
	}
	each(func(reply Reply, out, back *Way) {
		switch {
		case reply == Answered || reply == Refused || reply == Unasked:
		case *out == Works && *back == Unknown:
			*back = Broken
		case *back == Works && *out == Unknown:
			*out = Broken
		}
	})
	return w
}

// answered tells whether the peer's daemon answered at all.
func (s Seen) answered() bool {
	for _, from := range s.Echoes {
		for _, o := range from {
			if o.Reply == Answered {
				return true
			}
		}
	}
	return false
}

// refused tells whether the peer's host said that no daemon is there. It says so of a
// part of the requests only: ICMP is held back (icmp_ratelimit).
func (s Seen) refused() bool {
	return s.refusedBy(Underlay) || s.refusedBy(Overlay)
}

// refusedBy tells it of the requests by one layer.
func (s Seen) refusedBy(l Layer) bool {
	return s.Echoes[l][Underlay].Reply == Refused || s.Echoes[l][Overlay].Reply == Refused
}

// heard tells whether anything at all came from the peer's host by a layer.
func (s Seen) heard(l Layer) bool {
	return s.Pings[l].Reply == Answered || s.Echoes[l][l].Reply == Answered || s.Echoes[l.other()][l].Reply == Answered || s.refusedBy(l)
}

// carries tells whether a layer takes packets there and back.
func (s Seen) carries(l Layer) bool {
	return s.Pings[l].Reply == Answered || s.Echoes[l][l].Reply == Answered || s.refusedBy(l)
}
