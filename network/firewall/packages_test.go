//go:build packages

// Tests with real programs of a distribution, for "make test-packages".

package firewall

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// shell runs a command in a namespace and returns what it says.
func shell(t *testing.T, ns *os.File, command string) string {
	t.Helper()
	var out []byte
	var err error
	kerneltest.Do(t, ns, func() error { // A child is where the thread is that starts it.
		out, err = exec.Command("sh", "-ec", command).CombinedOutput()
		return nil
	})
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

// The real nft reads our texts as the kernel reads our messages.
func TestTextsAreWhatIsWritten(t *testing.T) {
	for name, want := range plans() {
		t.Run(name, func(t *testing.T) {
			ours, theirs := kerneltest.Namespace(t), kerneltest.Namespace(t)
			if err := outside(t, ours).writeOwn(want, nil, nftables.CounterObj{}); err != nil {
				t.Fatal(err)
			}
			path, err := filepath.Abs(filepath.Join("testdata", name+".nft"))
			if err != nil {
				t.Fatal(err)
			}
			shell(t, theirs, "nft -f "+path)
			// Chains are listed in the order in which they were made.
			list := func(ns *os.File) []string {
				lines := strings.Split(shell(t, ns, "nft list table inet ripstop"), "\n\n")
				for i := range lines {
					lines[i] = strings.Trim(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(lines[i]), "table inet ripstop {"), "\n}"), "\n\t")
				}
				slices.Sort(lines)
				return lines
			}
			if got, want := list(ours), list(theirs); !slices.Equal(got, want) {
				t.Errorf("nft lists ours as\n%s\nand the text as\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// Docker's rules, as it writes them at its start.
const dockerRules = `
iptables-nft -P FORWARD DROP
iptables-nft -N DOCKER
iptables-nft -N DOCKER-ISOLATION-STAGE-1
iptables-nft -N DOCKER-ISOLATION-STAGE-2
iptables-nft -N DOCKER-USER
iptables-nft -A FORWARD -j DOCKER-USER
iptables-nft -A FORWARD -j DOCKER-ISOLATION-STAGE-1
iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A FORWARD -o docker0 -j DOCKER
iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables-nft -A FORWARD -i docker0 -o docker0 -j ACCEPT
iptables-nft -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
iptables-nft -A DOCKER-ISOLATION-STAGE-1 -j RETURN
iptables-nft -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
iptables-nft -A DOCKER-ISOLATION-STAGE-2 -j RETURN
iptables-nft -A DOCKER-USER -j RETURN`

// The real iptables lists our rules as rules of its own, and we read those that
// it writes.
func TestRealIPTables(t *testing.T) {
	const ours4 = "-s 10.5.0.0/16 -m comment --comment \"ripstop: pods\" -j ACCEPT\n%[1]s-d 10.5.0.0/16 -m comment --comment \"ripstop: pods\" -j ACCEPT"
	in := func(chain, rules string) string {
		return "-A " + chain + " " + strings.ReplaceAll(rules, "%[1]s", "-A "+chain+" ")
	}
	ours6 := strings.ReplaceAll(ours4, "10.5.0.0/16", "fd00:10:5::/48")
	for name, test := range map[string]struct{ setup, tool, want string }{
		"policy":         {"iptables-nft -P FORWARD DROP", "iptables-nft", in("FORWARD", ours4)},
		"policy of IPv6": {"ip6tables-nft -P FORWARD DROP", "ip6tables-nft", in("FORWARD", ours6)},
		"Docker":         {dockerRules, "iptables-nft", in("DOCKER-USER", ours4) + "\n-A DOCKER-USER -j RETURN"},
		"a reject at the end": {
			"iptables-nft -A FORWARD -p tcp --dport 25 -j REJECT; iptables-nft -A FORWARD -m state --state RELATED,ESTABLISHED -j ACCEPT; iptables-nft -A FORWARD -j REJECT --reject-with icmp-host-prohibited",
			"iptables-nft", in("FORWARD", ours4) + "\n-A FORWARD -j REJECT --reject-with icmp-host-prohibited",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, ns := opened(t, everything, networks["dual"])
			shell(t, ns, test.setup)
			before := shell(t, ns, test.tool+" -S")
			f.Update(nil, addrs(0, 3))
			f.passNow(t)
			if got := shell(t, ns, test.tool+" -S"); !strings.Contains(got, test.want) {
				t.Fatalf("%s lists\n%s\nwithout\n%s", test.tool, got, test.want)
			}
			if s := f.Status(t.Context()); len(s.Findings) != 0 {
				t.Errorf("found: %v", s.Findings)
			}
			// What iptables saves and loads again is ours still.
			save := strings.Replace(test.tool, "-nft", "-nft-save", 1)
			restore := strings.Replace(test.tool, "-nft", "-nft-restore", 1)
			shell(t, ns, save+" | "+restore)
			writes := f.Status(t.Context()).Writes
			f.heard.all()
			f.passNow(t)
			if s := f.Status(t.Context()); s.Writes != writes || len(s.Findings) != 0 {
				t.Errorf("after it was saved and loaded: %d writes, found %v", s.Writes-writes, s.Findings)
			}
			if err := f.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := shell(t, ns, test.tool+" -S"); got != before {
				t.Errorf("after removal %s lists\n%s\nbefore\n%s", test.tool, got, before)
			}
		})
	}
}

// Docker's rules alone are told when nothing may be changed.
func TestRealDockerRulesAreTold(t *testing.T) {
	off := everything
	off.ForwardRules = false
	f, ns := opened(t, off, networks["ipv4"])
	shell(t, ns, dockerRules)
	before := shell(t, ns, "nft list ruleset")
	f.Update(nil, nil)
	f.passNow(t)
	s := f.Status(t.Context())
	if len(s.Findings) != 1 || s.Findings[0].Rule != "policy drop" || !strings.Contains(s.Findings[0].Mend, "iptables -I FORWARD -s 10.5.0.0/16 -j ACCEPT") {
		t.Fatalf("found: %v", s.Findings)
	}
	if err := f.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := shell(t, ns, "nft list ruleset"); after != before {
		t.Errorf("after removal:\n%s\nbefore:\n%s", after, before)
	}
	shell(t, ns, strings.ReplaceAll(s.Findings[0].Mend, "iptables ", "iptables-nft "))
	again := openedIn(t, ns, off, networks["ipv4"])
	again.Update(nil, nil)
	again.passNow(t)
	if s := again.Status(t.Context()); len(s.Findings) != 0 {
		t.Errorf("the command does not mend it: %v", s.Findings)
	}
}

// nft's own command for another's table mends it too.
func TestRealRejectIsMendedByTheCommand(t *testing.T) {
	f, ns := opened(t, everything, networks["dual"])
	shell(t, ns, `nft -f - <<'EOF'
table inet filter {
	set trusted { type ipv4_addr; flags interval; elements = { 192.168.0.0/16 } }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state vmap { established : accept, related : accept, invalid : drop }
		iifname { "lo", "virbr0" } accept
		ip saddr @trusted accept
		meta l4proto { icmp, ipv6-icmp } accept
		reject with icmpx admin-prohibited
	}
}
EOF`)
	f.Update(nil, nil)
	f.passNow(t)
	found := f.Status(t.Context()).Findings
	if len(found) != 1 || found[0].Table != "inet filter" || found[0].Chain != "forward" || found[0].Rule != "reject" {
		t.Fatalf("found: %v", found)
	}
	shell(t, ns, found[0].Mend)
	f.heard.all()
	f.passNow(t)
	if s := f.Status(t.Context()); len(s.Findings) != 0 {
		t.Errorf("the command does not mend it: %v", s.Findings)
	}
}

// Legacy iptables is named with its policy, though nftables does not show it.
func TestRealLegacyIPTables(t *testing.T) {
	for name, test := range map[string]struct {
		setup, table, rule string
		certain            bool
	}{
		"not used":     {"true", "", "", false},
		"empty":        {"iptables-legacy -S", "", "", false},
		"policy":       {"iptables-legacy -P FORWARD DROP", "legacy ip filter", "policy drop", true},
		"IPv6":         {"ip6tables-legacy -P FORWARD DROP", "legacy ip6 filter", "policy drop", true},
		"rules":        {"iptables-legacy -A FORWARD -j REJECT; iptables-legacy -A FORWARD -s 10.0.0.0/8 -j ACCEPT", "legacy ip filter", "2 rules (iptables-legacy -S FORWARD)", false},
		"policy after": {"iptables-legacy -N X; iptables-legacy -A FORWARD -j X; iptables-legacy -P FORWARD DROP", "legacy ip filter", "policy drop, after 1 rules", false},
		"input only":   {"iptables-legacy -P INPUT DROP; iptables-legacy -A INPUT -j DROP; iptables-legacy -A OUTPUT -j DROP", "", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			f, ns := opened(t, everything, networks["dual"])
			shell(t, ns, test.setup)
			f.Update(nil, nil)
			f.passNow(t)
			found := f.Status(t.Context()).Findings
			if test.table == "" {
				if len(found) != 0 {
					t.Errorf("found: %v", found)
				}
				return
			}
			if len(found) != 1 || found[0].Table != test.table || found[0].Rule != test.rule || found[0].Certain != test.certain {
				t.Errorf("found: %v", found)
			}
		})
	}
}

// flannelRules are those of flannel v0.28, as it makes them by the iptables of a host,
// for the node that has the subnet of networks["dual"].
func flannelRules(tool, pods, own, many string) string {
	const rules = `
T -P FORWARD DROP
T -t nat -N FLANNEL-POSTRTG
T -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
T -t nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
T -t nat -A FLANNEL-POSTRTG -s OWN -d PODS -m comment --comment "flanneld masq" -j RETURN
T -t nat -A FLANNEL-POSTRTG -s PODS -d OWN -m comment --comment "flanneld masq" -j RETURN
T -t nat -A FLANNEL-POSTRTG ! -s PODS -d OWN -m comment --comment "flanneld masq" -j RETURN
T -t nat -A FLANNEL-POSTRTG -s PODS ! -d MANY -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
T -t nat -A FLANNEL-POSTRTG ! -s PODS -d PODS -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
T -N FLANNEL-FWD
T -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
T -A FLANNEL-FWD -s PODS -m comment --comment "flanneld forward" -j ACCEPT
T -A FLANNEL-FWD -d PODS -m comment --comment "flanneld forward" -j ACCEPT
`
	return strings.NewReplacer("T ", tool+" ", "PODS", pods, "OWN", own, "MANY", many).Replace(rules)
}

// What flannel makes by the real iptables goes, in both families, once ours stand; what
// others made by it is as it was.
func TestRealFlannelRules(t *testing.T) {
	n := networks["dual"]
	n.Flannels = true
	tools := []string{"iptables-nft", "ip6tables-nft"}
	lay := func(ns *os.File, tools []string) {
		for f, many := range []string{"224.0.0.0/4", "ff00::/8"} {
			shell(t, ns, flannelRules(tools[f], n.Ranges[f].String(), n.Own[f].String(), many))
			shell(t, ns, tools[f]+" -t nat -A POSTROUTING -p tcp --dport 7 -j RETURN")
		}
	}
	t.Run("nft", func(t *testing.T) {
		f, ns := opened(t, everything, n)
		lay(ns, tools)
		f.Update(nil, addrs(0, 3))
		f.passNow(t)
		for i, tool := range tools {
			saved := shell(t, ns, tool+"-save")
			for _, want := range []string{"-A FORWARD -s " + n.Ranges[i].String() + ` -m comment --comment "ripstop: pods" -j ACCEPT`, "--dport 7 -j RETURN", ":FORWARD DROP"} {
				if !strings.Contains(saved, want) {
					t.Errorf("%s lacks %q:\n%s", tool, want, saved)
				}
			}
			if strings.Contains(strings.ToLower(saved), "flannel") {
				t.Errorf("%s has flannel's still:\n%s", tool, saved)
			}
		}
		if s := f.Status(t.Context()); s.Err != nil || len(s.Findings) != 0 {
			t.Errorf("status: %+v", s)
		}
	})
	t.Run("legacy", func(t *testing.T) {
		f, ns := opened(t, everything, n)
		lay(ns, []string{"iptables-legacy", "ip6tables-legacy"})
		f.Update(nil, addrs(0, 3))
		f.passNow(t)
		commands, err := legacyFlannels(ns)
		if err != nil || len(commands) != 12 {
			t.Fatalf("named are %q, %v", commands, err)
		}
		shell(t, ns, strings.Join(commands, "; "))
		for _, tool := range []string{"iptables-legacy", "ip6tables-legacy"} {
			if saved := shell(t, ns, tool+"-save"); strings.Contains(strings.ToLower(saved), "flannel") || !strings.Contains(saved, "--dport 7 -j RETURN") {
				t.Errorf("after the commands %s has\n%s", tool, saved)
			}
		}
		if commands, err := legacyFlannels(ns); err != nil || len(commands) != 0 {
			t.Errorf("named are %q, %v", commands, err)
		}
	})
}
