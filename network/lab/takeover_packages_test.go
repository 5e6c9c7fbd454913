//go:build packages

package lab

import (
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// byIPTables makes flannel's chains by the real iptables of a host on which FORWARD drops
// what nobody accepts: flannel's rules do, until ours stand.
func byIPTables(t *testing.T, f flannel) {
	t.Helper()
	const rules = `
T -P FORWARD DROP
T -t nat -N FLANNEL-POSTRTG
T -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
T -t nat -A FLANNEL-POSTRTG -s OWN -d PODS -m comment --comment "flanneld masq" -j RETURN
T -t nat -A FLANNEL-POSTRTG -s PODS -d OWN -m comment --comment "flanneld masq" -j RETURN
T -t nat -A FLANNEL-POSTRTG -s PODS ! -d MANY -m comment --comment "flanneld masq" -j MASQUERADE --random-fully
T -N FLANNEL-FWD
T -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
T -A FLANNEL-FWD -s PODS -m comment --comment "flanneld forward" -j ACCEPT
T -A FLANNEL-FWD -d PODS -m comment --comment "flanneld forward" -j ACCEPT
`
	for _, family := range f.host.lab.Families() {
		shell(t, f.host, strings.NewReplacer(
			"T ", subnet.PerFamily[string]{"iptables-nft ", "ip6tables-nft "}[family], "PODS", f.host.lab.podRange(family),
			"OWN", f.subnets[family].String(), "MANY", subnet.PerFamily[string]{"224.0.0.0/4", "ff00::/8"}[family],
		).Replace(rules))
	}
}

// TestRealRulesOfFlannel: a node whose FORWARD drops everything but for flannel's rules of
// the real iptables is taken over under a ping and loses nothing: ours let pods' packets
// pass before flannel's go.
func TestRealRulesOfFlannel(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, NoDaemons: true, DaemonArgs: []string{"--ip-masq=true"}})
	all := layOutFlannel(t, l, byIPTables)
	pings := pingAll(t, l)
	time.Sleep(calm)
	allOurs(t, l, pings, all)
	for _, h := range l.Hosts {
		for _, tool := range []string{"iptables-nft-save", "ip6tables-nft-save"} {
			if saved := shell(t, h, tool); strings.Contains(strings.ToLower(saved), "flannel") || !strings.Contains(saved, "ripstop: pods") {
				t.Errorf("%s on %s:\n%s", tool, h.Name, saved)
			}
		}
	}
}
