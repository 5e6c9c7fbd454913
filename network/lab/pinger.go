package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/ripstop-net/ripstop/network/ping"
)

// PingOptions shape an echo request.
type PingOptions = ping.Options

// Ping sends one echo request from within a namespace and returns the time
// until the answer. A zero from leaves the source address to the kernel.
func Ping(ctx context.Context, ns *Namespace, from, to netip.Addr, opts PingOptions) (time.Duration, error) {
	s, err := openPing(ctx, ns, from, to, opts)
	if err != nil {
		return 0, err
	}
	rtt, err := s.Once(ctx, to)
	if err != nil {
		return 0, fmt.Errorf("from %s: %w", ns.name, err)
	}
	return rtt, nil
}

func openPing(ctx context.Context, ns *Namespace, from, to netip.Addr, opts PingOptions) (s *ping.Socket, err error) {
	err = ns.Do(func() (err error) {
		s, err = ping.Open(ctx, from, to, opts)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", ns.name, err)
	}
	return s, nil
}

// Pinger sends echo requests at a steady rate and counts what came back.
type Pinger struct {
	socket *ping.Socket
	to     netip.Addr
	stop   context.CancelFunc
	done   chan struct{}
	sent   []time.Time          // By sequence number; read once done.
	failed []error              // Requests that could not even be sent.
	got    map[uint64]time.Time // The first answer to each.
	twice  int
}

// PingReport is what a Pinger saw.
type PingReport struct {
	// Sent counts the requests, those that could not be sent included.
	Sent, Received, Lost int
	// Duplicates counts answers beyond the first to a request.
	Duplicates int
	// LongestGap is the longest time between two answers that followed one
	// another.
	LongestGap time.Duration
	// LostAt are the times after the start at which lost requests were sent.
	LostAt []time.Duration
	// Failed are the errors of requests that could not be sent.
	Failed []error
}

// String is one line for people.
func (r PingReport) String() string {
	s := fmt.Sprintf("%d sent, %d received, %d lost, longest gap %s", r.Sent, r.Received, r.Lost, r.LongestGap.Round(time.Millisecond))
	if r.Duplicates > 0 {
		s += fmt.Sprintf(", %d duplicates", r.Duplicates)
	}
	if r.Lost > 0 {
		s += fmt.Sprintf(", lost after %v", r.LostAt[:min(len(r.LostAt), 10)])
	}
	if len(r.Failed) > 0 {
		s += fmt.Sprintf(", %d not sent: %v", len(r.Failed), r.Failed[0])
	}
	return s
}

// StartPinger begins to send perSecond requests a second until Stop is called
// or ctx ends.
func StartPinger(ctx context.Context, ns *Namespace, from, to netip.Addr, perSecond int, opts PingOptions) (*Pinger, error) {
	if perSecond < 1 {
		return nil, fmt.Errorf("a pinger sends at least one request a second, not %d", perSecond)
	}
	// The socket outlives ctx by the time that stragglers are waited for.
	s, err := openPing(context.WithoutCancel(ctx), ns, from, to, opts)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &Pinger{socket: s, to: to, stop: cancel, done: make(chan struct{}), got: map[uint64]time.Time{}}
	go p.run(ctx, time.Second/time.Duration(perSecond), opts.Within())
	return p, nil
}

// run sends and receives in one goroutine: between two requests it waits for
// answers.
func (p *Pinger) run(ctx context.Context, every, stragglers time.Duration) {
	defer close(p.done)
	defer p.socket.Close()
	defer p.socket.Wake(ctx)()
	for next := time.Now(); ctx.Err() == nil; next = next.Add(every) {
		for p.receive(ctx, next) {
		}
		if ctx.Err() != nil {
			break
		}
		p.sent = append(p.sent, time.Now())
		if err := p.socket.Send(p.to, uint64(len(p.sent)-1)); err != nil {
			p.failed = append(p.failed, err)
		}
	}
	end := time.Now().Add(stragglers)
	for len(p.got)+len(p.failed) < len(p.sent) && time.Now().Before(end) {
		p.receive(context.WithoutCancel(ctx), end)
	}
}

// receive takes in one answer and tells whether there may be more before the
// deadline or the end of ctx.
func (p *Pinger) receive(ctx context.Context, deadline time.Time) bool {
	a, err := p.socket.Receive(ctx, deadline)
	if errors.Is(err, os.ErrDeadlineExceeded) || err != nil && ctx.Err() != nil {
		return false
	}
	if err != nil || a.From != p.to || a.Seq >= uint64(len(p.sent)) {
		return true
	}
	if _, again := p.got[a.Seq]; again {
		p.twice++
	} else {
		p.got[a.Seq] = a.At
	}
	return true
}

// Stop ends the sending, waits for what may still come and reports.
func (p *Pinger) Stop() PingReport {
	p.stop()
	<-p.done
	r := PingReport{Sent: len(p.sent), Received: len(p.got), Lost: len(p.sent) - len(p.got), Duplicates: p.twice, Failed: p.failed}
	var arrivals []time.Time
	for seq, at := range p.sent {
		if back, ok := p.got[uint64(seq)]; ok {
			arrivals = append(arrivals, back)
		} else {
			r.LostAt = append(r.LostAt, at.Sub(p.sent[0]))
		}
	}
	slices.SortFunc(arrivals, time.Time.Compare)
	for i := 1; i < len(arrivals); i++ {
		r.LongestGap = max(r.LongestGap, arrivals[i].Sub(arrivals[i-1]))
	}
	return r
}
