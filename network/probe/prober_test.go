package probe

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// crowd is a node among many peers, whose answers are the test's.
type crowd struct {
	self  subnet.Lease
	peers []subnet.Lease
	index map[netip.Addr]int

	mu     sync.Mutex
	asked  map[netip.Addr]int
	silent func(Question) error // nil answers.

	obstacles map[netip.Addr]string
}

func newCrowd(n int) *crowd {
	c := &crowd{index: map[netip.Addr]int{}, asked: map[netip.Addr]int{}}
	lease := func(i int) subnet.Lease {
		hi, lo := byte(i>>8), byte(i)
		return subnet.Lease{
			Node: fmt.Sprint("node", i), EchoPort: testPort, Subnets: subnet.Subnets{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, hi, lo, 0}), 24)},
			Endpoints: subnet.PerFamily[subnet.Endpoint]{{PublicIP: netip.AddrFrom4([4]byte{172, 16, hi, lo})}},
		}
	}
	c.self = lease(1<<16 - 1)
	for i := range n {
		l := lease(i)
		c.peers = append(c.peers, l)
		c.index[l.Endpoints[0].PublicIP], c.index[l.Subnets[0].Addr()] = i, i
	}
	return c
}

func (c *crowd) Own(l Layer, f subnet.Family) netip.Addr { return l.Address(f, c.self) }
func (c *crowd) Trouble() Trouble                        { return 0 }
func (c *crowd) Obstacle(_ context.Context, l subnet.Lease, f subnet.Family) string {
	return c.obstacles[l.Endpoints[f].PublicIP]
}
func (c *crowd) Bound() int { return len(c.peers) }

func (c *crowd) At(n int) (subnet.Lease, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peers[n], c.peers[n].Node != ""
}

func (c *crowd) Peer(_ Layer, a netip.Addr) (subnet.Lease, bool) {
	i, ok := c.index[a]
	l, there := c.At(i)
	return l, ok && there
}

func (c *crowd) ask(ctx context.Context, q Question) (Answer, error) {
	c.mu.Lock()
	c.asked[q.To]++
	silent := c.silent
	c.mu.Unlock()
	if silent != nil {
		if err := silent(q); err != nil {
			if err == context.DeadlineExceeded {
				<-ctx.Done()
			}
			return Answer{}, err
		}
	}
	return Answer{RTT: 300 * time.Microsecond}, nil
}

func (c *crowd) refuse(f func(Question) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.silent = f
}

// probing runs a prober in a bubble of time.
func probing(t *testing.T, c *crowd, every time.Duration, do func(p *Prober, logs *observer.ObservedLogs)) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zapcore.InfoLevel)
		p := NewProber(every, []subnet.Family{subnet.V4}, c, c, zap.New(core))
		p.ask = c.ask
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		do(p, logs)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestEachPeersTurnComes: once in a round, whatever is nobody's number.
func TestEachPeersTurnComes(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 7, 100, 10_000} {
		c := newCrowd(n)
		holes := 0
		for i := 5; i < n; i += 7 {
			c.peers[i], holes = subnet.Lease{}, holes+1
		}
		if n > 20 {
			c.peers[1].EchoPort = 0 // A flannel's.
			holes++
		}
		var turns turns
		for round := range 2 {
			seen := map[string]int{}
			for count := 0; count < n-holes; {
				got := turns.next(c, perTurn)
				if len(got) == 0 {
					continue
				}
				for _, l := range got {
					seen[l.Node]++
				}
				count += len(got)
			}
			if len(seen) != n-holes {
				t.Errorf("of %d, %d have had their turn in round %d, want %d", n, len(seen), round, n-holes)
			}
		}
	}
	var turns turns
	if got := turns.next(newCrowd(0), 3); len(got) != 0 {
		t.Errorf("nobody is %v", got)
	}
}

// TestProbingDoesNotGrowWithPeers: among 10,000 an hour takes as many questions as
// among 10, and finds one that is silent once its turn comes.
func TestProbingDoesNotGrowWithPeers(t *testing.T) {
	for _, n := range []int{10, 10_000} {
		c := newCrowd(n)
		probing(t, c, 30*time.Second, func(p *Prober, _ *observer.ObservedLogs) {
			time.Sleep(time.Hour)
			s := p.Report()
			least := uint64(100 * n / ((n + perTurn - 1) / perTurn)) // A round's last turn has whoever is left.
			for _, l := range s.Layers {
				if l.Asked < least || l.Asked > 125*perTurn+10 || l.Lost != 0 || l.RoundTrips.Count != l.Asked || l.RoundTrips.Buckets[1].Count != 0 || l.RoundTrips.Buckets[2].Count != l.Asked {
					t.Errorf("among %d: %+v", n, l)
				}
			}
		})
	}
}

