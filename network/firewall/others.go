package firewall

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// others are the rules of everybody else that forwarded packets meet.
type others struct {
	chains map[chainKey]*otherChain
	sets   map[setKey]*otherSet
	// bases are the chains at the forward hook, in the order of their
	// priorities.
	bases []*otherChain
	// unread counts the chains that are led to and that were one too many.
	unread int
}

type chainKey struct {
	table tableKey
	name  string
}

type setKey chainKey

// otherChain is somebody else's chain. A base chain has a priority and a policy.
type otherChain struct {
	key      chainKey
	priority int32
	drop     bool // The policy.
	rules    []rule
	unread   bool // It has rules that are not here.
}

// otherSet is a set of somebody else's, or a map. elements is nil where it is
// not understood.
type otherSet struct {
	interval bool
	elements []nftables.SetElement
}

// mostChains bounds how many chains are read beyond those at the hook, the nearest
// first. What leads to one that was not is as good as unknown.
const mostChains = 2000

// filtered are the families whose chains at the forward hook see IP packets.
// The hooks of others have other numbers.
var filtered = []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}

// readOthers reads the chains at the forward hook and what they lead to, of which
// at most so many.
func (c *conn) readOthers(most int) (*others, error) {
	o := &others{chains: map[chainKey]*otherChain{}, sets: map[setKey]*otherSet{}}
	chains, err := c.nft.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	var extra []*otherChain
	for _, chain := range chains {
		if chain.Table == nil || !slices.Contains(filtered, chain.Table.Family) || chain.Table.Family == nftables.TableFamilyINet && chain.Table.Name == TableName {
			continue
		}
		key := chainKey{tableKey{byte(chain.Table.Family), chain.Table.Name}, chain.Name}
		if key.forwardOfIPTables(dockerUser) { // Ours may be in it, even if it is not led to.
			o.chains[key] = &otherChain{key: key}
			extra = append(extra, o.chains[key])
		}
		if chain.Hooknum == nil || *chain.Hooknum != *nftables.ChainHookForward || chain.Type != nftables.ChainTypeFilter {
			continue
		}
		base := &otherChain{key: key}
		if chain.Priority != nil {
			base.priority = int32(*chain.Priority)
		}
		base.drop = chain.Policy != nil && *chain.Policy == nftables.ChainPolicyDrop
		o.chains[base.key] = base
		o.bases = append(o.bases, base)
	}
	slices.SortStableFunc(o.bases, func(a, b *otherChain) int { return cmp.Compare(a.priority, b.priority) })
	for todo := slices.Concat(o.bases, extra); len(todo) > 0; todo = todo[1:] {
		found, err := c.readChain(o, todo[0])
		if err != nil {
			return nil, err
		}
		for _, chain := range found[min(most, len(found)):] {
			chain.unread = true
			o.unread++
		}
		found = found[:min(most, len(found))]
		most -= len(found)
		todo = append(todo, found...)
	}
	return o, nil
}

// readChain reads a chain's rules and the sets that they look into. It returns
// the chains that it leads to and that were not known.
func (c *conn) readChain(o *others, chain *otherChain) (found []*otherChain, err error) {
	table := chain.key.table
	if chain.rules, err = c.rules(table.family, table.name, chain.key.name); err != nil {
		return nil, fmt.Errorf("table %s: %w", table, err)
	}
	lead := func(v *expr.Verdict) {
		key := chainKey{table, v.Chain}
		if _, known := o.chains[key]; !known && v.Chain != "" {
			o.chains[key] = &otherChain{key: key}
			found = append(found, o.chains[key])
		}
	}
	for _, r := range chain.rules {
		for _, e := range r.exprs {
			switch e := e.any.(type) {
			case *expr.Verdict:
				lead(e)
			case *expr.Lookup:
				key := setKey{table, e.SetName}
				if _, known := o.sets[key]; known {
					continue
				}
				o.sets[key] = c.readSet(key)
				for _, element := range o.sets[key].elements {
					if !e.IsDestRegSet || e.DestRegister != unix.NFT_REG_VERDICT {
						break
					}
					if v := verdictOf(element); v != nil {
						lead(v)
					}
				}
			}
		}
	}
	return found, nil
}

// readSet reads a set. One that is not understood is as good as unknown.
func (c *conn) readSet(key setKey) *otherSet {
	table := &nftables.Table{Family: nftables.TableFamily(key.table.family), Name: key.table.name}
	s, err := c.nft.GetSetByName(table, key.name)
	if err != nil || s.Concatenation {
		return &otherSet{}
	}
	elements, err := c.nft.GetSetElements(s)
	if err != nil {
		return &otherSet{}
	}
	if s.Interval {
		slices.SortStableFunc(elements, func(a, b nftables.SetElement) int {
			return cmp.Or(slices.Compare(a.Key, b.Key), b2i(b.IntervalEnd)-b2i(a.IntervalEnd))
		})
	}
	return &otherSet{interval: s.Interval, elements: elements}
}

func (k tableKey) String() string {
	names := map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}
	return names[k.family] + " " + k.name
}

// lookup finds the element of a set that has a key. An interval is a start and,
// as another element, an end that is not in it.
func (s *otherSet) lookup(key []byte) (e nftables.SetElement, found bool) {
	for _, each := range s.elements {
		switch {
		case !s.interval && slices.Equal(each.Key, key):
			return each, true
		case s.interval && slices.Compare(each.Key, key) <= 0:
			e, found = each, !each.IntervalEnd
		}
	}
	return e, found
}

// verdictOf is the verdict that a verdict map gives for an element, nil if it is
// not understood.
func verdictOf(e nftables.SetElement) *expr.Verdict {
	d, err := netlink.NewAttributeDecoder(e.Val) // Of NFTA_DATA_VERDICT.
	if err != nil || len(e.Val) == 0 {
		return nil
	}
	d.ByteOrder = binary.BigEndian
	v := &expr.Verdict{}
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_VERDICT_CODE:
			v.Kind = expr.VerdictKind(int32(d.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = d.String()
		}
	}
	if d.Err() != nil {
		return nil
	}
	return v
}
