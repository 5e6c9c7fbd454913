package firewall

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// layFlannel lays rules as flannel does, in iptables-nft's tables and in its own, where
// others drop what nobody accepts.
func layFlannel(t *testing.T, c *conn) {
	accept, back := &expr.Verdict{Kind: expr.VerdictAccept}, &expr.Verdict{Kind: expr.VerdictReturn}
	jump := func(to string) expr.Any { return &expr.Verdict{Kind: expr.VerdictJump, Chain: to} }
	filter := writer{t, c, filterIP}
	filter.base(forwardChain, 0, dropPolicy)
	filter.chain("FLANNEL-FWD")
	filter.rule(forwardChain, tcpPort(1), doDrop)
	filter.rule(forwardChain, jump("FLANNEL-FWD"))
	filter.rule("FLANNEL-FWD", inPrefix(sourceAt[0], networks["ipv4"].Ranges[0]), accept)
	filter.rule("FLANNEL-FWD", inPrefix(destinationAt[0], networks["ipv4"].Ranges[0]), accept)
	for name, table := range map[string]*nftables.Table{
		"POSTROUTING": {Family: nftables.TableFamilyIPv4, Name: "nat"}, "postrtg": {Family: nftables.TableFamilyIPv4, Name: flannelTables[0]},
	} {
		nat := writer{t, c, table}
		c.nft.AddTable(table)
		c.nft.AddChain(&nftables.Chain{
			Table: table, Name: name, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		chain := name
		if name == "POSTROUTING" {
			nat.rule(name, tcpPort(2), back)
			chain = "FLANNEL-POSTRTG"
			nat.chain(chain)
			nat.rule(name, jump(chain))
		}
		nat.rule(chain, inPrefix(sourceAt[0], networks["ipv4"].Ranges[0]), &expr.Masq{FullyRandom: true})
	}
	filter.done()
}

// flannelLeft lists the chains and tables that are flannel's, and the rules that lead
// there.
func flannelLeft(t *testing.T, c *conn) (out []string) {
	t.Helper()
	found, err := c.readFlannels()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range found.tables {
		out = append(out, k.String())
	}
	for _, k := range found.chains {
		out = append(out, k.name)
	}
	for _, j := range found.jumps {
		out = append(out, describe(j.rule))
	}
	slices.Sort(out)
	return out
}

// announced listens to what becomes of rules, and returns a function that ends that and
// gives a + for each that came and a - for each that went, in the kernel's order.
func announced(t *testing.T, ns *os.File) func() []string {
	t.Helper()
	s, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: int(ns.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		t.Fatal(err)
	}
	return func() (out []string) {
		defer func() { _ = s.Close() }()
		_ = s.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // All was queued when it was done.
		for {
			messages, err := s.Receive()
			if err != nil {
				return out
			}
			for _, m := range messages {
				switch m.Header.Type & 0xff {
				case unix.NFT_MSG_NEWRULE:
					out = append(out, "+")
				case unix.NFT_MSG_DELRULE:
					out = append(out, "-")
				}
			}
		}
	}
}

// TestFlannelsRulesGoOnceOursStand: ours are made as if flannel's were not there, and
// then flannel's go, and nothing else.
func TestFlannelsRulesGoOnceOursStand(t *testing.T) {
	n := networks["ipv4"]
	n.Flannels = true
	f, ns := opened(t, everything, n)
	c := outside(t, ns)
	layFlannel(t, c)
	if got := flannelLeft(t, c); len(got) != 5 {
		t.Fatalf("laid are %q", got)
	}
	heard := announced(t, ns)
	f.Update(nil, nil)
	f.passNow(t)
	if got := flannelLeft(t, c); len(got) != 0 {
		t.Errorf("left are %q", got)
	}
	want := []string{"meta l4proto tcp th dport 1 drop", ourSource, ourDestination}
	if got := c.text(t, keyForward); !slices.Equal(got, want) {
		t.Errorf("FORWARD: %q, want %q", got, want)
	}
	nat := chainKey{tableKey{byte(nftables.TableFamilyIPv4), "nat"}, "POSTROUTING"}
	if got := c.text(t, nat); !slices.Equal(got, []string{"meta l4proto tcp th dport 2 return"}) {
		t.Errorf("POSTROUTING: %q", got)
	}
	if s := f.Status(t.Context()); s.Err != nil || len(s.Findings) > 0 {
		t.Errorf("status: %+v", s)
	}
	// In the kernel's own order nothing of flannel's goes before the last of ours has come.
	order := strings.Join(heard(), " ")
	if first, last := strings.Index(order, "-"), strings.LastIndex(order, "+"); first < 0 || last > first {
		t.Errorf("rules came and went in the order %s", order)
	}
}

// TestFlannelsRulesStayOnAnotherNode: only where its device was taken over are they
// ours to take away.
func TestFlannelsRulesStayOnAnotherNode(t *testing.T) {
	f, ns := opened(t, everything, networks["ipv4"])
	c := outside(t, ns)
	layFlannel(t, c)
	f.Update(nil, nil)
	f.passNow(t)
	if got := flannelLeft(t, c); len(got) != 5 {
		t.Errorf("left are %q", got)
	}
	if got := c.text(t, keyForward); slices.Contains(got, ourSource) {
		t.Errorf("ours are there, though flannel's let pods' packets pass: %q", got)
	}
}
