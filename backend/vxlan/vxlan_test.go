package vxlan

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
	"github.com/ripstop-net/ripstop/subnet"
)

var update = flag.Bool("update", false, "write the goldens anew")

var modes = map[string]string{
	"ipv4": `{"Network": "10.5.0.0/16"}`,
	"ipv6": `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:5::/48"}`,
	"dual": `{"EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:10:5::/48", "Backend": {"Type": "vxlan", "VNI": 77, "Port": 4789, "MTU": 1400}}`,
}

// leases are what the store holds in the goldens: this node's, three peers',
// two of them behind one VTEP, and one of a single family.
func leases(c subnet.Config, o Options) []subnet.Lease {
	lease := func(node string, four, six, public4, public6 string, mac byte) subnet.Lease {
		l := subnet.Lease{Node: node, Backend: Type, ID: 1}
		texts := subnet.PerFamily[[2]string]{{four, public4}, {six, public6}}
		for f, text := range texts {
			if c.Ranges[f].Enabled() && text[0] != "" {
				l.Subnets[f] = netip.MustParsePrefix(text[0])
				l.Endpoints[f] = subnet.Endpoint{PublicIP: netip.MustParseAddr(text[1]), VNI: o.VNI, MAC: subnet.MAC{2, byte(f), 0, 0, 0, mac}}
			}
		}
		return l
	}
	all := []subnet.Lease{
		lease("node-a", "10.5.1.0/24", "fd00:10:5:1::/64", "10.99.0.1", "fd99::1", 1),
		lease("node-b", "10.5.2.0/24", "fd00:10:5:2::/64", "10.99.0.2", "fd99::2", 2),
		lease("node-c", "10.5.3.0/24", "fd00:10:5:3::/64", "10.99.0.3", "fd99::3", 3),
		lease("node-c", "10.5.4.0/24", "fd00:10:5:4::/64", "10.99.0.3", "fd99::3", 3),
		lease("node-d", "10.5.5.0/24", "", "10.99.0.4", "", 4),
	}
	return slices.DeleteFunc(all, func(l subnet.Lease) bool { return l.Subnets == subnet.Subnets{} })
}

