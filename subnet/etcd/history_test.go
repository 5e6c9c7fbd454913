package etcd

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

var historySeed = flag.Uint64("history.seed", 0, "seed of the claimants' lives, 0 for one of the clock's; it fixes what each decides, not who is faster")

// historyEvent is one write or deletion of a record, as the store tells of it.
type historyEvent struct {
	revision int64
	key      string
	node     string // "" for a deletion.
}

func (e historyEvent) String() string {
	if e.node == "" {
		return fmt.Sprintf("%d: %s is gone", e.revision, e.key)
	}
	return fmt.Sprintf("%d: %s is %s's", e.revision, e.key, e.node)
}

// historyFaults walks through the store's own history from its beginning and
// tells where, once a revision is complete, two nodes hold subnets that overlap
// in any family, or a node holds two records. A node that is settled, from the
// given write on, never has another subnet in the whole history.
func historyFaults(events []historyEvent, settled map[string]historyEvent) []string {
	var faults []string
	living := map[string]historyEvent{}
	for i, e := range events {
		if i > 0 && e.revision < events[i-1].revision {
			return append(faults, fmt.Sprintf("the history is out of order: %s after %s", e, events[i-1]))
		}
		if e.node == "" {
			delete(living, e.key)
		} else {
			living[e.key] = e
			if s, ok := settled[e.node]; ok && e.revision > s.revision && e.key != s.key {
				faults = append(faults, fmt.Sprintf("%s, and it had %s before", e, s.key))
			}
		}
		if i+1 < len(events) && events[i+1].revision == e.revision {
			continue // One transaction changes several keys at once.
		}
		faults = append(faults, livingFaults(e.revision, living)...)
	}
	return faults
}

func livingFaults(revision int64, living map[string]historyEvent) (faults []string) {
	all := slices.Collect(maps.Values(living))
	slices.SortFunc(all, func(a, b historyEvent) int { return cmp.Compare(a.key, b.key) })
	for i, a := range all {
		for _, b := range all[:i] {
			if max(a.revision, b.revision) != revision {
				continue // Told when it came about.
			}
			switch {
			case a.node == b.node:
				faults = append(faults, fmt.Sprintf("%s while %s", a, b))
			case keysOverlap(a.key, b.key):
				faults = append(faults, fmt.Sprintf("%s overlaps %s", a, b))
			}
		}
	}
	return faults
}

func keysOverlap(a, b string) bool {
	x, errX := subnet.ParseKey(a)
	y, errY := subnet.ParseKey(b)
	return errX != nil || errY != nil || slices.ContainsFunc(subnet.Families[:], func(f subnet.Family) bool {
		return x[f].IsValid() && y[f].IsValid() && x[f].Overlaps(y[f])
	})
}

