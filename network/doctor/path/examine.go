package path

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/network/doctor"
)

// Means is how a target is tried out. Both wait for an answer for as long as one may
// take, or until ctx ends, and may be called many times at once. Sizes are of IP
// packets, in bytes, which nobody may split; 0 is a small one.
type Means interface {
	// Ping asks the kernel of the peer's host by a layer; the answer has the size of the
	// request.
	Ping(ctx context.Context, by Layer, size int) (time.Duration, error)
	// Echo asks the peer's daemon by a layer for an answer by another one. A request
	// that is to be smaller than its answer is as large all the same, and may be split.
	// trouble is what the daemon says is wrong with itself.
	Echo(ctx context.Context, by, back Layer, size, answer int) (rtt time.Duration, trouble []string, err error)
}

// Errors of Means.
var (
	// ErrSilent means that nothing came back in time.
	ErrSilent = errors.New("no answer")
	// ErrRefused means that the peer's host says that nobody listens there.
	ErrRefused = errors.New("nobody listens there")
	// ErrUnresolved means that this host has a way, and that whom it would hand the
	// packet to, the peer's host or a router, does not answer on the link.
	ErrUnresolved = errors.New("no answer to ARP or neighbour discovery")
	// ErrUnreachable means that a host says that there is no way.
	ErrUnreachable = errors.New("no way there")
)

// TooLargeError means that this host does not send a packet for its size.
type TooLargeError struct {
	// MTU is what it sends, in bytes, 0 where the kernel does not say.
	MTU int
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("packet is larger than the MTU of %d bytes", e.MTU)
}

// How a target is tried out.
const (
	pings, pingEvery  = 10, 30 * time.Millisecond
	echoes, echoEvery = 3, 100 * time.Millisecond
	// sizeTries is how many packets of a size are sent, all of which are lost where the
	// size is.
	sizeTries = 3
	// settleFor is for how long a path that is not well is tried again, settleEvery
	// between two tries: a daemon that is restarted, or a link that comes up, is no
	// finding.
	settleFor, settleEvery = 6 * time.Second, time.Second
	// examineLimit is what all of it takes at most: the last try begins after six seconds
	// and takes two, and to find the largest packet that passes takes three more.
	examineLimit = 11 * time.Second
)

// Examine tries a target out until it is well, or has been tried long enough, and
// judges what it saw last. It ends within eleven seconds, whatever answers or does not.
func Examine(ctx context.Context, t Target, m Means) (verdicts []doctor.Verdict) {
	ctx, cancel := context.WithTimeout(ctx, examineLimit)
	defer cancel()
	until := time.Now().Add(settleFor)
	for {
		seen := look(ctx, t, m)
		if ctx.Err() != nil && verdicts != nil {
			return verdicts // What was lost may have been cut off.
		}
		verdicts = Judge(t, seen)
		if doctor.Worst(verdicts) < doctor.Warning {
			return verdicts
		}
		if !time.Now().Before(until) {
			if seen.short(t) {
				narrow(ctx, t, m, &seen)
				verdicts = Judge(t, seen)
			}
			return verdicts
		}
		pause := time.NewTimer(settleEvery)
		select {
		case <-ctx.Done():
			pause.Stop()
			return verdicts
		case <-pause.C:
		}
	}
}

// look tries a target out once.
func look(ctx context.Context, t Target, m Means) Seen {
	var s Seen
	var mu sync.Mutex // For Trouble.
	var group errgroup.Group
	layers := []Layer{Underlay}
	if t.hasOverlay() {
		layers = append(layers, Overlay)
	}
	for _, by := range layers {
		group.Go(func() error {
			s.Pings[by] = repeat(ctx, pings, pingEvery, func() (time.Duration, error) { return m.Ping(ctx, by, 0) })
			return nil
		})
		for _, back := range layers {
			if t.EchoPort == 0 {
				continue
			}
			group.Go(func() error {
				s.Echoes[by][back] = repeat(ctx, echoes, echoEvery, func() (time.Duration, error) {
					rtt, trouble, err := m.Echo(ctx, by, back, 0, 0)
					if err == nil {
						mu.Lock()
						defer mu.Unlock()
						s.Trouble = trouble
					}
					return rtt, err
				})
				return nil
			})
		}
	}
	_ = group.Wait() // They return none.
	if s.carries(Overlay) {
		full(ctx, t, m, &s)
	}
	return s
}

// repeat asks several times, not waiting for one answer before the next request.
func repeat(ctx context.Context, times int, every time.Duration, ask func() (time.Duration, error)) (o Outcome) {
	type result struct {
		rtt time.Duration
		err error
	}
	results := make(chan result, times)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := range times {
		if i > 0 {
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
		go func() {
			rtt, err := ask()
			results <- result{rtt, err}
		}()
	}
	for range times {
		r := <-results
		o.Sent++
		reply := replyOf(r.err)
		switch {
		case reply == Answered && (o.Back == 0 || r.rtt < o.RTT):
			o.RTT = r.rtt
			fallthrough
		case reply == Answered:
			o.Back++
			o.Reply, o.Detail = Answered, ""
		case o.Reply != Answered && (o.Reply == Unasked || o.Reply == Silent || o.Reply == Unresolved && reply != Silent):
			o.Reply = reply
			if reply == Unreachable || reply == Unresolved {
				o.Detail = r.err.Error()
			}
		}
	}
	return o
}

func replyOf(err error) Reply {
	switch {
	case err == nil:
		return Answered
	case errors.Is(err, ErrRefused):
		return Refused
	case errors.Is(err, ErrUnresolved):
		return Unresolved
	case errors.Is(err, ErrSilent), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Silent
	}
	return Unreachable
}
