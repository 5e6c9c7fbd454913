package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// DefaultInterval is the time between two turns.
const DefaultInterval = 30 * time.Second

const (
	// perTurn is how many peers each turn asks.
	perTurn = 3
	// More are asked at once where none of a turn's answers: nearly nobody answers if
	// none of these does, or one.
	toBeSure = 5
	// againPerTurn bounds those that are asked again at once.
	againPerTurn = 8
	// answerWithin is what a question has for its answer, and questions how many there
	// are, one after another, before a peer counts as not answering.
	answerWithin = time.Second
	questions    = 3
)

// bounds are those of the buckets of round trips, in seconds.
var bounds = [...]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1}

// Prober asks peers in turn whether they can be reached. What it costs does not grow
// with their number: each turn asks a few.
type Prober struct {
	every    time.Duration
	families []subnet.Family
	here     Here
	peers    Peers
	log      *zap.Logger
	ask      func(context.Context, Question) (Answer, error)
	within   time.Duration

	turns turns

	mu      sync.Mutex
	layers  PerLayer[tally]
	silents silents
}

// tally counts what came of questions.
type tally struct {
	asked, lost uint64
	count       uint64
	sum         time.Duration
	buckets     [len(bounds)]uint64
}

// NewProber makes a prober. Nothing happens before Run.
func NewProber(every time.Duration, families []subnet.Family, here Here, peers Peers, log *zap.Logger) *Prober {
	return &Prober{
		every: every, families: families, here: here, peers: peers, log: log, within: answerWithin,
		silents: silents{log: log, first: min(every, firstPause), of: map[suspect]*silence{}},
	}
}

// Report tells what came of it. It does not wait for anything.
func (p *Prober) Report() (out status.Probing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out.EverySeconds = p.every.Seconds()
	for _, l := range Layers {
		t := &p.layers[l]
		layer := status.ProbedLayer{Layer: l.String(), Asked: t.asked, Lost: t.lost, RoundTrips: status.Times{Count: t.count, Sum: t.sum.Seconds()}}
		for i, b := range bounds {
			layer.RoundTrips.Buckets = append(layer.RoundTrips.Buckets, status.Bucket{Within: b, Count: t.buckets[i]})
		}
		out.Layers = append(out.Layers, layer)
	}
	out.Silent, out.Unnamed, out.CutOff = p.silents.report(), p.silents.unnamed, p.silents.cutOff
	return out
}

// Run asks until ctx ends, which returns nil.
func (p *Prober) Run(ctx context.Context) error {
	if p.ask == nil {
		a, err := OpenAsker(ctx, p.families...)
		if err != nil {
			p.log.Warn("peers are not asked whether they can be reached", zap.Error(err))
			return nil // Pods do not need it.
		}
		defer func() { _ = a.Close() }()
		p.ask = a.Ask
	}
	// Nodes that start together do not ask together.
	turn := time.Now().Add(rand.N(p.every))
	for ctx.Err() == nil {
		now := time.Now()
		if !now.Before(turn) {
			p.turn(ctx)
			turn = now.Add(p.every*9/10 + rand.N(p.every/5+1))
		}
		p.again(ctx, time.Now())
		p.mu.Lock()
		next := p.silents.next()
		p.mu.Unlock()
		if next.IsZero() || next.After(turn) {
			next = turn
		}
		wait(ctx, time.Until(next))
	}
	return nil
}

// turn asks the next peers.
func (p *Prober) turn(ctx context.Context) {
	asked := p.turns.next(p.peers, perTurn)
	found := p.all(ctx, asked, Layers[:])
	answered := count(found)
	if len(asked) == perTurn && answered == 0 {
		more := p.turns.next(p.peers, toBeSure)
		asked = append(asked, more...)
		beyond := p.all(ctx, more, Layers[:])
		found = append(found, beyond...)
		answered += count(beyond)
	}
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	was := !p.silents.cutOff.IsZero()
	if off := len(asked) >= perTurn && answered <= 1; off || answered > 1 {
		p.silents.cut(now, off, len(asked))
	}
	p.note(now, found, was)
}

