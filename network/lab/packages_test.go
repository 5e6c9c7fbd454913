//go:build packages

// Tests with real programs of a distribution, for "make test-packages".

package lab

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// shell runs a command on a host of the lab and returns what it says.
func shell(t *testing.T, h *Host, command string) string {
	t.Helper()
	cmd := exec.Command("sh", "-ec", command)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Namespace.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s on %s: %v\n%s", command, h.Name, err, &out)
	}
	return out.String()
}

// With FORWARD set to DROP by the real iptables, as Docker does, pods go on
// talking; with the rules turned off, or with legacy iptables, they do not, and
// the log names what is in the way and the command that mends it.
func TestRealForwardDrop(t *testing.T) {
	const drops = "another's firewall rule drops pods' traffic"
	for name, test := range map[string]struct {
		args []string
		tool subnet.PerFamily[string]
		told string
	}{
		"iptables-nft": {nil, subnet.PerFamily[string]{"iptables-nft", "ip6tables-nft"}, ""},
		"iptables-nft, rules off": {
			[]string{"--iptables-forward-rules=false"}, subnet.PerFamily[string]{"iptables-nft", "ip6tables-nft"}, `"table":"ip filter","chain":"FORWARD","rule":"policy drop"`,
		},
		"iptables-legacy": {nil, subnet.PerFamily[string]{"iptables-legacy", "ip6tables-legacy"}, `"table":"legacy ip filter","chain":"FORWARD","rule":"policy drop"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := startLab(t, Options{Nodes: 2, Mode: Dual, DaemonArgs: test.args})
			everyPairTalks(t, l, talkLimit)
			h := l.Hosts[0]
			for _, f := range l.Families() {
				shell(t, h, test.tool[f]+" -P FORWARD DROP")
			}
			if test.told == "" {
				eventually(t, talkLimit, "iptables lists our rules", func() bool {
					return strings.Contains(shell(t, h, "iptables-nft -S FORWARD"), `-A FORWARD -s 10.5.0.0/16 -m comment --comment "ripstop: pods" -j ACCEPT`)
				})
				everyPairTalks(t, l, talkLimit)
				return
			}
			if m, err := l.Matrix(t.Context(), time.Second); err != nil || m.Err() == nil {
				t.Fatalf("pods talk though FORWARD drops: %v", err)
			}
			// Nothing announces what legacy iptables does: it is looked at now and then.
			p := probeOf(t, h)
			eventually(t, time.Minute, "log and status tell it", func() bool {
				log := h.DaemonLog()
				s, err := p.client.Status(t.Context())
				return err == nil && strings.Contains(log, drops) && strings.Contains(log, test.told) && slices.ContainsFunc(s.Firewall.Findings, func(r status.Rule) bool {
					return r.Certain && r.Chain == "FORWARD" && r.Rule == "policy drop" && strings.Contains(test.told, r.Table) && r.Mend != ""
				})
			})
			for _, f := range l.Families() {
				tool := test.tool[f]
				pods := l.podRange(f)
				shell(t, h, tool+" -I FORWARD -s "+pods+" -j ACCEPT; "+tool+" -I FORWARD -d "+pods+" -j ACCEPT")
			}
			everyPairTalks(t, l, talkLimit)
		})
	}
}

// What firewalld 1.x writes for a host with one interface in the zone public: pods'
// traffic between nodes goes past all that its chains accept, to a reject.
const firewalldRules = `nft -f - <<'EOF'
table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
	}
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24 } reject with icmpv6 addr-unreachable
		jump filter_FORWARD_POLICIES
		reject with icmpx admin-prohibited
	}
	chain filter_FORWARD_POLICIES {
		iifname "eth0" oifname "eth0" jump filter_FWD_public
		iifname "eth0" oifname "eth0" reject with icmpx admin-prohibited
		iifname "eth0" jump filter_FWD_public
		iifname "eth0" reject with icmpx admin-prohibited
		oifname "eth0" jump filter_FWD_public
		oifname "eth0" reject with icmpx admin-prohibited
		jump filter_FWD_public
		reject with icmpx admin-prohibited
	}
	chain filter_FWD_public {
		jump filter_FWD_public_pre
		jump filter_FWD_public_log
		jump filter_FWD_public_deny
		jump filter_FWD_public_allow
		jump filter_FWD_public_post
	}
	chain filter_FWD_public_pre {
	}
	chain filter_FWD_public_log {
	}
	chain filter_FWD_public_deny {
	}
	chain filter_FWD_public_allow {
		oifname "eth0" accept
	}
	chain filter_FWD_public_post {
	}
}
EOF`

// What it adds once the pods' addresses are a source of the zone trusted.
func trustedRules(pods, family string) string {
	return `nft add chain inet firewalld filter_FWD_trusted; nft add rule inet firewalld filter_FWD_trusted accept
