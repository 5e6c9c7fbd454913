package probe

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// Peers that do not answer are asked again: first soon, since a daemon may just be
// starting, then ever more seldom. So many are kept.
const (
	firstPause  = 5 * time.Second
	longestWait = 5 * time.Minute
	mostSilent  = 64
)

// suspect is a peer that did not answer on a layer.
type suspect struct {
	subnets subnet.Subnets
	layer   Layer
}

// silence is what is known of a suspect. It is named once it did not answer again.
type silence struct {
	node   string
	at     netip.Addr // Of the peer's on the layer.
	since  time.Time
	asked  int
	reason string
	pause  time.Duration
	again  time.Time
	said   bool
}

func (k *silence) named() bool { return k.asked > 1 }

// silents are all suspects. It is a value of one goroutine at a time.
type silents struct {
	log     *zap.Logger
	first   time.Duration // The first pause.
	of      map[suspect]*silence
	unnamed uint64
	// cutOff is since when nearly nobody answers: then each by itself is no news.
	cutOff time.Time
}

// note takes in what came of asking a peer on a layer, nil for an answer.
func (s *silents) note(now time.Time, l subnet.Lease, layer Layer, at netip.Addr, err error) {
	key := suspect{l.Subnets, layer}
	known := s.of[key]
	if err == nil {
		if known != nil {
			s.over(now, key, "peer answers again")
		}
		return
	}
	if known == nil {
		if len(s.of) >= mostSilent {
			s.unnamed++
			return
		}
		known = &silence{node: l.Node, at: at, since: now, pause: s.first / 2}
		s.of[key] = known
	}
	known.asked, known.reason = known.asked+1, err.Error()
	known.pause = min(2*known.pause, longestWait)
	known.again = now.Add(known.pause)
	if known.named() && !known.said && s.cutOff.IsZero() {
		known.said = true
		s.log.Warn("peer does not answer: 'ripstop doctor --peer' with its name looks why", known.fields(key)...)
	}
}

func (k *silence) fields(key suspect) []zap.Field {
	return []zap.Field{
		zap.String("peer", k.node), zap.Stringer("subnets", key.subnets), zap.Stringer("layer", key.layer), zap.Time("since", k.since), zap.String("reason", k.reason),
	}
}

// over forgets a suspect, and says so if it was said that it is one.
func (s *silents) over(now time.Time, key suspect, what string) {
	known := s.of[key]
	delete(s.of, key)
	if known.said {
		s.log.Info(what, zap.String("peer", known.node), zap.Stringer("subnets", key.subnets), zap.Stringer("layer", key.layer), zap.Duration("after", now.Sub(known.since)))
	}
}

// due lists whom to ask again by now, the longest due first, at most so many.
func (s *silents) due(now time.Time, most int) []suspect {
	var out []suspect
	for key, k := range s.of {
		if !k.again.After(now) {
			out = append(out, key)
		}
	}
	slices.SortFunc(out, func(a, b suspect) int { return s.of[a].again.Compare(s.of[b].again) })
	return out[:min(most, len(out))]
}

// next is when the next of them is due; the zero Time if there is none.
func (s *silents) next() (at time.Time) {
	for _, k := range s.of {
		if at.IsZero() || k.again.Before(at) {
			at = k.again
		}
	}
	return at
}

// cut notes whether nearly nobody answers of so many that were asked.
func (s *silents) cut(now time.Time, off bool, asked int) {
	switch {
	case off && s.cutOff.IsZero():
		s.cutOff = now
		s.log.Error("peers do not answer, neither on the underlay nor on the overlay: this node may be cut off, or UDP be blocked; 'ripstop doctor' looks why", zap.Int("peers_asked", asked))
	case !off && !s.cutOff.IsZero():
		s.log.Info("peers answer again", zap.Duration("after", now.Sub(s.cutOff)))
		s.cutOff = time.Time{}
	}
}

// report lists those that are named, the longest silent first.
func (s *silents) report() []status.SilentPeer {
	var out []status.SilentPeer
	for key, k := range s.of {
		if !k.named() {
			continue
		}
		p := status.SilentPeer{Node: k.node, Layer: key.layer.String(), Since: k.since, Asked: k.asked, Reason: k.reason}
		for _, s := range key.subnets {
			if s.IsValid() {
				p.Subnets = append(p.Subnets, s)
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b status.SilentPeer) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Layer, b.Layer))
	})
	return out
}
