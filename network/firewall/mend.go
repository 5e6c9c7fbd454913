package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// iptables' table and chains, and the comment by which our rules there are known.
const (
	filterTable  = "filter"
	forwardChain = "FORWARD"
	// dockerUser is led to from FORWARD before all of Docker's own rules, and is
	// for others to write to.
	dockerUser  = "DOCKER-USER"
	mendComment = "ripstop: pods"
)

// forwardOfIPTables tells whether it is the chain of that name in iptables-nft's
// or ip6tables-nft's table filter.
func (k chainKey) forwardOfIPTables(name string) bool {
	return k.name == name && k.table.name == filterTable && (k.table.family == unix.NFPROTO_IPV4 || k.table.family == unix.NFPROTO_IPV6)
}

// change is a rule of ours in a chain of iptables that is to come or go.
type change struct {
	chain chainKey
	// handle is that of the rule to delete or, for one to insert, of the rule
	// that it comes before, 0 for the end.
	handle uint64
	delete bool
	text   string
	exprs  []expr.Any
}

// String says what changes where.
func (c change) String() string {
	verb := "add"
	if c.delete {
		verb = "delete"
	}
	return fmt.Sprintf("%s in table %s, chain %s: %s", verb, c.chain.table, c.chain.name, c.text)
}

// mends are our rules for a family's pods, in a form that iptables-nft writes
// itself: it refuses to list a table in which it does not understand a rule.
func mends(pods netip.Prefix) []rule {
	f := subnet.FamilyOf(pods.Addr())
	comment := xt.Comment(mendComment)
	var out []rule
	for _, at := range []uint32{sourceAt[f], destinationAt[f]} {
		r := rule{comment: mendComment}
		for _, e := range slices.Concat(inPrefix(at, pods), []expr.Any{
			&expr.Match{Name: "comment", Info: &comment}, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept},
		}) {
			r.exprs = append(r.exprs, expression{any: e})
		}
		out = append(out, r)
	}
	return out
}

// planMends returns what is to change so that iptables' FORWARD lets pods'
// traffic pass, if it would drop it without. Our rules stand right before what
// drops, or at the end: what others decide before that stays decided, such as a
// network policy.
func planMends(o *others, n Network, enabled bool) []change {
	var out []change
	for _, f := range subnet.Families {
		table := tableKey{nfprotos[f], filterTable}
		bare, ours := o.without(table)
		place, at := chainKey{}, 0
		if base := bare.chains[chainKey{table, forwardChain}]; enabled && n.Ranges[f].IsValid() && base != nil && slices.Contains(bare.bases, base) {
			place, at = bare.placeMends(base, n, f)
		}
		if place == (chainKey{}) {
			out = append(out, deletions(ours)...)
			continue
		}
		wanted := mends(n.Ranges[f])
		if fits(ours, place, wanted) && !o.dropsAny(o.chains[chainKey{table, forwardChain}], n, f) {
			continue
		}
		out = append(out, deletions(ours)...)
		before := uint64(0)
		if rules := bare.chains[place].rules; at < len(rules) {
			before = rules[at].handle
		}
		for _, r := range wanted {
			c := change{chain: place, handle: before, text: describe(r)}
			for _, e := range r.exprs {
				c.exprs = append(c.exprs, e.any)
			}
			out = append(out, c)
		}
	}
	return out
}

// placed is a rule of ours and where it is.
type placed struct {
	chain chainKey
	rule  rule
}

// without returns the rules as they are without ours in a table, and ours.
func (o *others) without(table tableKey) (*others, []placed) {
	bare := &others{chains: map[chainKey]*otherChain{}, sets: o.sets}
	var ours []placed
	for key, chain := range o.chains {
		copied := *chain
		if key.table == table && (key.name == forwardChain || key.name == dockerUser) {
			copied.rules = nil
			for _, r := range chain.rules {
				if r.comment == mendComment {
					ours = append(ours, placed{key, r})
				} else {
					copied.rules = append(copied.rules, r)
				}
			}
		}
		bare.chains[key] = &copied
	}
	for _, base := range o.bases {
		bare.bases = append(bare.bases, bare.chains[base.key])
	}
	slices.SortFunc(ours, func(a, b placed) int { return int(a.rule.handle) - int(b.rule.handle) })
	return bare, ours
}

// placeMends finds where our rules are to be, the zero chainKey for nowhere: they
// are not needed, or do not help.
func (o *others) placeMends(base *otherChain, n Network, f subnet.Family) (chainKey, int) {
	if !o.dropsAny(base, n, f) {
		return chainKey{}, 0
	}
	for _, name := range []string{dockerUser, forwardChain} {
		chain := o.chains[chainKey{base.key.table, name}]
		if chain == nil {
			continue
		}
		at := len(chain.rules)
		for _, p := range probes(n) {
			if p.family() != f {
				continue
			}
			t := trial{others: o, probe: p}
			if chain == base {
				if t.base(base) {
					at = min(at, t.top)
				}
			} else {
				t.chain(chain, 0)
				at = min(at, t.top)
			}
		}
		before := chain.rules
		chain.rules = slices.Insert(slices.Clone(before), at, mends(n.Ranges[f])...)
		helps := !o.dropsAny(base, n, f)
		chain.rules = before
		if helps {
			return chain.key, at
		}
	}
	return chainKey{}, 0
}

// dropsAny tells whether a base chain drops a probe of a family for certain.
func (o *others) dropsAny(base *otherChain, n Network, f subnet.Family) bool {
	return slices.ContainsFunc(probes(n), func(p probe) bool {
		t := trial{others: o, probe: p}
		return p.family() == f && t.base(base)
	})
}

// fits tells whether our rules are those that are wanted, in the right chain.
func fits(ours []placed, place chainKey, wanted []rule) bool {
	return slices.EqualFunc(ours, wanted, func(p placed, r rule) bool {
		return p.chain == place && describe(p.rule) == describe(r)
	})
}

func deletions(ours []placed) []change {
	var out []change
	for _, p := range ours {
		out = append(out, change{chain: p.chain, handle: p.rule.handle, delete: true, text: describe(p.rule)})
	}
	return out
}

// applyMends changes our rules in one transaction.
func (c *conn) applyMends(changes []change) error {
	for _, change := range changes {
		table := &nftables.Table{Family: nftables.TableFamily(change.chain.table.family), Name: change.chain.table.name}
		r := &nftables.Rule{Table: table, Chain: &nftables.Chain{Name: change.chain.name}, Exprs: change.exprs}
		switch {
		case change.delete:
			r.Handle = change.handle
			if err := c.nft.DelRule(r); err != nil {
				return err
			}
		case change.handle != 0:
			r.Position = change.handle
			c.nft.InsertRule(r)
		default:
			c.nft.AddRule(r)
		}
	}
	return c.nft.Flush()
}

// unmend takes our rules out of iptables' chains.
func (c *conn) unmend() error {
	o, err := c.readOthers(mostChains)
	if err != nil {
		return err
	}
	if changes := planMends(o, Network{}, false); len(changes) > 0 {
		return c.applyMends(changes)
	}
	return nil
}
