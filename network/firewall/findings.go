package firewall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// Finding is a rule of somebody else's that drops pods' traffic.
type Finding struct {
	// Table and Chain are where it is, such as "ip filter" and "FORWARD".
	Table, Chain string
	// Rule is its text in nft's language or nearly so, or "policy drop".
	Rule string
	// Traffic says what it drops.
	Traffic string
	// Mend is a command that lets the traffic pass; one that shows the rules where they
	// could not be read.
	Mend string
	// Certain is false where rules are there that cannot be read.
	Certain bool
}

// String is the finding in one line.
func (f Finding) String() string {
	drops := "drops"
	if !f.Certain {
		drops = "may drop"
	}
	return fmt.Sprintf("table %s, chain %s: %q %s what goes %s; mend it with: %s", f.Table, f.Chain, f.Rule, drops, f.Traffic, f.Mend)
}

// mostFindings bounds how many are told.
const mostFindings = 20

// findings are the rules that drop a probe for certain, and the chains at the hook
// beyond which there are too many to read all that the probe may meet.
func (o *others) findings(n Network) []Finding {
	type key struct {
		table, chain, rule string
		certain            bool
	}
	traffic := map[key][]string{}
	mends := map[key][]string{}
	for _, p := range probes(n) {
		for _, base := range o.bases {
			if !base.sees(p.family()) {
				continue
			}
			t := trial{others: o, probe: p}
			k := key{base.key.table.String(), base.key.name, fmt.Sprintf("%d chains beyond the first %d, which are not read", o.unread, mostChains), false}
			if t.base(base) {
				k = key{t.by.key.table.String(), t.by.key.name, "policy drop", true}
				if t.at >= 0 {
					k.rule = describe(t.by.rules[t.at])
				}
			} else if !t.unread {
				continue
			}
			if !slices.Contains(traffic[k], p.traffic) {
				traffic[k] = append(traffic[k], p.traffic)
			}
			if command := mendCommand(base.key, n.Ranges[p.family()]); !slices.Contains(mends[k], command) {
				mends[k] = append(mends[k], command)
			}
		}
	}
	var out []Finding
	for k, what := range traffic {
		out = append(out, Finding{Table: k.table, Chain: k.chain, Rule: k.rule, Traffic: strings.Join(what, ", "), Mend: strings.Join(mends[k], "; "), Certain: k.certain})
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.String(), b.String()) })
	return out[:min(len(out), mostFindings)]
}

// sees tells whether a base chain sees packets of a family.
func (c *otherChain) sees(f subnet.Family) bool {
	return c.key.table.family == unix.NFPROTO_INET || c.key.table.family == nfprotos[f]
}

// mendCommand is a command that lets pods' traffic pass a base chain, in the
// language of whoever made it.
func mendCommand(base chainKey, pods netip.Prefix) string {
	f := subnet.FamilyOf(pods.Addr())
	switch {
	case base.forwardOfIPTables("FORWARD"):
		tool := subnet.PerFamily[string]{"iptables", "ip6tables"}[f]
		return fmt.Sprintf("%s -I FORWARD -s %s -j ACCEPT; %s -I FORWARD -d %s -j ACCEPT", tool, pods, tool, pods)
	case base.table.name == "firewalld":
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-source=%s; firewall-cmd --reload", pods)
	}
	chain := fmt.Sprintf("%s %s", base.table, base.name)
	return fmt.Sprintf("nft insert rule %s %s saddr %s accept; nft insert rule %s %s daddr %s accept",
		chain, headerNames[f], pods, chain, headerNames[f], pods)
}

// keepOthers looks at everybody else's rules, lets pods' traffic pass where it
// may, and tells what is left in the way.
func (f *Firewall) keepOthers(c *conn, n Network) error {
	if err := inNamespace(f.ns, n.look); err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	o, err := f.readOthers(c, n)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) { // Changed meanwhile.
		o, err = f.readOthers(c, n)
	}
	if err != nil {
		return fmt.Errorf("read others' rules: %w", err)
	}
	interest := map[tableKey]bool{}
	for _, base := range o.bases {
		interest[base.key.table] = true
	}
	f.heard.care(interest)
	changes := planMends(o, n, f.opts.ForwardRules)
	if len(changes) > 0 {
		if err := c.applyMends(changes); err != nil {
			return fmt.Errorf("change iptables' forward rules: %w", err)
		}
		f.note(func(s *Status) { s.Writes++ })
		for _, change := range changes {
			f.log.Info("iptables' forward rules changed for pods' traffic", zap.Stringer("change", change))
		}
		if o, err = f.readOthers(c, n); err != nil {
			return fmt.Errorf("read others' rules: %w", err)
		}
	}
	f.found = o.findings(n)
	f.tell()
	if n.Flannels && !f.succeeded {
		return f.succeed(c)
	}
	return nil
}

// readOthers reads others' rules; flannel's are left out where they are to go, for ours
// must do without them.
func (f *Firewall) readOthers(c *conn, n Network) (*others, error) {
	o, err := c.readOthers(mostChains)
	if err == nil && n.Flannels && !f.succeeded {
		o = o.withoutFlannels()
	}
	return o, err
}

// look finds by their addresses which interfaces of the host pods are behind: a
// bridge has one of the node's own subnet.
func (n *Network) look() error {
	interfaces, err := net.Interfaces()
	if err != nil {
		return err
	}
	n.pods, n.elsewhere = subnet.PerFamily[string]{}, nil
	for _, i := range interfaces {
		if slices.Contains(n.Devices[:], i.Name) {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // It is gone.
		}
		elsewhere := false
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || p.Addr().IsLinkLocalUnicast() {
				continue
			}
			if f := subnet.FamilyOf(p.Addr()); n.Own[f].Contains(p.Addr()) {
				n.pods[f] = i.Name
			} else {
				elsewhere = true
			}
		}
		if elsewhere && !slices.Contains(n.pods[:], i.Name) {
			n.elsewhere = append(n.elsewhere, i.Name)
		}
	}
	return nil
}

// tell notes the findings, with what legacy iptables has just now, and says once
// of each that it is there and that it is gone.
func (f *Firewall) tell() {
	now := slices.Concat(f.found, legacyFindings(f.ns, f.networkNow()))
	f.note(func(s *Status) { s.Findings = now })
	still := map[string]bool{}
	for _, finding := range now {
		text := finding.String()
		still[text] = true
		if f.said[text] {
			continue
		}
		fields := []zap.Field{
			zap.String("table", finding.Table), zap.String("chain", finding.Chain), zap.String("rule", finding.Rule),
			zap.String("traffic", finding.Traffic), zap.String("mend", finding.Mend),
		}
		if finding.Certain {
			f.log.Error("another's firewall rule drops pods' traffic", fields...)
		} else {
			f.log.Warn("another's firewall rules cannot be read and may drop pods' traffic", fields...)
		}
	}
	for text := range f.said {
		if !still[text] {
			f.log.Info("firewall rule is no longer in the way", zap.String("rule", text))
		}
	}
	f.said = still
}