// again asks those that did not answer and are due.
func (p *Prober) again(ctx context.Context, now time.Time) {
	p.mu.Lock()
	due := p.silents.due(now, againPerTurn)
	at := make([]netip.Addr, len(due))
	for i, s := range due {
		at[i] = p.silents.of[s].at
	}
	p.mu.Unlock()
	var results []finding
	var mu sync.Mutex
	var group errgroup.Group
	for i, s := range due {
		l, ok := p.here.Peer(s.layer, at[i])
		if !ok || l.Subnets != s.subnets || l.EchoPort == 0 || !p.here.Own(s.layer, subnet.FamilyOf(at[i])).IsValid() {
			p.mu.Lock()
			p.silents.over(now, s, "peer that did not answer is not asked any more: it is gone, has another address or does not answer anybody")
			p.mu.Unlock()
			continue
		}
		group.Go(func() error {
			found := p.all(ctx, []subnet.Lease{l}, []Layer{s.layer})
			mu.Lock()
			defer mu.Unlock()
			results = append(results, found...)
			return nil
		})
	}
	_ = group.Wait()
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	was := !p.silents.cutOff.IsZero()
	if count(results) > 0 {
		p.silents.cut(time.Now(), false, 0)
	}
	p.note(time.Now(), results, was)
}

// note takes in findings. Those of a time in which the node was found to be cut off no
// more say nothing of who did not answer: they are asked again. mu is held.
func (p *Prober) note(now time.Time, found []finding, wasCutOff bool) {
	over := wasCutOff && p.silents.cutOff.IsZero()
	for _, f := range found {
		if f.err == nil || !over {
			p.silents.note(now, f.lease, f.layer, f.at, f.err)
		}
	}
}

// finding is what came of asking a peer on a layer, in all families that both have.
type finding struct {
	lease subnet.Lease
	layer Layer
	at    netip.Addr
	err   error
}

// count is the number of answers.
func count(found []finding) (n int) {
	for _, f := range found {
		if f.err == nil {
			n++
		}
	}
	return n
}

// all asks peers at once.
func (p *Prober) all(ctx context.Context, peers []subnet.Lease, layers []Layer) []finding {
	var out []finding
	var mu sync.Mutex
	var group errgroup.Group
	for _, l := range peers {
		for _, layer := range layers {
			group.Go(func() error {
				f := finding{lease: l, layer: layer}
				for _, family := range p.families {
					from, to := p.here.Own(layer, family), layer.Address(family, l)
					if !from.IsValid() || !to.IsValid() {
						continue
					}
					f.at = to
					if err := p.one(ctx, Question{From: from, To: to, Port: l.EchoPort, Layer: layer}); err != nil && f.err == nil {
						f.err = fmt.Errorf("%s: %w", family, err)
						if what := p.peers.Obstacle(ctx, l, family); what != "" {
							f.err = fmt.Errorf("%w: %s", f.err, what)
						}
					}
				}
				if !f.at.IsValid() {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				out = append(out, f)
				return nil
			})
		}
	}
	_ = group.Wait()
	return out
}

// errNoAnswer is that of a peer that says nothing.
var errNoAnswer = errors.New("no answer")

// one asks a peer up to some times, each a second after the one before, so that a
// daemon that is started again has answered meanwhile.
func (p *Prober) one(ctx context.Context, q Question) (err error) {
	for range questions {
		limited, cancel := context.WithTimeout(ctx, p.within)
		var got Answer
		if got, err = p.ask(limited, q); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			<-limited.Done()
		}
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p.tally(q.Layer, got.RTT, err)
		if err == nil {
			return nil
		}
	}
	var said *NetworkError
	if errors.As(err, &said) {
		return said
	}
	return errNoAnswer
}

func (p *Prober) tally(l Layer, rtt time.Duration, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := &p.layers[l]
	t.asked++
	if err != nil {
		t.lost++
		return
	}
	t.count++
	t.sum += rtt
	for i, b := range bounds {
		if rtt.Seconds() <= b {
			t.buckets[i]++
		}
	}
}
