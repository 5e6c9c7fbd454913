package planners

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/subnet"
)

var update = flag.Bool("update", false, "write the goldens anew")

var modes = map[string]string{
	"ipv4": `"Network": "10.5.0.0/16"`,
	"ipv6": `"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:5::/48"`,
	"dual": `"EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:10:5::/48"`,
}

// backends are the configs' Backend objects, with the MTU that pods get by mode.
var backends = map[string]struct {
	options string
	mtu     map[string]int
}{
	"vxlan":   {`{"Type": "vxlan"}`, map[string]int{"ipv4": 1450, "ipv6": 1430, "dual": 1430}},
	"direct":  {`{"Type": "vxlan", "DirectRouting": true, "VNI": 77, "Port": 4789, "MTU": 1400}`, map[string]int{"ipv4": 1400, "ipv6": 1400, "dual": 1400}},
	"host-gw": {`{"Type": "host-gw"}`, map[string]int{"ipv4": 1500, "ipv6": 1500, "dual": 1500}},
	"alloc":   {`{"Type": "alloc"}`, map[string]int{"ipv4": 1500, "ipv6": 1500, "dual": 1500}},
}

// self is the node in the goldens, whose own lease is the first.
func self(c subnet.Config) plan.Self {
	s := plan.Self{Node: "node-a"}
	all := subnet.PerFamily[plan.Underlay]{
		{Interface: "eth0", Addr: netip.MustParseAddr("10.99.0.1"), MTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}},
		{Interface: "eth0", Addr: netip.MustParseAddr("fd99::1"), MTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix("fd99::/64")}},
	}
	for _, f := range c.Families() {
		s.Underlay[f] = all[f]
	}
	return s
}

// leases are what the store holds in the goldens: this node's, four peers',
// of which one has two subnets and is not on the link, one a single family, and one is
// behind a 1:1 NAT whose outer addresses are on the link. The first peer has a smaller
// MTU.
func leases(c subnet.Config, o plan.Options) []subnet.Lease {
	lease := func(node string, mtu int, four, six, public4, public6 string) subnet.Lease {
		l := subnet.Lease{Node: node, Backend: c.Backend.Type, ID: 1, MTU: mtu}
		texts := subnet.PerFamily[[2]string]{{four, public4}, {six, public6}}
		var public subnet.PerFamily[netip.Addr]
		for f, text := range texts {
			if c.Ranges[f].Enabled() && text[0] != "" {
				l.Subnets[f], public[f] = netip.MustParsePrefix(text[0]), netip.MustParseAddr(text[1])
			}
		}
		l.Endpoints = o.Endpoints(plan.Self{Node: node}, public)
		return l
	}
	all := []subnet.Lease{
		lease("node-a", 0, "10.5.1.0/24", "fd00:10:5:1::/64", "10.99.0.1", "fd99::1"),
		lease("node-b", 1300, "10.5.2.0/24", "fd00:10:5:2::/64", "10.99.0.2", "fd99::2"),
		lease("node-c", 0, "10.5.3.0/24", "fd00:10:5:3::/64", "10.99.1.3", "fd99:1::3"),
		lease("node-c", 0, "10.5.4.0/24", "fd00:10:5:4::/64", "10.99.1.3", "fd99:1::3"),
		lease("node-d", 9000, "10.5.5.0/24", "", "10.99.0.4", ""),
		lease("node-e", 0, "10.5.6.0/24", "fd00:10:5:6::/64", "10.99.0.5", "fd99::5"),
	}
	for f := range all[len(all)-1].Endpoints {
		e := &all[len(all)-1].Endpoints[f]
		e.Translated = e.PublicIP.IsValid()
	}
	return slices.DeleteFunc(all, func(l subnet.Lease) bool { return l.Subnets == subnet.Subnets{} })
}

// TestStateOwedForLeases holds the goldens leases → State of each backend in the
// three modes.
func TestStateOwedForLeases(t *testing.T) {
	for name, b := range backends {
		for mode, keys := range modes {
			t.Run(name+"-"+mode, func(t *testing.T) {
				cfg, err := subnet.ParseConfig([]byte(`{` + keys + `, "Backend": ` + b.options + `}`))
				if err != nil {
					t.Fatal(err)
				}
				opts, err := Parse(cfg.Backend)
				if err != nil {
					t.Fatal(err)
				}
				all, self := leases(cfg, opts), self(cfg)
				if mtu, err := opts.Planner(self).MTU(); err != nil || mtu != b.mtu[mode] { // Before there is a lease.
					t.Errorf("MTU %d, %v, want %d", mtu, err, b.mtu[mode])
				}
				self.Subnets = all[0].Subnets
				holds(t, name+"-"+mode, owed(t, cfg, opts.Planner(self), all))
			})
		}
	}
}

