//go:build packages

// Tests with real programs of a distribution, for "make test-packages".

package lab

import (
	"os/exec"
	"strings"
	"testing"
	"time"

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
				eventually(t, 5*time.Second, "iptables lists our rules", func() bool {
					return strings.Contains(shell(t, h, "iptables-nft -S FORWARD"), `-A FORWARD -s 10.5.0.0/16 -m comment --comment "ripstop: pods" -j ACCEPT`)
				})
				everyPairTalks(t, l, talkLimit)
				return
			}
			if m, err := l.Matrix(t.Context(), time.Second); err != nil || m.Err() == nil {
				t.Fatalf("pods talk though FORWARD drops: %v", err)
			}
			// Nothing announces what legacy iptables does: it is read with the rest.
			shell(t, h, "nft add table ip other; nft add chain ip other forward '{ type filter hook forward priority 0; }'")
			eventually(t, 5*time.Second, "it is told", func() bool {
				log := h.DaemonLog()
				return strings.Contains(log, drops) && strings.Contains(log, test.told)
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