// TestStateOwedForLeases holds the goldens leases → State of the three modes.
func TestStateOwedForLeases(t *testing.T) {
	for mode, text := range modes {
		t.Run(mode, func(t *testing.T) {
			cfg, err := subnet.ParseConfig([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			opts, err := ParseOptions(cfg.Backend)
			if err != nil {
				t.Fatal(err)
			}
			all := leases(cfg, opts)
			self := Self{Node: "node-a", Options: opts, Subnets: all[0].Subnets, Underlay: subnet.PerFamily[Underlay]{
				{netip.MustParseAddr("10.99.0.1"), 1500}, {netip.MustParseAddr("fd99::1"), 1500},
			}}
			var in, out strings.Builder
			mirror := subnet.NewMirror(cfg, subnet.Identity{Node: "node-a", PublicIP: subnet.PerFamily[netip.Addr]{all[0].Endpoints[0].PublicIP, all[0].Endpoints[1].PublicIP}}, self.Check)
			mirror.Apply(time.Now(), subnet.Change{Whole: true, Leases: all})
			own, err := self.Own()
			if err != nil {
				t.Fatal(err)
			}
			var owed backend.Ledger
			owed.Owe(own...)
			for _, l := range all {
				in.WriteString(l.Subnets.Key() + " " + string(l.Record()) + "\n")
			}
			for _, l := range mirror.Peers() {
				owed.Owe(self.Peer(l)...)
			}
			mtu, err := self.MTU()
			if err != nil {
				t.Fatal(err)
			}
			out.WriteString("leases\n" + in.String() + "\nstate\n" + owed.Want().String())
			if want := map[string]int{"ipv4": 1450, "ipv6": 1430, "dual": 1400}[mode]; mtu != want {
				t.Errorf("MTU %d, want %d", mtu, want)
			}
			path := filepath.Join("testdata", mode+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), out.String()); d != "" {
				t.Errorf("differs from %s (-update writes it anew):\n%s", path, d)
			}
		})
	}
}

func TestParseOptions(t *testing.T) {
	for text, want := range map[string]Options{
		`{}`: {VNI: 1, Port: 8472},
		`{"Type":"vxlan","vni":16777215,"Port":0,"MTU":9000}`:           {VNI: 1<<24 - 1, Port: 8472, MTU: 9000},
		`{"Port":4789,"DirectRouting":true,"GBP":true,"Learning":true}`: {VNI: 1, Port: 4789, GBP: true, Learning: true, DirectRouting: true},
	} {
		got, err := ParseOptions(subnet.Backend{Type: Type, Options: text})
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
	}
	if got := (Options{GBP: true, Learning: true, DirectRouting: true}).Unheeded(); len(got) != 3 {
		t.Errorf("unheeded: %v", got)
	}
	for _, b := range []subnet.Backend{
		{Type: "udp", Options: "{}"}, {Type: Type, Options: `{"VNI":0}`}, {Type: Type, Options: `{"VNI":16777216}`},
		{Type: Type, Options: `{"VNI":"x"}`}, {Type: Type, Options: `{"Port":65536}`}, {Type: Type, Options: `{"MTU":500}`},
		{Type: Type, Options: `{"Port":-1}`}, {Type: Type, Options: `{"MTU":70000}`},
	} {
		if _, err := ParseOptions(b); !errors.Is(err, subnet.ErrMalformedConfig) {
			t.Errorf("%+v: got %v", b, err)
		}
	}
}

func TestDeviceNamesFitTheKernel(t *testing.T) {
	for vni, want := range map[uint32][2]string{
		1: {"ripstop.1", "ripstop-v6.1"}, 9999: {"ripstop.9999", "ripstop-v6.9999"},
		10000: {"ripstop.10000", "rs-v6.10000"}, 16777215: {"rs.16777215", "rs-v6.16777215"},
	} {
		for f, name := range want {
			if got := DeviceName(subnet.Family(f), vni); got != name || len(got) > 15 || !OwnsDevice(got) {
				t.Errorf("VNI %d: %s, want %s", vni, got, name)
			}
		}
	}
	for _, name := range []string{"flannel.1", "ripstop.", "ripstop.x", "ripstop.01", "rs.1", "ripstop.16777216", "vxlan0", "ripstop-v6.-1"} {
		if OwnsDevice(name) {
			t.Errorf("%s counts as ours", name)
		}
	}
}

func TestDeviceMACIsStableAndTheNodesOwn(t *testing.T) {
	// The golden must never change: a node would have another MAC after an upgrade.
	if got := DeviceMAC("node-a", subnet.V4, 1).String(); got != "8e:05:ad:37:fe:96" {
		t.Errorf("got %s", got)
	}
	seen := map[subnet.MAC]bool{}
	for _, node := range []string{"node-a", "node-b", "node-c"} {
		for _, f := range subnet.Families {
			for _, vni := range []uint32{1, 2} {
				mac := DeviceMAC(node, f, vni)
				if seen[mac] || mac[0]&3 != 2 {
					t.Errorf("%s %s %d: %s comes twice or is no local unicast address", node, f, vni, mac)
				}
				seen[mac] = true
			}
		}
	}
}

func TestMTU(t *testing.T) {
	for _, tc := range []struct {
		f           subnet.Family
		bound, link int
		want        int
	}{
		{subnet.V4, 0, 1500, 1450}, {subnet.V6, 0, 1500, 1430}, {subnet.V4, 1400, 1500, 1400}, {subnet.V4, 9000, 1500, 1450},
		{subnet.V4, 0, 65536, 65485}, {subnet.V6, 0, 1350, 1280}, {subnet.V6, 0, 1349, 0}, {subnet.V4, 0, 600, 0},
	} {
		got, err := Options{MTU: tc.bound}.MTUFor(tc.f, tc.link)
		if got != tc.want || (err != nil) != (tc.want == 0) {
			t.Errorf("%+v: got %d, %v", tc, got, err)
		}
	}
}

func TestCheckRefusesAnotherVNI(t *testing.T) {
	self := Self{Options: Options{VNI: 1}}
	for vni, ok := range map[uint32]bool{0: true, 1: true, 2: false} {
		l := subnet.Lease{Endpoints: subnet.PerFamily[subnet.Endpoint]{{VNI: vni}}}
		if err := self.Check(l); (err == nil) != ok {
			t.Errorf("VNI %d: %v", vni, err)
		}
	}
}