func TestHistoryFaults(t *testing.T) {
	put := func(revision int64, key, node string) historyEvent { return historyEvent{revision, key, node} }
	gone := func(revision int64, key string) historyEvent { return historyEvent{revision: revision, key: key} }
	const one, two, pair = "10.5.1.0-24", "10.5.2.0-24", "10.5.1.0-24&fd00:10:5:1::-64"
	const pairOfSame6 = "10.5.2.0-24&fd00:10:5:1::-64"
	for name, c := range map[string]struct {
		history []historyEvent
		want    string // Part of the only fault, "" for none.
	}{
		"none":                             {nil, ""},
		"two hold two":                     {[]historyEvent{put(2, one, "a"), put(3, two, "b")}, ""},
		"renewed by its holder":            {[]historyEvent{put(2, one, "a"), put(3, one, "a")}, ""},
		"taken after it was gone":          {[]historyEvent{put(2, one, "a"), gone(3, one), put(4, one, "b")}, ""},
		"handed on in one revision":        {[]historyEvent{put(2, one, "a"), put(3, pair, "b"), gone(3, one)}, ""},
		"two in one revision":              {[]historyEvent{put(2, one, "a"), put(2, pair, "b")}, "overlaps"},
		"overlap in IPv4":                  {[]historyEvent{put(2, one, "a"), put(3, pair, "b")}, "overlaps"},
		"overlap in IPv6":                  {[]historyEvent{put(2, pair, "a"), put(3, pairOfSame6, "b")}, "overlaps"},
		"a wider one":                      {[]historyEvent{put(2, one, "a"), put(3, "10.5.0.0-16", "b")}, "overlaps"},
		"overlap that is gone later":       {[]historyEvent{put(2, one, "a"), put(3, pair, "b"), gone(4, one)}, "3: " + pair},
		"overlap is told once":             {[]historyEvent{put(2, one, "a"), put(3, pair, "b"), put(4, "10.5.9.0-24", "c")}, "3: " + pair},
		"two records of one node":          {[]historyEvent{put(2, one, "a"), put(3, two, "a")}, "while"},
		"another one later":                {[]historyEvent{put(2, one, "a"), gone(3, one), put(4, two, "a")}, ""},
		"another one, though it remembers": {[]historyEvent{put(2, one, "elephant"), gone(3, one), put(4, two, "elephant")}, "had " + one},
		"a key that nobody can read":       {[]historyEvent{put(2, one, "a"), put(3, "rubbish", "b")}, "overlaps"},
		"out of order":                     {[]historyEvent{put(3, one, "a"), put(2, two, "b")}, "order"},
	} {
		got := historyFaults(c.history, map[string]historyEvent{"elephant": put(2, one, "elephant")})
		if c.want == "" && len(got) != 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// historyOf follows the records under a prefix from before the first one. The
// function that it returns gives all there were, up to now.
func historyOf(t *testing.T, c *clientv3.Client, prefix string) func() []historyEvent {
	t.Helper()
	under := prefix + "/subnets/"
	before, err := c.Get(t.Context(), under, clientv3.WithPrefix())
	if err != nil || before.Count != 0 {
		t.Fatalf("a history begins with %+v, %v", before, err)
	}
	const end = "end of the history"
	var events []historyEvent
	done := make(chan error, 1)
	go func() {
		for resp := range c.Watch(t.Context(), under, clientv3.WithPrefix(), clientv3.WithRev(before.Header.Revision+1)) {
			if err := resp.Err(); err != nil {
				done <- err
				return
			}
			for _, e := range resp.Events {
				h := historyEvent{revision: e.Kv.ModRevision, key: strings.TrimPrefix(string(e.Kv.Key), under)}
				if h.key == end {
					done <- nil
					return
				}
				if e.Type == clientv3.EventTypePut {
					l, err := subnet.ParseRecord(h.key, e.Kv.Value)
					if err != nil || l.Node == "" {
						done <- fmt.Errorf("record %s = %q: %w", h.key, e.Kv.Value, err)
						return
					}
					h.node = l.Node
				}
				events = append(events, h)
			}
		}
		done <- errors.New("the watch ended")
	}()
	return func() []historyEvent {
		t.Helper()
		if _, err := c.Put(t.Context(), under+end, ""); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("history: %v", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("the history does not come to its end")
		}
		return events
	}
}

// historyCounts is what happened to all claimants of a network.
type historyCounts struct{ claimed, again, taken, exhausted, lost, cut, away atomic.Int64 }

func (c *historyCounts) String() string {
	return fmt.Sprintf("%d claims, %d of them of the same subnet again, %d found theirs taken, %d found none free, %d holds were lost, %d links cut, %d calls found the store away",
		c.claimed.Load(), c.again.Load(), c.taken.Load(), c.exhausted.Load(), c.lost.Load(), c.cut.Load(), c.away.Load())
}

// historyClaimant is a node as far as the store knows it, with an etcd client
// and a link of its own.
type historyClaimant struct {
	t      *testing.T
	random *rand.Rand
	cfg    subnet.Config
	opts   Options
	link   *link
	self   subnet.Identity
	// remembers says that it has its subnet file at each start.
	remembers bool
	// settled is the first write of its subnet that it knows of.
	settled historyEvent
	counts  *historyCounts
}

func (c *historyClaimant) upTo(most time.Duration) time.Duration {
	return time.Duration(c.random.Int64N(int64(most)))
}

func (c *historyClaimant) sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// live is the life of the node until ctx ends: starts, of which each claims and
// holds, and ends by which the record stays or expires.
func (c *historyClaimant) live(ctx context.Context) {
	var previous subnet.Subnets
	for ctx.Err() == nil {
		if !c.remembers {
			previous = subnet.Subnets{}
		}
		s, err := Open(ctx, c.opts)
		if err != nil {
			c.counts.away.Add(1)
			c.sleep(ctx, 50*time.Millisecond)
			continue
		}
		previous = c.run(ctx, s, previous)
		if err := s.Close(); err != nil {
			c.t.Errorf("%s: %v", c.self.Node, err)
		}
		if c.random.IntN(2) == 0 {
			c.sleep(ctx, c.upTo(4*c.opts.LeaseTTL)) // Often long enough for the lease to end.
		}
	}
}

// run is one run of the node: it claims, holds, and claims again what it lost.
func (c *historyClaimant) run(ctx context.Context, s *Store, previous subnet.Subnets) subnet.Subnets {
	for range 1 + c.random.IntN(3) {
		limit, cancel := context.WithTimeout(ctx, 3*time.Second)
		l, err := subnet.Claim(limit, s, c.cfg, subnet.Request{
			Self: c.self, Backend: "vxlan", Previous: previous, OnlyPrevious: previous != subnet.Subnets{},
		})
		cancel()
		var taken *subnet.TakenError
		var exhausted *subnet.ExhaustedError
		switch {
		case err == nil:
			c.counts.claimed.Add(1)
		case errors.As(err, &taken):
			c.counts.taken.Add(1)
			if taken.Subnets != previous || strings.Contains(taken.By, c.self.Node) {
				c.t.Errorf("%s asked for %s: %v", c.self.Node, previous, err)
			}
		case errors.As(err, &exhausted):
			c.counts.exhausted.Add(1)
		default:
			c.counts.away.Add(1)
		}
		if err != nil {
			c.sleep(ctx, c.upTo(300*time.Millisecond))
			continue
		}
		if (previous != subnet.Subnets{}) {
			c.counts.again.Add(1)
			if l.Subnets != previous {
				c.t.Errorf("%s had %s and claimed %s", c.self.Node, previous, l.Subnets)
			}
		}
		previous = l.Subnets
		if c.settled.key == "" {
			c.settled = historyEvent{l.Modified, l.Subnets.Key(), c.self.Node}
		}
		c.hold(ctx, s, l)
	}
	return previous
}

// hold keeps a lease for a while, in which its link may be cut for longer than
// the lease lives.
func (c *historyClaimant) hold(ctx context.Context, s *Store, l subnet.Lease) {
	limit, cancel := context.WithTimeout(ctx, 20*time.Millisecond+c.upTo(600*time.Millisecond))
	defer cancel()
	if c.random.IntN(4) == 0 {
		c.counts.cut.Add(1)
		c.link.Cut(true)
		back := time.AfterFunc(c.upTo(2*c.opts.LeaseTTL), func() { c.link.Cut(false) })
		defer func() { // The next claim may begin while it is still cut.
			if c.random.IntN(2) == 0 && back.Stop() {
				c.link.Cut(false)
			}
		}()
	}
	err := s.Hold(limit, l, nil)
	switch {
	case errors.Is(err, subnet.ErrLeaseLost):
		c.counts.lost.Add(1)
	case err != nil:
		c.t.Errorf("%s: hold %s: %v", c.self.Node, l.Subnets, err)
	}
}

// TestNoTwoNodesEverHoldOverlappingSubnets lets nodes claim, hold, lose, expire,
// restart and be cut off at random, on an etcd that is killed and stopped
// meanwhile, and then checks what the store itself has recorded. Half of the
// nodes forget their subnet at each start, so that the others find theirs taken.
func TestNoTwoNodesEverHoldOverlappingSubnets(t *testing.T) {
	const (
		single = `{"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.10.0"}`
		pairs  = `{"EnableIPv6":true,"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.10.0",` +
			`"IPv6Network":"fd00:10:5::/48","IPv6SubnetMin":"fd00:10:5:1::","IPv6SubnetMax":"fd00:10:5:a::"}`
		six = `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:5::/48","IPv6SubnetMin":"fd00:10:5:1::","IPv6SubnetMax":"fd00:10:5:a::"}`
	)
	for name, configs := range map[string][2]string{
		"one family": {single, single},
		"pairs":      {pairs, pairs},
		// As while the config of a network is changed, node after node.
		"IPv4 beside pairs": {single, pairs},
		"IPv6 beside pairs": {six, pairs},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := *historySeed
			if seed == 0 {
				seed = uint64(time.Now().UnixNano())
			}
			t.Logf("seed: -history.seed=%d", seed)
			liveThroughHistory(t, seed, configs)
		})
	}
}

