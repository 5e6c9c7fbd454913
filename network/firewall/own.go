package firewall

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// mostElements is how many elements go into one message: its attribute has a
// length of 16 bits, and what is beyond is lost without an error.
const mostElements = 2000

// ownTable names our table to the kernel.
func ownTable() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}
}

// own is what the kernel holds of our table.
type own struct {
	exists bool
	// skeleton is as [Ruleset.skeleton] has it.
	skeleton []string
	// peers are the elements of the sets, dropped the packets that the guard
	// counted.
	peers   *addresses
	size    uint32 // Of the sets.
	dropped nftables.CounterObj
}

var hookNames = map[nftables.ChainHook]string{
	*nftables.ChainHookPrerouting: "prerouting", *nftables.ChainHookInput: "input", *nftables.ChainHookForward: "forward",
	*nftables.ChainHookOutput: "output", *nftables.ChainHookPostrouting: "postrouting",
}

// readOwn reads our table.
func (c *conn) readOwn() (own, error) {
	o := own{peers: newAddresses()}
	tables, err := c.nft.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return o, fmt.Errorf("list tables: %w", err)
	}
	at := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName })
	if at < 0 {
		return o, nil
	}
	o.exists = true
	if tables[at].Flags != 0 { // Such as "dormant", which turns it off.
		o.skeleton = append(o.skeleton, fmt.Sprintf("flags %#x", tables[at].Flags))
	}
	for _, read := range []func(*own) error{c.readChains, c.readSets, c.readCounters} {
		if err := read(&o); err != nil {
			return o, fmt.Errorf("read table %s: %w", TableName, err)
		}
	}
	slices.Sort(o.skeleton)
	return o, nil
}

func (c *conn) readChains(o *own) error {
	chains, err := c.nft.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, chain := range chains {
		if chain.Table.Name != TableName {
			continue
		}
		hook, priority, accept := "", int32(0), true
		if chain.Hooknum != nil && chain.Priority != nil {
			hook, priority = hookNames[*chain.Hooknum], int32(*chain.Priority)
			accept = chain.Policy == nil || *chain.Policy == nftables.ChainPolicyAccept
		}
		o.skeleton = append(o.skeleton, skeletonChain(chain.Name, string(chain.Type), hook, priority, accept))
		rules, err := c.rules(byte(nftables.TableFamilyINet), TableName, chain.Name)
		if err != nil {
			return err
		}
		for i, r := range rules {
			o.skeleton = append(o.skeleton, skeletonRule(chain.Name, i, r.comment))
		}
	}
	return nil
}

func (c *conn) readSets(o *own) error {
	sets, err := c.nft.GetSets(ownTable())
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		o.skeleton = append(o.skeleton, skeletonSet(s.Name, s.KeyType.Name, s.Size, s.Timeout))
		if !slices.Contains(peerSets[:], s.Name) {
			continue
		}
		o.size = max(o.size, s.Size)
		if err := c.readPeers(s.Name, o.peers); err != nil {
			return fmt.Errorf("list elements of %s: %w", s.Name, err)
		}
	}
	return nil
}

func (c *conn) readCounters(o *own) error {
	objects, err := c.nft.GetObjects(ownTable())
	if err != nil {
		return fmt.Errorf("list counters: %w", err)
	}
	for _, object := range objects {
		if counter, ok := object.(*nftables.CounterObj); ok {
			o.skeleton = append(o.skeleton, skeletonCounter(counter.Name))
			if counter.Name == counterDropped {
				o.dropped = *counter
			}
		}
	}
	return nil
}

// writeOwn puts a whole table in place of what there is, in one transaction:
// each packet meets the old rules or the new. The count of what was dropped goes
// on.
func (c *conn) writeOwn(r Ruleset, peers []netip.Addr, dropped nftables.CounterObj) error {
	table := ownTable()
	c.nft.AddTable(table) // So that there is one to delete.
	c.nft.DelTable(table)
	if !r.Empty() {
		c.nft.AddTable(table)
		for _, name := range r.Counters {
			c.nft.AddObj(&nftables.CounterObj{Table: table, Name: name, Packets: dropped.Packets, Bytes: dropped.Bytes})
		}
		for _, s := range r.Sets {
			made := &nftables.Set{Table: table, Name: s.Name, KeyType: setTypes[s.Family], Size: s.Size}
			if s.Lasts != 0 {
				made.Dynamic, made.HasTimeout, made.Timeout = true, true, s.Lasts
			}
			if err := c.nft.AddSet(made, nil); err != nil {
				return err
			}
			if s.Lasts != 0 {
				continue
			}
			if err := c.addElements(s.Family, peers); err != nil {
				return err
			}
		}
		for _, chain := range r.Chains {
			c.nft.AddChain(kernelChain(table, chain))
		}
		for _, chain := range inOrder(r.Chains) {
			for _, rule := range chain.Rules {
				c.nft.AddRule(&nftables.Rule{
					Table: table, Chain: &nftables.Chain{Name: chain.Name}, Exprs: rule.exprs(), UserData: userComment(rule.Comment()),
				})
			}
		}
	}
	if err := c.nft.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", TableName, explain(err))
	}
	return nil
}