// TestSilentPeersAreNamedOnce: on the layer that is broken, once when it begins and
// once when it is over.
func TestSilentPeersAreNamedOnce(t *testing.T) {
	c := newCrowd(10)
	bad := c.peers[4]
	c.obstacles = map[netip.Addr]string{bad.Endpoints[0].PublicIP: "a wall", c.peers[5].Endpoints[0].PublicIP: "a fence"}
	probing(t, c, 10*time.Second, func(p *Prober, logs *observer.ObservedLogs) {
		c.refuse(func(q Question) error {
			if q.To == bad.Subnets[0].Addr() {
				return &NetworkError{Errno: unix.EHOSTUNREACH}
			}
			return nil
		})
		time.Sleep(10 * time.Minute)
		s := p.Report()
		if len(s.Silent) != 1 || s.Silent[0].Node != bad.Node || s.Silent[0].Layer != "overlay" || s.Silent[0].Asked < 3 || !strings.HasSuffix(s.Silent[0].Reason, ": a wall") || !s.CutOff.IsZero() {
			t.Errorf("silent are %+v", s.Silent)
		}
		if got := logs.FilterMessageSnippet("does not answer").Len(); got != 1 || logs.Len() != 1 {
			t.Errorf("%d lines, %d of them that it does not answer: %v", logs.Len(), got, logs.All())
		}
		c.refuse(nil)
		time.Sleep(10 * time.Minute)
		if s := p.Report(); len(s.Silent) != 0 || logs.FilterMessage("peer answers again").Len() != 1 || logs.Len() != 2 {
			t.Errorf("silent are %+v, lines %v", s.Silent, logs.All())
		}
	})
}

// TestShortSilenceIsNotNamed: that of a daemon that is started again.
func TestShortSilenceIsNotNamed(t *testing.T) {
	c := newCrowd(2)
	probing(t, c, 5*time.Second, func(p *Prober, logs *observer.ObservedLogs) {
		for range 100 {
			c.refuse(func(Question) error { return &NetworkError{Errno: unix.ECONNREFUSED} })
			time.Sleep(4 * time.Second)
			c.refuse(nil)
			time.Sleep(20 * time.Second)
		}
		if s := p.Report(); len(s.Silent) != 0 || logs.Len() != 0 || s.Layers[0].Lost == 0 {
			t.Errorf("after restarts %+v, lines %v", s, logs.All())
		}
	})
}

// TestSilentPeersAreBounded: of many that are silent on one layer so many are named,
// and who leaves is forgotten.
func TestSilentPeersAreBounded(t *testing.T) {
	c := newCrowd(500)
	probing(t, c, time.Second, func(p *Prober, logs *observer.ObservedLogs) {
		c.refuse(func(q Question) error {
			if q.Layer == Overlay {
				return context.DeadlineExceeded
			}
			return nil
		})
		time.Sleep(time.Hour)
		s := p.Report()
		if len(s.Silent) != mostSilent || s.Unnamed == 0 || !s.CutOff.IsZero() || logs.Len() != mostSilent {
			t.Errorf("%d are named, %d times others, %d lines", len(s.Silent), s.Unnamed, logs.Len())
		}
		for i := range c.peers {
			c.mu.Lock()
			c.peers[i] = subnet.Lease{}
			c.mu.Unlock()
		}
		time.Sleep(time.Hour)
		if s := p.Report(); len(s.Silent) != 0 {
			t.Errorf("%d that are gone are named", len(s.Silent))
		}
	})
}

// TestCutOffNodeSaysSoOnce, instead of naming each.
func TestCutOffNodeSaysSoOnce(t *testing.T) {
	c := newCrowd(100)
	probing(t, c, 10*time.Second, func(p *Prober, logs *observer.ObservedLogs) {
		c.refuse(func(Question) error { return context.DeadlineExceeded })
		time.Sleep(20 * time.Minute)
		if s := p.Report(); s.CutOff.IsZero() || logs.Len() != 1 || logs.All()[0].Level != zapcore.ErrorLevel {
			t.Errorf("cut off since %s, lines %v", s.CutOff, logs.All())
		}
		c.refuse(nil)
		time.Sleep(20 * time.Minute)
		if s := p.Report(); !s.CutOff.IsZero() || len(s.Silent) != 0 || logs.Len() != 2 {
			t.Errorf("when it is over: %+v, lines %v", s, logs.All())
		}
	})
}

// BenchmarkTurn is what a turn of 30 seconds takes of the prober itself, the sockets
// apart.
func BenchmarkTurn(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			c := newCrowd(n)
			p := NewProber(DefaultInterval, []subnet.Family{subnet.V4}, c, c, zap.NewNop())
			p.ask = c.ask
			for b.Loop() {
				p.turn(b.Context())
			}
		})
	}
}
