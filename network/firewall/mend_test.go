package firewall

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/subnet"
)

// text is a chain's rules as text.
func (c *conn) text(t testing.TB, key chainKey) []string {
	t.Helper()
	rules, err := c.rules(key.table.family, key.table.name, key.name)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{}
	for _, r := range rules {
		out = append(out, describe(r))
	}
	return out
}

const (
	ourSource      = `ip saddr 10.5.0.0/16 comment "ripstop: pods" accept`
	ourDestination = `ip daddr 10.5.0.0/16 comment "ripstop: pods" accept`
)

var (
	filterIP   = &nftables.Table{Family: nftables.TableFamilyIPv4, Name: filterTable}
	keyForward = chainKey{tableKey{byte(filterIP.Family), filterTable}, forwardChain}
	keyUser    = chainKey{keyForward.table, dockerUser}
)

// Our rules come right before what drops pods' traffic, and go where nothing
// does.
func TestMendsIPTables(t *testing.T) {
	toUser := &expr.Verdict{Kind: expr.VerdictJump, Chain: dockerUser}
	for name, test := range map[string]struct {
		write   func(w writer)
		forward []string
		user    []string
	}{
		"nothing drops": {func(w writer) { w.base(forwardChain, 0, acceptPolicy) }, []string{}, nil},
		"the policy drops": {func(w writer) {
			w.base(forwardChain, 0, dropPolicy)
			w.rule(forwardChain, tcpPort(1), doDrop)
		}, []string{"meta l4proto tcp th dport 1 drop", ourSource, ourDestination}, nil},
		"the last rule rejects": {func(w writer) {
			w.base(forwardChain, 0, acceptPolicy)
			w.rule(forwardChain, tcpPort(1), doDrop)
			w.rule(forwardChain, &expr.Reject{})
			w.rule(forwardChain, tcpPort(2), doAccept)
		}, []string{"meta l4proto tcp th dport 1 drop", ourSource, ourDestination, "reject", "meta l4proto tcp th dport 2 accept"}, nil},
		"Docker": {func(w writer) {
			w.base(forwardChain, 0, dropPolicy)
			w.chain(dockerUser)
			w.rule(forwardChain, toUser)
			w.rule(forwardChain, ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, "docker0"), stateXT(2|4), doAccept)
			w.rule(forwardChain, ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, "docker0"), ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, "docker0"), doAccept)
			w.rule(dockerUser, tcpPort(1), doDrop)
			w.rule(dockerUser, doReturn)
		}, []string{"jump DOCKER-USER", `oifname "docker0" match conntrack accept`, `iifname "docker0" oifname != "docker0" accept`},
			[]string{"meta l4proto tcp th dport 1 drop", ourSource, ourDestination, "return"}},
		"Docker without a return": {func(w writer) {
			w.base(forwardChain, 0, dropPolicy)
			w.chain(dockerUser)
			w.rule(forwardChain, toUser)
		}, []string{"jump DOCKER-USER"}, []string{ourSource, ourDestination}},
		// TestDocker (dist/trials) has the real one.
		"Docker with a published port": {func(w writer) {
			w.base(forwardChain, 0, dropPolicy)
			w.chain(dockerUser)
			w.rule(forwardChain, toUser)
			first := netip.MustParsePrefix("10.5.7.2/32")
			w.rule(forwardChain, inPrefix(destinationAt[subnet.V4], first), ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, "docker0"), tcpPort(80), doAccept)
			w.rule(forwardChain, ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, "docker0"), ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, "docker0"), doAccept)
			w.rule(dockerUser, doReturn)
		}, []string{"jump DOCKER-USER", `ip daddr 10.5.7.2/32 oifname "docker0" meta l4proto tcp th dport 80 accept`, `iifname "docker0" oifname != "docker0" accept`},
			[]string{ourSource, ourDestination, "return"}},
		"DOCKER-USER is not led to": {func(w writer) {
			w.base(forwardChain, 0, dropPolicy)
			w.chain(dockerUser)
		}, []string{ourSource, ourDestination}, []string{}},
		"a stray rule of ours": {func(w writer) {
			w.base(forwardChain, 0, acceptPolicy)
			for _, r := range mends(networks["dual"].Ranges[0]) {
				for _, e := range r.exprs {
					w.t.Log(e.any)
				}
				w.rule(forwardChain, anys(r))
			}
		}, []string{}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := networks["ipv4"]
			f, ns := opened(t, everything, n)
			c := outside(t, ns)
			test.write(writer{t, c, filterIP})
			if err := c.nft.Flush(); err != nil {
				t.Fatal(err)
			}
			f.Update(nil, nil)
			f.passNow(t)
			if got := c.text(t, keyForward); !slices.Equal(got, test.forward) {
				t.Errorf("FORWARD:\n%q\nwant\n%q", got, test.forward)
			}
			if test.user != nil {
				if got := c.text(t, keyUser); !slices.Equal(got, test.user) {
					t.Errorf("DOCKER-USER:\n%q\nwant\n%q", got, test.user)
				}
			}
			s := f.Status(t.Context())
			if len(s.Findings) != 0 || s.Err != nil {
				t.Errorf("status: %+v", s)
			}
			found := 1 // The table.
			for _, text := range append(test.forward, test.user...) {
				if text == ourSource || text == ourDestination {
					found++
				}
			}
			if ours, err := f.Find(t.Context()); err != nil || len(ours) != found {
				t.Errorf("found %q, %v, want %d", ours, err, found)
			}
			if err := f.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if o := c.must(t); o.exists {
				t.Error("our table is left")
			}
			for _, key := range []chainKey{keyForward, keyUser} {
				if key == keyUser && test.user == nil {
					continue
				}
				if got := c.text(t, key); slices.Contains(got, ourSource) || slices.Contains(got, ourDestination) {
					t.Errorf("after removal: %q", got)
				}
			}
		})
	}
}