func kernelChain(table *nftables.Table, chain Chain) *nftables.Chain {
	out := &nftables.Chain{Table: table, Name: chain.Name}
	if chain.Hook == "" {
		return out
	}
	for number, name := range hookNames {
		if name == chain.Hook {
			out.Hooknum = nftables.ChainHookRef(number)
		}
	}
	accept := nftables.ChainPolicyAccept
	out.Type, out.Policy = nftables.ChainType(chain.Type), &accept
	out.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(chain.Priority))
	return out
}

func peerSet(f subnet.Family) *nftables.Set {
	return &nftables.Set{Table: ownTable(), Name: peerSets[f], KeyType: setTypes[f]}
}

// changePeers adds and removes elements.
func (c *conn) changePeers(add, remove []netip.Addr) error {
	for _, f := range subnet.Families {
		if err := c.addElements(f, add); err != nil {
			return err
		}
		for chunk := range slices.Chunk(elements(f, remove), mostElements) {
			if err := c.nft.SetDeleteElements(peerSet(f), chunk); err != nil {
				return err
			}
		}
	}
	if err := c.nft.Flush(); err != nil {
		return fmt.Errorf("change the guard's peers: %w", explain(err))
	}
	return nil
}

func (c *conn) addElements(f subnet.Family, addrs []netip.Addr) error {
	for chunk := range slices.Chunk(elements(f, addrs), mostElements) {
		if err := c.nft.SetAddElements(peerSet(f), chunk); err != nil {
			return err
		}
	}
	return nil
}

// elements are the addresses of a family as elements of its set.
func elements(f subnet.Family, addrs []netip.Addr) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(addrs))
	for _, a := range addrs {
		if subnet.FamilyOf(a) == f {
			out = append(out, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	return out
}

// deleteOwn takes our table away, if it is there.
func (c *conn) deleteOwn() error {
	err := c.writeOwn(Ruleset{}, nil, nftables.CounterObj{})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// rule is a rule as the kernel tells of it.
type rule struct {
	handle  uint64
	comment string
	exprs   []expression
}

// expression is a part of a rule: decoded, or of an unknown kind.
type expression struct {
	name string
	any  expr.Any // nil: not known here.
}

// readPeers reads the elements of a set of ours. The library's way takes ten
// times the memory.
func (c *conn) readPeers(set string, into *addresses) error {
	answers, err := c.dump(unix.NFT_MSG_GETSETELEM, unix.NFPROTO_INET, TableName, set)
	if err != nil {
		return err
	}
	for _, m := range answers {
		if err := parseElements(m.Data, into); err != nil {
			return err
		}
	}
	return nil
}

// dump asks for the parts of something in a table, which all kinds name by
// attributes of the same numbers.
func (c *conn) dump(what netlink.HeaderType, family byte, table, name string) ([]netlink.Message, error) {
	body, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: append([]byte(table), 0)},
		{Type: unix.NFTA_RULE_CHAIN, Data: append([]byte(name), 0)}, // NFTA_SET_ELEM_LIST_SET too.
	})
	if err != nil {
		return nil, err
	}
	return c.sock.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | what, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, body...),
	})
}

// rules reads the rules of a chain. The library's own way passes over parts of
// a rule that it does not know, so that the rule would seem to match more.
func (c *conn) rules(family byte, table, chain string) ([]rule, error) {
	answers, err := c.dump(unix.NFT_MSG_GETRULE, family, table, chain)
	if err != nil {
		return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
	}
	out := make([]rule, 0, len(answers))
	for _, m := range answers {
		r, err := parseRule(family, m.Data)
		if err != nil {
			return nil, fmt.Errorf("list rules of chain %s: %w", chain, err)
		}
		out = append(out, r)
	}
	return out, nil
}
