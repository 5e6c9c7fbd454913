package firewall

import (
	"fmt"
	"testing"
)

// dumpAll lists all chains with their attributes and rules with their handles.
func (c *conn) dumpAll(t testing.TB) []string {
	t.Helper()
	var out []string
	tables, err := c.nft.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		out = append(out, fmt.Sprintf("table %d %s %d", table.Family, table.Name, table.Flags))
	}
	chains, err := c.nft.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, chain := range chains {
		line := fmt.Sprintf("chain %d %s %s %s", chain.Table.Family, chain.Table.Name, chain.Name, chain.Type)
		if chain.Hooknum != nil {
			line += fmt.Sprint(" ", *chain.Hooknum, *chain.Priority, *chain.Policy)
		}
		out = append(out, line)
		rules, err := c.rules(byte(chain.Table.Family), chain.Table.Name, chain.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rules {
			out = append(out, fmt.Sprintf("rule %d %s", r.handle, describe(r)))
		}
	}
	return out
}
