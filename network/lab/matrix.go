package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/ripstop-net/ripstop/network/ping"
	"github.com/ripstop-net/ripstop/subnet"
)

// Pair is what one pod found when it called another.
type Pair struct {
	From, To *Pod
	Family   subnet.Family
	// RTT is the time until the answer; Err is set where there was none.
	RTT time.Duration
	Err error
}

// Matrix is who reaches whom.
type Matrix struct {
	Pairs []Pair
	// Took is the time until the last pair talked, or was given up.
	Took time.Duration
}

// Err is nil if every pair talked; otherwise it names those that did not, the
// first few of them.
func (m Matrix) Err() error {
	const named = 6
	var who []string
	silent := 0
	for _, p := range m.Pairs {
		if p.Err == nil {
			continue
		}
		if silent++; silent <= named {
			who = append(who, fmt.Sprintf("%s to %s at %s: %v", p.From.Name, p.To.Name, p.To.Addresses[p.Family], p.Err))
		}
	}
	if silent == 0 {
		return nil
	}
	if silent > named {
		who = append(who, fmt.Sprintf("and %d more", silent-named))
	}
	return fmt.Errorf("%d of %d pairs do not talk: %s", silent, len(m.Pairs), strings.Join(who, "; "))
}

// atOnce bounds the pods that call at the same time.
const atOnce = 32

// A round of calls is waited for so long before the silent are called again,
// each time twice as long; the last one for lastRound, as nobody is called again.
const (
	firstRound   = 50 * time.Millisecond
	longestRound = time.Second
	lastRound    = 3 * time.Second
)

// Matrix lets every pod call every other in every family, again and again until
// it answers or patience is over. Without patience each is called once.
func (l *Lab) Matrix(ctx context.Context, patience time.Duration) (Matrix, error) {
	began := time.Now()
	pods := l.Pods()
	var m Matrix
	var tasks [][]*Pair
	total := len(l.Families()) * len(pods) * (len(pods) - 1)
	m.Pairs = make([]Pair, 0, total) // Pointers into it are kept below.
	for _, f := range l.Families() {
		for _, from := range pods {
			var task []*Pair
			for _, to := range pods {
				if from != to {
					m.Pairs = append(m.Pairs, Pair{From: from, To: to, Family: f})
					task = append(task, &m.Pairs[len(m.Pairs)-1])
				}
			}
			if len(task) > 0 {
				tasks = append(tasks, task)
			}
		}
	}
	errs := make([]error, len(tasks))
	ended := make([]time.Time, len(tasks))
	slots := make(chan struct{}, atOnce)
	var group sync.WaitGroup
	for i, task := range tasks {
		group.Go(func() {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				errs[i] = ctx.Err()
				return
			}
			ended[i], errs[i] = callAll(ctx, task, began.Add(patience))
			<-slots
		})
	}
	group.Wait()
	for _, at := range ended {
		m.Took = max(m.Took, at.Sub(began))
	}
	return m, errors.Join(errs...)
}

// callAll fills in the pairs of one pod and family. It returns when the last of
// them talked or was given up.
func callAll(ctx context.Context, pairs []*Pair, deadline time.Time) (time.Time, error) {
	from := pairs[0].From
	own := from.Addresses[pairs[0].Family]
	s, err := openPing(ctx, from.Namespace, own, own, PingOptions{})
	if err != nil {
		return time.Time{}, err
	}
	defer s.Close()
	defer s.Wake(ctx)()
	caller := &caller{socket: s, pairs: map[netip.Addr]*Pair{}}
	silent := pairs
	for wait := firstRound; ; wait = min(2*wait, longestRound) {
		last := !time.Now().Before(deadline)
		if last { // What comes late is no loss.
			wait = lastRound
		}
		caller.round(ctx, silent, wait)
		still := silent[:0:0]
		for _, p := range silent {
			if p.RTT == 0 {
				still = append(still, p)
			}
		}
		if silent = still; ctx.Err() != nil {
			return time.Time{}, ctx.Err()
		}
		if len(silent) == 0 || last {
			break
		}
	}
	ended := time.Now()
	for _, p := range silent {
		if p.Err == nil {
			p.Err = ping.ErrNoAnswer
		}
	}
	// The first answers took the time of neighbour discovery as well; a second
	// call of those that talk shows the path alone.
	var talking []*Pair
	for _, p := range pairs {
		if p.Err == nil {
			talking = append(talking, p)
		}
	}
	caller.round(ctx, talking, longestRound)
	return ended, ctx.Err()
}

// caller sends rounds of echo requests from one socket to many.
type caller struct {
	socket *ping.Socket
	pairs  map[netip.Addr]*Pair
	seq    uint64
}

// round calls the given pairs once and takes in answers until all have come or
// the time is over. What comes too late for its round is not counted.
func (c *caller) round(ctx context.Context, pairs []*Pair, wait time.Duration) {
	c.seq++
	sent := make(map[netip.Addr]time.Time, len(pairs))
	for _, p := range pairs {
		to := p.To.Addresses[p.Family]
		c.pairs[to] = p
		sent[to] = time.Now()
		p.Err = c.socket.Send(to, c.seq)
	}
	for deadline := time.Now().Add(wait); len(sent) > 0; {
		a, err := c.socket.Receive(ctx, deadline)
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		at, owed := sent[a.From]
		if err != nil || !owed || a.Seq != c.seq {
			continue
		}
		c.pairs[a.From].RTT, c.pairs[a.From].Err = a.At.Sub(at), nil
		delete(sent, a.From)
	}
}