func anys(r rule) (out []expr.Any) {
	for _, e := range r.exprs {
		out = append(out, e.any)
	}
	return out
}

// What drops is found when it comes, and our rules are put back where they were;
// with the option off what drops is told.
func TestKeepsForwardRules(t *testing.T) {
	f, ns := opened(t, everything, networks["ipv4"])
	c := outside(t, ns)
	f.Update(nil, addrs(0, 3))
	stop := running(t, f)
	w := writer{t, c, filterIP}
	w.base(forwardChain, 0, dropPolicy)
	w.done()
	ours := func() bool { return slices.Equal(c.text(t, keyForward), []string{ourSource, ourDestination}) }
	eventually(t, "the rules are there", ours)
	c.nft.FlushChain(&nftables.Chain{Table: filterIP, Name: forwardChain})
	w.done()
	eventually(t, "the rules are there again", ours)
	w.base("late", 0, dropPolicy) // Not iptables', so not to be changed.
	w.done()
	eventually(t, "the other chain is told", func() bool {
		s := f.Status(t.Context()).Findings
		return len(s) == 1 && s[0].Chain == "late" && s[0].Rule == "policy drop" && s[0].Certain
	})
	c.nft.DelChain(&nftables.Chain{Table: filterIP, Name: "late"})
	w.base(forwardChain, 0, acceptPolicy)
	w.done()
	eventually(t, "the rules are gone", func() bool { return len(c.text(t, keyForward)) == 0 })
	eventually(t, "nothing is told any more", func() bool { return len(f.Status(t.Context()).Findings) == 0 })
	off := everything
	off.ForwardRules = false
	w.base(forwardChain, 0, dropPolicy)
	w.done()
	eventually(t, "the rules are there once more", ours)
	stop()
	quiet := openedIn(t, ns, off, networks["ipv4"])
	quiet.Update(nil, addrs(0, 3))
	quiet.passNow(t)
	if got := c.text(t, keyForward); len(got) != 0 {
		t.Errorf("FORWARD with the option off: %q", got)
	}
	if s := quiet.Status(t.Context()); len(s.Findings) != 1 || s.Findings[0].Chain != forwardChain {
		t.Errorf("with the option off: %+v", s)
	}
}

// A converged firewall makes no event, and neither do audits.
func TestIdleMakesNoEvent(t *testing.T) {
	f, ns := opened(t, everything, networks["dual"])
	c := outside(t, ns)
	w := writer{t, c, filterIP}
	w.base(forwardChain, 0, dropPolicy)
	w.done()
	f.Update(nil, addrs(0, 500))
	f.passNow(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	listener := openedIn(t, ns, everything, networks["dual"])
	listener.heard.take()
	events := make(chan error, 1)
	go func() { events <- listener.listen(ctx) }()
	eventually(t, "the listener listens", func() bool { o, _, _ := listener.heard.take(); return o })
	running(t, f)
	before := f.Status(t.Context()).Writes
	for range 50 {
		f.heard.all()
		f.passNow(t)
	}
	if after := f.Status(t.Context()).Writes; after != before {
		t.Fatalf("%d writes with nothing to do", after-before)
	}
	// The kernel queues an event inside the request that causes it: what the
	// audits caused would be there before this.
	if got := listener.events.Load(); got != 0 {
		t.Errorf("%d events", got)
	}
	c.nft.FlushChain(&nftables.Chain{Table: filterIP, Name: forwardChain})
	w.done()
	eventually(t, "an event is heard", func() bool { return listener.events.Load() > 0 })
	cancel()
	if err := <-events; err != nil {
		t.Error(err)
	}
}

// What is not ours stays to the byte when ours goes.
func TestRemoveLeavesTheRest(t *testing.T) {
	n := networks["ipv4"]
	ns := kerneltest.Namespace(t)
	c := outside(t, ns)
	w := writer{t, c, filterIP}
	w.base(forwardChain, 0, dropPolicy)
	w.rule(forwardChain, tcpPort(22), doAccept)
	w.done()
	foreign := writer{t, c, &nftables.Table{Family: nftables.TableFamilyINet, Name: "other"}}
	foreign.base("forward", 0, acceptPolicy)
	foreign.rule("forward", tcpPort(23), doDrop)
	foreign.done()
	before := c.dumpAll(t)
	f := openedIn(t, ns, everything, n)
	f.Update(nil, addrs(0, 3))
	f.passNow(t)
	if after := c.dumpAll(t); slices.Equal(after, before) {
		t.Fatal("nothing was written")
	}
	if ours, err := f.Find(t.Context()); err != nil || len(ours) != 1 || ours[0] != "nftables table inet ripstop" {
		t.Errorf("found %q, %v", ours, err)
	}
	if err := f.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := c.dumpAll(t); !slices.Equal(after, before) {
		t.Errorf("after removal:\n%q\nbefore:\n%q", after, before)
	}
	if err := f.Remove(t.Context()); err != nil {
		t.Errorf("a second time: %v", err)
	}
	if ours, err := f.Find(t.Context()); err != nil || len(ours) > 0 {
		t.Errorf("found %q, %v after the removal", ours, err)
	}
}
