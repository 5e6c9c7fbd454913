package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// rules reads the packet filter.
func (c *Scene) rules(ctx context.Context, s Sources) (Filtered, Rules, error) {
	p := c.planner()
	if p == nil || !c.Options.Means().Carries() {
		return Filtered{}, Rules{}, ErrTooLittle
	}
	own, err := p.Own()
	if err != nil {
		return Filtered{}, Rules{}, err
	}
	n := Filtered{Own: c.Own.Subnets, Guard: c.Setup.Guard, EchoPort: c.Own.EchoPort}
	for _, f := range c.Config.Families() {
		n.Ranges[f] = c.Config.Ranges[f].Network
		n.At[f] = []netip.Addr{c.Sites[f].Addr}
		if a := c.Sites[f].Public; a != c.Sites[f].Addr { // Another interface may have it.
			n.At[f] = append(n.At[f], a)
		}
	}
	for _, e := range own {
		if d, ok := e.(backend.Device); ok {
			n.Devices[subnet.FamilyOf(d.Local)], n.VNI, n.Port = d.Name, d.VNI, d.Port
		}
	}
	if c.Status != nil && c.Status.Firewall.Kept {
		n.Guard = c.Status.Firewall.Guard
	}
	if file, err := readSubnetFile(c.Setup.SubnetFile); err == nil {
		n.Masquerade = file.IPMasq
	}
	r, err := s.Firewall.Examine(ctx, n, c.peerAddresses())
	return n, r, err
}

func checkFirewall(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	n, r, err := c.rules(ctx, s)
	if err != nil {
		return nil, err
	}
	return judgeFirewall(c, n, r), nil
}

// judgeFirewall says whether our own rules stand.
func judgeFirewall(c *Scene, n Filtered, r Rules) []Verdict {
	if r.Lacking {
		lost := unkept(n, false)
		if len(lost) == 0 {
			return well("the kernel has no nftables, and none of its rules is wanted")
		}
		return []Verdict{{
			Severity: Warning, Summary: "the kernel has no nftables: " + listed(lost),
			Remedy: []string{Command("modprobe nf_tables"), "Its parts that are needed: nft_ct, nft_masq, nft_fib_inet, nft_chain_nat."},
		}}
	}
	var out []Verdict
	if c.Status != nil && c.Status.Firewall.Problem != "" {
		out = append(out, Verdict{Severity: Failure, Summary: "the daemon cannot have its firewall rules as they should be", Evidence: []string{c.Status.Firewall.Problem}, Remedy: []string{"The evidence names what is missing."}})
	}
	switch {
	case !r.There && len(unkept(n, true)) > 0:
		out = append(out, Verdict{
			Severity: Warning, Summary: "nftables table inet ripstop is missing: " + listed(unkept(n, true)), Remedy: heals(c),
		})
	case len(r.Wrong) > 0:
		out = append(out, Verdict{Severity: Warning, Summary: "nftables table inet ripstop is not as it should be", Evidence: first(r.Wrong), Remedy: heals(c)})
	}
	if r.ShutAll > 0 {
		v := Verdict{Severity: Failure, Summary: fmt.Sprintf("the guard drops what %s sent", status.Count(r.ShutAll, "peer has", "peers have")), Remedy: heals(c)}
		for _, a := range r.Shut {
			v.Evidence = append(v.Evidence, a.String()+" is not in the guard's set")
		}
		v.Evidence = first(v.Evidence)
		out = append(out, v)
	}
	if len(out) > 0 {
		return out
	}
	return well("the firewall's own rules are as they should be")
}

// unkept lists what is not done for want of our rules, of what the daemon's options ask
// for; tracked tells whether connections are tracked, which those rules keep the tunnel's
// packets from.
func unkept(n Filtered, tracked bool) (out []string) {
	if n.Masquerade {
		out = append(out, "nothing is masqueraded")
	}
	if n.Guard && n.Port != 0 {
		out = append(out, "the tunnel takes packets from anybody")
	}
	if tracked && n.Port != 0 {
		out = append(out, "the tunnel's packets fill the table of connections")
	}
	return out
}

