package firewall

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ripstop-net/ripstop/subnet"
)

var update = flag.Bool("update", false, "write the goldens anew")

func prefixes(v4, v6 string) (s subnet.Subnets) {
	for f, text := range []string{v4, v6} {
		if text != "" {
			s[f] = netip.MustParsePrefix(text)
		}
	}
	return s
}

func here(addrs ...string) (at subnet.PerFamily[[]netip.Addr]) {
	for _, text := range addrs {
		a := netip.MustParseAddr(text)
		at[subnet.FamilyOf(a)] = append(at[subnet.FamilyOf(a)], a)
	}
	return at
}

// The network of the tests, in three modes.
var networks = map[string]Network{
	"ipv4": {
		Ranges: prefixes("10.5.0.0/16", ""), Own: prefixes("10.5.7.0/24", ""),
		Devices: subnet.PerFamily[string]{"ripstop.1", ""}, At: here("10.99.0.1"), VNI: 1, Port: 8472,
	},
	"ipv6": {
		Ranges: prefixes("", "fd00:10:5::/48"), Own: prefixes("", "fd00:10:5:7::/64"),
		Devices: subnet.PerFamily[string]{"", "ripstop-v6.1"}, At: here("fd99::1"), VNI: 1, Port: 8472,
	},
	"dual": {
		Ranges: prefixes("10.5.0.0/16", "fd00:10:5::/48"), Own: prefixes("10.5.7.0/24", "fd00:10:5:7::/64"),
		Devices: subnet.PerFamily[string]{"ripstop.1", "ripstop-v6.1"}, At: here("10.99.0.1", "fd99::1"), VNI: 1, Port: 8472,
	},
}

// plans are all goldens.
func plans() map[string]Ruleset {
	all := Options{Masquerade: true, Guard: true}
	out := map[string]Ruleset{}
	for mode, n := range networks {
		out[mode] = Plan(all, n, 3)
		out[mode+"-guard"] = Plan(Options{Guard: true}, n, 3)
		out[mode+"-untracked"] = Plan(Options{}, n, 3)
	}
	odd := networks["dual"]
	odd.Ranges, odd.VNI, odd.Port = prefixes("10.160.0.0/11", "fd00:10:4::/46"), 0xabcdef, 4789
	odd.At = here("10.99.0.1", "203.0.113.1", "fd99::1")
	exempt := all
	exempt.Unmasqueraded = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/17"), netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("2001:db8::/32")}
	out["odd"] = Plan(exempt, odd, 3)
	for mode, n := range networks {
		out[mode+"-echo"] = Plan(Options{Guard: true, EchoPort: 8473}, n, 3)
	}
	alloc := networks["dual"]
	alloc.Port = 0
	out["no-tunnel"] = Plan(all, alloc, 3)
	return out
}

func TestPlan(t *testing.T) {
	for name, got := range plans() {
		path := filepath.Join("testdata", name+".nft")
		if *update {
			if err := os.WriteFile(path, []byte(got.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
	n := networks["dual"]
	n.Port = 0
	if got := Plan(Options{Guard: true}, n, 3); !got.Empty() || got.String() != "" {
		t.Errorf("with nothing to do there is a table:\n%s", got)
	}
}

func TestCheckOptions(t *testing.T) {
	many := make([]netip.Prefix, mostUnmasqueraded+1)
	for i := range many {
		many[i] = netip.MustParsePrefix("192.0.2.0/24")
	}
	for _, bad := range [][]netip.Prefix{many, {netip.MustParsePrefix("192.0.2.1/24")}, {{}}} {
		if (Options{Unmasqueraded: bad}).Check() == nil {
			t.Errorf("%d prefixes, the first %s, are taken", len(bad), bad[0])
		}
	}
	if err := (Options{Unmasqueraded: many[1:]}).Check(); err != nil {
		t.Error(err)
	}
}