nft insert rule inet firewalld filter_FORWARD_POLICIES ` + family + ` saddr ` + pods + ` jump filter_FWD_trusted`
}

// On a host with firewalld's rules pods do not talk, no rule of ours can help that,
// and log and status name the rule and firewalld's own command that mends it; after
// what that command does they talk, and it is said to be over.
func TestRealFirewalldLayout(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	h := l.Hosts[0]
	p := probeOf(t, h)
	shell(t, h, firewalldRules)
	if m, err := l.Matrix(t.Context(), time.Second); err != nil || m.Err() == nil {
		t.Fatalf("pods talk though firewalld rejects: %v", err)
	}
	command := func(f subnet.Family) string {
		return "firewall-cmd --permanent --zone=trusted --add-source=" + l.podRange(f) + "; firewall-cmd --reload"
	}
	eventually(t, talkLimit, "the status names the rule and the command", func() bool {
		s, err := p.client.Status(t.Context())
		if err != nil || len(s.Firewall.Findings) != 1 {
			return false
		}
		r := s.Firewall.Findings[0]
		return r.Certain && r.Table == "inet firewalld" && r.Chain == "filter_FORWARD_POLICIES" && strings.Contains(r.Rule, "reject") &&
			strings.Contains(r.Mend, command(subnet.V4)) && strings.Contains(r.Mend, command(subnet.V6))
	})
	saysInTime(t, h, "another's firewall rule drops pods' traffic", `"table":"inet firewalld","chain":"filter_FORWARD_POLICIES"`, command(subnet.V4))
	for _, f := range l.Families() {
		shell(t, h, trustedRules(l.podRange(f), subnet.PerFamily[string]{"ip", "ip6"}[f]))
	}
	everyPairTalks(t, l, talkLimit)
	eventually(t, talkLimit, "it is said to be over", func() bool {
		s, err := p.client.Status(t.Context())
		return err == nil && len(s.Firewall.Findings) == 0 && strings.Contains(h.DaemonLog(), "firewall rule is no longer in the way")
	})
}

// podRange is the usual config's address space of a family.
func (l *Lab) podRange(f subnet.Family) string {
	return subnet.PerFamily[string]{"10.5.0.0/16", "fd00:10:5::/48"}[f]
}

// The program conntrack shows no packet of the tunnel after load.
func TestConntrackShowsNoTunnel(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, DaemonArgs: []string{"--ip-masq=true"}})
	everyPairTalks(t, l, talkLimit)
	a, b := l.Hosts[0], l.Hosts[1]
	for _, f := range l.Families() {
		exchangeTCP(t, a.Pods[0], b.Pods[0], f)
		exchangeUDP(t, b.Pods[0], a.Pods[0], f)
		for _, h := range l.Hosts {
			list := shell(t, h, "conntrack -L -f "+subnet.PerFamily[string]{"ipv4", "ipv6"}[f])
			if strings.Contains(list, "dport=8472") {
				t.Errorf("%s tracks the tunnel:\n%s", h.Name, list)
			}
			if !strings.Contains(list, a.Pods[0].Addresses[f].String()) {
				t.Errorf("%s tracks no connection of the pods, so that the test is none:\n%s", h.Name, list)
			}
		}
	}
}