// owed writes what leases come to.
func owed(t *testing.T, cfg subnet.Config, planner plan.Planner, all []subnet.Lease) string {
	var in, problems strings.Builder
	id := subnet.Identity{Node: "node-a"}
	for f := range id.PublicIP {
		id.PublicIP[f] = all[0].Endpoints[f].PublicIP
	}
	mirror := subnet.NewMirror(cfg, id, planner.Check)
	mirror.Apply(time.Now(), subnet.Change{Whole: true, Leases: all})
	own, err := planner.Own()
	if err != nil {
		t.Fatal(err)
	}
	var owed backend.Ledger
	owed.Owe(own...)
	for _, l := range mirror.Peers() {
		owed.Owe(planner.Peer(l)...)
	}
	for _, l := range all {
		key := l.Subnets.Key()
		in.WriteString(key + " " + string(l.Record()) + "\n")
		if why, bad := mirror.Problems()[key]; bad {
			problems.WriteString(key + " " + why + "\n")
		}
	}
	return "leases\n" + in.String() + "\nproblems\n" + problems.String() + "\nstate\n" + owed.Want().String()
}

// holds compares a text with a golden.
func holds(t *testing.T, name, text string) {
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), text); d != "" {
		t.Errorf("differs from %s (-update writes it anew):\n%s", path, d)
	}
}

func TestAnotherTypeIsToldWhatThereIs(t *testing.T) {
	for _, name := range []string{"udp", "wireguard", "VXLAN", "hostgw"} {
		_, err := Parse(subnet.Backend{Type: name, Options: "{}"})
		if !errors.Is(err, subnet.ErrMalformedConfig) || !strings.Contains(err.Error(), `"`+name+`": there are vxlan, host-gw, alloc`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUnknownKeysByType(t *testing.T) {
	for options, want := range map[string][]string{
		`{"Type":"vxlan","VNI":7,"Vni2":1}`: {"Vni2"}, `{"Type":"host-gw","VNI":7}`: {"VNI"}, `{"type":"alloc"}`: nil,
	} {
		kind := map[byte]string{'v': "vxlan", 'h': "host-gw", 'a': "alloc"}[options[9]]
		if got := UnknownKeys(subnet.Backend{Type: kind, Options: options}); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", options, got, want)
		}
	}
}

func TestCompatible(t *testing.T) {
	b := func(kind, options string) subnet.Backend { return subnet.Backend{Type: kind, Options: options} }
	for _, tc := range []struct {
		a, b subnet.Backend
		want bool
	}{
		{b("vxlan", `{}`), b("vxlan", `{"DirectRouting":true,"MTU":1400}`), true},
		{b("vxlan", `{}`), b("vxlan", `{"VNI":2}`), false},
		{b("vxlan", `{}`), b("vxlan", `{"Port":4789}`), false},
		{b("vxlan", `{}`), b("host-gw", `{}`), false},
		{b("host-gw", `{}`), b("host-gw", `{"x":1}`), true},
		{b("udp", `{}`), b("vxlan", `{}`), true},
	} {
		if got := Compatible(tc.a, tc.b); got != tc.want {
			t.Errorf("%v and %v: %t", tc.a, tc.b, got)
		}
	}
}

// TestTooSmallMTUIsRefusedWithTheInterface: of each backend that carries packets.
func TestTooSmallMTUIsRefusedWithTheInterface(t *testing.T) {
	for name, kind := range map[string]string{"vxlan": `{"Type": "vxlan"}`, "host-gw": `{"Type": "host-gw"}`} {
		cfg, err := subnet.ParseConfig([]byte(`{` + modes["dual"] + `, "Backend": ` + kind + `}`))
		if err != nil {
			t.Fatal(err)
		}
		opts, err := Parse(cfg.Backend)
		if err != nil {
			t.Fatal(err)
		}
		s := self(cfg)
		s.Underlay[subnet.V6].MTU = 1270
		if mtu, err := opts.Planner(s).MTU(); err == nil || !strings.Contains(err.Error(), "interface eth0: ") {
			t.Errorf("%s: %d, %v", name, mtu, err)
		}
	}
}