// liveThroughHistory runs two more nodes than there are subnets; never all of
// them hold one.
func liveThroughHistory(t *testing.T, seed uint64, configs [2]string) {
	// On a machine out of CPU it takes longer until enough has happened.
	const nodes, length, most = 12, 10 * time.Second, time.Minute
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	prefix := newPrefix()
	history := historyOf(t, raw(t, srv.URL()), prefix)
	var all []*historyClaimant
	var counts historyCounts
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	began := time.Now()
	var claimants sync.WaitGroup
	for i := range nodes {
		cfg, err := subnet.ParseConfig([]byte(configs[i/2%2]))
		if err != nil {
			t.Fatal(err)
		}
		c := &historyClaimant{
			t: t, random: rand.New(rand.NewPCG(seed, uint64(i))), cfg: cfg, link: newLink(t, srv), counts: &counts,
			self:      subnet.Identity{Node: fmt.Sprintf("%s-%d", [2]string{"elephant", "mayfly"}[i%2], i)},
			remembers: i%2 == 0,
		}
		for f, a := range [...]string{"192.0.2.1", "2001:db8::1"} {
			if cfg.Ranges[f].Enabled() {
				b := netip.MustParseAddr(a).AsSlice()
				b[len(b)-1] = byte(i + 1)
				c.self.PublicIP[f], _ = netip.AddrFromSlice(b)
			}
		}
		c.opts = Options{Endpoints: []string{c.link.URL()}, Prefix: prefix, LeaseTTL: time.Second, RequestTimeout: quick}
		all = append(all, c)
		claimants.Go(func() { c.live(ctx) })
	}
	random := rand.New(rand.NewPCG(seed, nodes))
	for {
		select {
		case <-ctx.Done():
		case <-time.After(2*time.Second + time.Duration(random.Int64N(int64(2*time.Second)))):
		}
		if ctx.Err() != nil || time.Since(began) > length && counts.claimed.Load() >= 30 && counts.again.Load() > 0 {
			break
		}
		var err error
		if random.IntN(2) == 0 {
			err = srv.Restart(t.Context())
		} else if err = srv.Pause(); err == nil {
			time.Sleep(time.Duration(random.Int64N(int64(time.Second))))
			err = srv.Resume()
		}
		if err != nil {
			t.Error(err)
		}
	}
	cancel()
	claimants.Wait()
	events := history()
	t.Logf("%d events; %s", len(events), &counts)
	settled := map[string]historyEvent{}
	for _, c := range all {
		if c.remembers && c.settled.key != "" { // It may not have heard of what it wrote.
			settled[c.self.Node] = c.settled
		}
	}
	if faults := historyFaults(events, settled); len(faults) != 0 {
		t.Errorf("the history of seed %d has faults:\n%s", seed, strings.Join(faults, "\n"))
		for _, e := range events {
			t.Log(e)
		}
	}
	if len(events) < 20 || counts.again.Load() == 0 {
		t.Errorf("little happened: %d events; %s", len(events), &counts)
	}
}
