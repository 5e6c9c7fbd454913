package lab

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"

	"github.com/ripstop-net/ripstop/subnet"
)

// guardSets are the daemon's sets of its peers' addresses, by family.
var guardSets = subnet.PerFamily[string]{"peers4", "peers6"}

func guardTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: "ripstop"}
}

// guardPicture lists what a host's guard is made of, sorted, but for the peers
// that it lets in: those are told apart. It shares no code with the daemon's own
// reader.
func guardPicture(h *Host) (rules []string, peers map[netip.Addr]bool, err error) {
	c, err := nftables.New(nftables.WithNetNSFd(h.Namespace.FD()))
	if err != nil {
		return nil, nil, err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, nil, err
	}
	for _, chain := range chains {
		if chain.Table.Name != "ripstop" {
			continue
		}
		list, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return nil, nil, err
		}
		hook, policy := "none", "none"
		if chain.Hooknum != nil && chain.Priority != nil {
			hook = fmt.Sprintf("%d at %d", *chain.Hooknum, *chain.Priority)
		}
		if chain.Policy != nil {
			policy = fmt.Sprint(*chain.Policy)
		}
		rules = append(rules, fmt.Sprintf("chain %s hook %s policy %s", chain.Name, hook, policy))
		for i, r := range list {
			rules = append(rules, fmt.Sprintf("chain %s rule %d: %q of %d parts", chain.Name, i, r.UserData, len(r.Exprs)))
		}
	}
	peers = map[netip.Addr]bool{}
	sets, err := c.GetSets(guardTable())
	if err != nil {
		return nil, nil, err
	}
	for _, set := range sets {
		if !slices.Contains(guardSets[:], set.Name) {
			continue
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range elements {
			a, _ := netip.AddrFromSlice(e.Key)
			peers[a] = true
		}
	}
	slices.Sort(rules)
	return rules, peers, nil
}

// guardAsPlanned tells how a host's guard differs from what it was at first, or
// lets in others than the records' holders.
func (w *walk) guardAsPlanned(h *Host, records []walkRecord) error {
	rules, peers, err := guardPicture(h)
	if err != nil {
		return fmt.Errorf("%s: read the guard: %w", h.Name, err)
	}
	if w.guards[h] == nil && len(rules) > 0 {
		w.guards[h] = rules
	}
	if !slices.Equal(rules, w.guards[h]) || len(rules) == 0 {
		return fmt.Errorf("%s: the guard is %q, at first it was %q", h.Name, rules, w.guards[h])
	}
	want := map[netip.Addr]bool{}
	for _, r := range records {
		for _, e := range r.ends {
			if r.node != h.Name {
				want[e.public] = true
			}
		}
	}
	maps.DeleteFunc(peers, func(a netip.Addr, _ bool) bool { return !want[a] && time.Now().Before(w.left[a]) })
	if !maps.Equal(peers, want) {
		return fmt.Errorf("%s: the guard lets in %v, want %v", h.Name, slices.Collect(maps.Keys(peers)), slices.Collect(maps.Keys(want)))
	}
	return nil
}

// harmGuard changes a host's nftables. What the daemon was faster to change, so
// that nothing is there to harm, does not matter.
func harmGuard(harm func(*nftables.Conn, *rand.Rand) error) walkDeed {
	return func(_ *walk, h *Host, r *rand.Rand) (func() error, error) {
		c, err := nftables.New(nftables.WithNetNSFd(h.Namespace.FD()))
		if err != nil {
			return nil, err
		}
		if harm(c, r) == nil {
			_ = c.Flush()
		}
		return nil, nil
	}
}

func flushRuleset(c *nftables.Conn, _ *rand.Rand) error {
	c.FlushRuleset()
	return nil
}

func deleteGuard(c *nftables.Conn, _ *rand.Rand) error {
	c.DelTable(guardTable())
	return nil
}

func deleteGuardRule(c *nftables.Conn, r *rand.Rand) error {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	var all []*nftables.Rule
	for _, chain := range chains {
		if chain.Table.Name == "ripstop" {
			rules, err := c.GetRules(chain.Table, chain)
			if err != nil {
				return err
			}
			all = append(all, rules...)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return c.DelRule(all[r.IntN(len(all))])
}

// keepOutPeers takes one or all of the peers of a family out of the guard.
func keepOutPeers(c *nftables.Conn, r *rand.Rand) error {
	set := &nftables.Set{Table: guardTable(), Name: guardSets[r.IntN(2)]}
	elements, err := c.GetSetElements(set)
	if err != nil || len(elements) == 0 {
		return err
	}
	at := r.IntN(len(elements))
	if r.IntN(2) == 0 {
		elements = elements[at : at+1]
	}
	return c.SetDeleteElements(set, elements)
}

// letInStranger has the guard let in who is no peer.
func letInStranger(c *nftables.Conn, r *rand.Rand) error {
	f := subnet.Families[r.IntN(2)]
	stranger := subnet.PerFamily[netip.Addr]{netip.MustParseAddr("10.99.0.99"), netip.MustParseAddr("fd99::99")}[f]
	types := subnet.PerFamily[nftables.SetDatatype]{nftables.TypeIPAddr, nftables.TypeIP6Addr}
	return c.SetAddElements(&nftables.Set{Table: guardTable(), Name: guardSets[f], KeyType: types[f]}, []nftables.SetElement{{Key: stranger.AsSlice()}})
}
