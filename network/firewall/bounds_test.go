package firewall

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// many writes a chain at the hook that leads to many others, of which all but the
// last are for addresses of nobody's; to the last, which drops, lead the given
// conditions.
func (w writer) many(chains int, last ...any) {
	jump := func(i int) *expr.Verdict {
		return &expr.Verdict{Kind: expr.VerdictJump, Chain: fmt.Sprint("service", i)}
	}
	w.base("forward", 0, acceptPolicy)
	for i := range chains {
		w.chain(fmt.Sprint("service", i))
	}
	for i := range chains - 1 {
		w.rule("forward", proto(0), destination(netip.MustParsePrefix("198.51.100.0/24")), jump(i))
	}
	w.rule(fmt.Sprint("service", chains-1), doDrop)
	w.rule("forward", append(last, jump(chains-1))...)
}

// Of more chains than are read, those that were are judged; where a packet may
// meet one that was not, that is told.
func TestMoreChainsThanAreReadAreJudgedInPart(t *testing.T) {
	unread := fmt.Sprintf("30 chains beyond the first %d, which are not read", mostChains)
	for name, test := range map[string]struct {
		most   int
		before bool // Whether a rule before those jumps rejects.
		last   []any
		want   []Finding
	}{
		"all are read":                {60, false, []any{proto(0)}, []Finding{{Chain: "service59", Rule: "drop", Certain: true}}},
		"one that matters is not":     {30, false, []any{proto(0)}, []Finding{{Chain: "forward", Rule: unread}}},
		"none that matters is unread": {30, false, []any{ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, "lo")}, nil},
		"what comes before drops":     {30, true, []any{proto(0)}, []Finding{{Chain: "first", Rule: "reject", Certain: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			c := outside(t, kerneltest.Namespace(t))
			w := writer{t, c, &nftables.Table{Family: nftables.TableFamilyINet, Name: "x"}}
			if test.before {
				w.base("first", -1, acceptPolicy)
				w.rule("first", doReject)
			}
			w.many(60, test.last...)
			w.done()
			o, err := c.readOthers(test.most)
			if err != nil {
				t.Fatal(err)
			}
			var got []Finding
			for _, f := range o.findings(networks["ipv4"]) {
				if f.Certain || !test.before { // The chain after it is told as well.
					got = append(got, Finding{Chain: f.Chain, Rule: f.Rule, Certain: f.Certain})
				}
				if !strings.Contains(f.Mend, "accept") {
					t.Errorf("how to mend it: %q", f.Mend)
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("found %+v, want %+v", got, test.want)
			}
		})
	}
}

// A host with thousands of foreign chains has our rules right, and no failure that
// is tried again for ever.
func TestThousandsOfChainsAreNoFailure(t *testing.T) {
	f, ns := opened(t, everything, networks["ipv4"])
	c := outside(t, ns)
	w := writer{t, c, &nftables.Table{Family: nftables.TableFamilyINet, Name: "x"}}
	w.many(mostChains + 100)
	w.done()
	f.Update(nil, addrs(0, 3))
	f.passNow(t)
	s := f.Status(t.Context())
	if s.Err != nil || len(s.Findings) != 1 || s.Findings[0].Certain || !strings.HasPrefix(s.Findings[0].Rule, "100 chains beyond") {
		t.Errorf("status: %+v", s)
	}
	if ours, err := f.Find(t.Context()); err != nil || len(ours) != 1 {
		t.Errorf("found as ours: %q, %v", ours, err)
	}
	if err := f.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// Who tells of peers waits for our own table alone: others' rules, of which there
// may be many, are read by the loop.
func TestUpdateReadsNoOthersRules(t *testing.T) {
	f, ns := opened(t, everything, networks["ipv4"])
	c := outside(t, ns)
	w := writer{t, c, filterIP}
	w.base(forwardChain, 0, dropPolicy)
	w.done()
	f.Update(nil, addrs(0, 3))
	if o := c.must(t); o.peers.len() != 3 {
		t.Errorf("in the set after the first update: %v", o.peers)
	}
	if got := c.text(t, keyForward); len(got) != 0 || f.reading.spent != 0 {
		t.Errorf("others' rules were read for %s; FORWARD: %q", f.reading.spent, got)
	}
	f.passNow(t)
	if got := c.text(t, keyForward); len(got) != 2 || f.reading.spent == 0 {
		t.Errorf("others' rules were not read after that: FORWARD: %q", got)
	}
}

// While the turn is taken, by a pass that the kernel keeps waiting, who tells of
// peers waits for a bounded time; what was told is made up for.
func TestUpdateWaitsNoLongerThanItMust(t *testing.T) {
	f, ns := opened(t, Options{Guard: true}, networks["ipv4"])
	f.Update(nil, addrs(0, 3))
	if err := f.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	f.Update(nil, addrs(3, 2))
	if took := time.Since(began); took < updateTime || took > updateTime+patience {
		t.Errorf("it waited for %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Find(ctx); err == nil {
		t.Error("what is looked for waits longer than its context")
	}
	if err := f.Remove(ctx); err == nil {
		t.Error("the removal waits longer than its context")
	}
	f.give()
	running(t, f)
	if got := outside(t, ns).must(t).peers.len(); got != 5 {
		t.Errorf("%d peers are in the set, want 5", got)
	}
}

// Who tells of peers reads nothing that Begin writes meanwhile, which the race
// detector sees: each of the updates may be met at any moment of it.
func TestBeginMeetsUpdate(t *testing.T) {
	const updates = 100
	n := networks["ipv4"]
	f, ns := opened(t, Options{Guard: true}, n)
	f.Update(nil, addrs(0, 3))
	updated := make(chan struct{})
	go func() {
		defer close(updated)
		for i := range updates {
			f.Update(nil, addrs(3+i, 1))
		}
	}()
	for again := true; again; {
		f.Begin(n.Ranges, n.Own, n.Devices, n.At, n.VNI, n.Port, n.Flannels)
		select {
		case <-updated:
			again = false
		default:
		}
	}
	f.passNow(t)
	if got := outside(t, ns).must(t).peers.len(); got != 3+updates {
		t.Errorf("%d peers are in the set, want %d", got, 3+updates)
	}
}

// A failure to read others' rules is told until they were read, whatever passes
// over our own table come between.
func TestBlindnessIsToldUntilItIsOver(t *testing.T) {
	f, _ := opened(t, everything, networks["ipv4"])
	f.Update(nil, addrs(0, 3))
	if err := f.take(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.blind = context.DeadlineExceeded // As a reading leaves it.
	f.heard.putBack(true, false, "")
	f.pass(t.Context(), false)
	f.give()
	if err := f.Status(t.Context()).Err; err == nil {
		t.Error("nothing is told")
	}
	f.heard.all()
	f.passNow(t)
	if err := f.Status(t.Context()).Err; err != nil {
		t.Errorf("still told: %v", err)
	}
}

// An address of the node's that becomes another is planned for, and is no other
// hand's doing.
func TestMoveIsNoHeal(t *testing.T) {
	n := networks["ipv4"]
	f, ns := opened(t, everything, n)
	f.Update(nil, addrs(0, 3))
	running(t, f)
	before := f.Status(t.Context())
	f.Begin(n.Ranges, n.Own, n.Devices, here("10.99.0.9", "203.0.113.9"), n.VNI, n.Port, false)
	n.At = here("10.99.0.9", "203.0.113.9")
	want := Plan(everything, n, 3).skeleton()
	c := outside(t, ns)
	eventually(t, "the table speaks of the new addresses", func() bool { return slices.Equal(c.must(t).skeleton, want) })
	eventually(t, "it is counted", func() bool { return f.Status(t.Context()).Writes == before.Writes+1 })
	if got := f.Status(t.Context()); got.Heals != before.Heals || c.must(t).peers.len() != 3 {
		t.Errorf("before %+v, after %+v with %d peers", before, got, c.must(t).peers.len())
	}
}