// listed joins parts of a sentence.
func listed(parts []string) string {
	if n := len(parts) - 1; n > 0 {
		return strings.Join(parts[:n], ", ") + ", and " + parts[n]
	}
	return strings.Join(parts, "")
}

func checkForeignRules(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	_, r, err := c.rules(ctx, s)
	if err != nil {
		return nil, err
	}
	return judgeForeignRules(r.Findings), nil
}

// judgeForeignRules tells of others' rules that drop pods' packets.
func judgeForeignRules(found []status.Rule) []Verdict {
	var out []Verdict
	for _, r := range found {
		v := Verdict{
			Severity: Failure, Summary: "another's firewall rule drops what goes " + r.Traffic, Evidence: []string{fmt.Sprintf("table %s, chain %s: %s", r.Table, r.Chain, r.Rule)}, Remedy: []string{Command("%s", r.Mend)},
		}
		if !r.Certain {
			v.Severity, v.Summary = Warning, "another's firewall rules may drop what goes "+r.Traffic+": they cannot be followed from here"
		}
		out = append(out, v)
	}
	if len(out) > 0 {
		return out
	}
	return well("no other firewall rule drops pods' packets for certain")
}

func checkGuard(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	n, r, err := c.rules(ctx, s)
	if err != nil {
		return nil, err
	}
	if !n.Guard || n.Port == 0 {
		return nil, nil
	}
	return judgeGuard(c, r), nil
}

// judgeGuard tells who sends what the guard drops. What was dropped long ago by whom
// nobody knows any more is no more than a number, and so is what came of a peer before
// the node had heard of it.
func judgeGuard(c *Scene, r Rules) []Verdict {
	strangers := slices.DeleteFunc(slices.Clone(r.Strangers), func(s status.Stranger) bool { return c.letIn(s.Address, r) })
	if len(strangers) == 0 {
		switch packets := status.Count(int(r.Dropped), "packet", "packets"); {
		case r.Dropped == 0:
			return well("the guard has dropped nothing")
		case len(r.Strangers) > 0:
			return well("the guard has dropped %s, and lately none but of peers that it lets in by now", packets)
		default:
			return well("the guard has dropped %s, and none lately", packets)
		}
	}
	v := Verdict{Severity: Warning, Summary: fmt.Sprintf("the guard drops packets of the tunnel from %s of no peer", status.Count(len(strangers), "address", "addresses"))}
	for _, s := range strangers {
		line := fmt.Sprintf("%s: %s in the last ten minutes or so", s.Address, status.Count(int(s.Packets), "packet", "packets"))
		if who := c.behind(s); who != "" {
			line += "; " + who
		}
		v.Evidence = append(v.Evidence, line)
	}
	v.Remedy = []string{
		"A node that sends from another address than it publishes is told by --public-ip, or --iface, on that node.",
		"A node whose record has run out comes back by itself when its daemon runs. What is no node at all is forged, or of a network with the same VNI and port.",
	}
	return []Verdict{v}
}

// letIn tells whether an address is a peer's that the guard lets in.
func (c *Scene) letIn(a netip.Addr, r Rules) bool {
	if c.mirror == nil || slices.Contains(r.Shut, a) {
		return false
	}
	_, peer := c.mirror.ByPublic(a)
	return peer
}

// behind says what is known of a stranger: a record that is passed over names it.
func (c *Scene) behind(s status.Stranger) string {
	if c.Listing == nil {
		return ""
	}
	for _, l := range c.Listing.Leases {
		for _, e := range l.Endpoints {
			if e.PublicIP == s.Address {
				return "it is that of " + l.Holder() + ", whose record is passed over"
			}
		}
	}
	return ""
}
