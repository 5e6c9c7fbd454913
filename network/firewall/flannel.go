package firewall

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet"
)

// On a node that was flannel's its rules do once more what ours do, and go when ours
// stand. They are chains of iptables with a jump to each from the base chain, or, with
// EnableNFTables, tables of its own.
var (
	flannelChains = map[string]struct{ base, name, comment string }{
		"nat":       {"POSTROUTING", "FLANNEL-POSTRTG", "flanneld masq"},
		filterTable: {forwardChain, "FLANNEL-FWD", "flanneld forward"},
	}
	flannelTables = subnet.PerFamily[string]{"flannel-ipv4", "flannel-ipv6"}
)

// flannelOf tells whether a table is of one flannel's own, by its family.
func flannelOf(k tableKey) bool {
	return slices.ContainsFunc(subnet.Families[:], func(f subnet.Family) bool { return k == tableKey{nfprotos[f], flannelTables[f]} })
}

// flannels are flannel's rules in nftables, those of iptables-nft included.
type flannels struct {
	tables []tableKey
	chains []chainKey
	jumps  []placed
	// masquerade tells that they hide pods' addresses from the outside.
	masquerade bool
}

func (r flannels) empty() bool { return len(r.tables)+len(r.chains)+len(r.jumps) == 0 }

// readFlannels finds flannel's rules.
func (c *conn) readFlannels() (found flannels, err error) {
	tables, err := c.nft.ListTables()
	if err != nil {
		return found, fmt.Errorf("list tables: %w", err)
	}
	for _, t := range tables {
		if key := (tableKey{byte(t.Family), t.Name}); flannelOf(key) {
			found.tables = append(found.tables, key)
		}
	}
	chains, err := c.nft.ListChains()
	if err != nil {
		return found, fmt.Errorf("list chains: %w", err)
	}
	for _, chain := range chains {
		if chain.Table == nil {
			continue
		}
		table := tableKey{byte(chain.Table.Family), chain.Table.Name}
		its, iptables := flannelChains[table.name]
		iptables = iptables && slices.Contains(nfprotos[:], table.family)
		own := flannelOf(table) || iptables && chain.Name == its.name
		if !own && (!iptables || chain.Name != its.base) {
			continue
		}
		key := chainKey{table, chain.Name}
		rules, err := c.rules(table.family, table.name, chain.Name)
		if err != nil {
			return found, fmt.Errorf("table %s: %w", table, err)
		}
		if own && iptables {
			found.chains = append(found.chains, key)
		}
		for _, r := range rules {
			switch {
			case own:
				found.masquerade = found.masquerade || r.masquerades()
			case r.leadsTo(its.name):
				found.jumps = append(found.jumps, placed{key, r})
			}
		}
	}
	return found, nil
}

func (r rule) leadsTo(chain string) bool {
	return slices.ContainsFunc(r.exprs, func(e expression) bool {
		v, ok := e.any.(*expr.Verdict)
		return ok && v.Chain == chain
	})
}

// masquerades tells whether a rule does, in nftables' way or in iptables'.
func (r rule) masquerades() bool {
	return slices.ContainsFunc(r.exprs, func(e expression) bool {
		t, ok := e.any.(*expr.Target)
		return e.name == "masq" || ok && t.Name == "MASQUERADE"
	})
}

// deleteFlannels takes flannel's rules away in one transaction, the jumps first.
func (c *conn) deleteFlannels(r flannels) error {
	table := func(k tableKey) *nftables.Table {
		return &nftables.Table{Family: nftables.TableFamily(k.family), Name: k.name}
	}
	for _, j := range r.jumps {
		in := table(j.chain.table)
		if err := c.nft.DelRule(&nftables.Rule{Table: in, Chain: &nftables.Chain{Name: j.chain.name, Table: in}, Handle: j.rule.handle}); err != nil {
			return err
		}
	}
	for _, k := range r.chains {
		chain := &nftables.Chain{Name: k.name, Table: table(k.table)}
		c.nft.FlushChain(chain)
		c.nft.DelChain(chain)
	}
	for _, k := range r.tables {
		c.nft.DelTable(table(k))
	}
	return c.nft.Flush()
}

// withoutFlannels are the rules as they will be when flannel's are gone.
func (o *others) withoutFlannels() *others {
	left := &others{chains: map[chainKey]*otherChain{}, sets: o.sets, unread: o.unread}
	for key, chain := range o.chains {
		copied := *chain
		its, iptables := flannelChains[key.table.name]
		if iptables && key.name == its.base {
			copied.rules = slices.DeleteFunc(slices.Clone(chain.rules), func(r rule) bool { return r.leadsTo(its.name) })
		}
		left.chains[key] = &copied
	}
	for _, base := range o.bases {
		if !flannelOf(base.key.table) {
			left.bases = append(left.bases, left.chains[base.key])
		}
	}
	return left
}

// succeed takes flannel's rules away, once: ours stand by then, and flannel is not
// there to put them back. Those of legacy iptables are beyond nftables, and are named.
func (f *Firewall) succeed(c *conn) error {
	found, err := c.readFlannels()
	if err != nil {
		return fmt.Errorf("look for flannel's rules: %w", err)
	}
	if !found.empty() {
		if err := c.deleteFlannels(found); err != nil {
			return fmt.Errorf("take flannel's rules away: %w", err)
		}
		f.log.Info("flannel's firewall rules are taken away, ours stand in their place",
			zap.Int("tables", len(found.tables)), zap.Int("chains", len(found.chains)), zap.Int("jumps", len(found.jumps)))
		if found.masquerade && !f.opts.Masquerade {
			f.log.Warn("flannel hid pods' addresses from the outside and this daemon is not to: what they send there bears their own; --ip-masq is the flag")
		}
	}
	commands, err := legacyFlannels(f.ns)
	if err != nil {
		f.log.Warn("legacy iptables cannot be read, in which flannel may have rules", zap.Error(err))
	}
	if len(commands) > 0 {
		f.log.Warn("flannel's rules in legacy iptables stay: take them away", zap.String("mend", strings.Join(commands, "; ")))
	}
	f.succeeded = true
	return nil
}

// legacyFlannels are the commands that take flannel's chains out of legacy iptables,
// none where it has none.
func legacyFlannels(ns *os.File) (commands []string, err error) {
	for _, f := range subnet.Families {
		err = errors.Join(err, inNamespace(ns, func() error {
			used, err := legacyTables(f)
			if err != nil {
				return err
			}
			for _, table := range []string{"nat", filterTable} {
				if !slices.Contains(used, table) {
					continue
				}
				_, entries, err := legacyEntries(f, table)
				if err != nil {
					return err
				}
				// A chain begins with an entry that bears its name (XT_ERROR_TARGET).
				if its := flannelChains[table]; bytes.Contains(entries, []byte(its.name+"\x00")) {
					tool := legacyTools[f] + " -t " + table
					commands = append(commands, fmt.Sprintf("%s -D %s -m comment --comment %q -j %s", tool, its.base, its.comment, its.name),
						fmt.Sprintf("%s -F %s", tool, its.name), fmt.Sprintf("%s -X %s", tool, its.name))
				}
			}
			return nil
		}))
	}
	return commands, err
}
