package vxlan

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/subnet"
)

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
	if got := (Options{GBP: true, Learning: true, DirectRouting: true}).Unheeded(); len(got) != 2 {
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
	self := Options{VNI: 1}.Planner(plan.Self{})
	for vni, ok := range map[uint32]bool{0: true, 1: true, 2: false} {
		l := subnet.Lease{Endpoints: subnet.PerFamily[subnet.Endpoint]{{VNI: vni}}}
		if err := self.Check(l); (err == nil) != ok {
			t.Errorf("VNI %d: %v", vni, err)
		}
	}
}

// TestGatewaysAreEachPeersOwn: as the kernel knows peers apart by them, and as no
// route covers those of IPv6.
func TestGatewaysAreEachPeersOwn(t *testing.T) {
	for subnets, want := range map[string]string{
		"10.5.2.0/24": "10.5.2.0", "fd00:10:5:2::/64": "fe80::fd00:10:5:2", "2001:db8:7::/48": "fe80::2001:db8:7:0",
	} {
		if got := Gateway(netip.MustParsePrefix(subnets)); got != netip.MustParseAddr(want) {
			t.Errorf("%s: %s, want %s", subnets, got, want)
		}
	}
	seen := map[netip.Addr]netip.Prefix{}
	for _, bits := range []int{56, 64, 80, 120} {
		at := netip.MustParseAddr("fd00:10:5::")
		for i := range 2000 {
			raw := at.As16()
			for shift, n := 0, i+1; shift < 12; shift, n = shift+1, n>>1 {
				if n&1 == 1 { // The i-th subnet of that length.
					raw[(bits-1-shift)/8] |= 0x80 >> ((bits - 1 - shift) % 8)
				}
			}
			p := netip.PrefixFrom(netip.AddrFrom16(raw), bits)
			g := Gateway(p)
			if other, there := seen[g]; there && other.Addr() != p.Addr() || !g.IsLinkLocalUnicast() {
				t.Fatalf("%s is the gateway of %s and %s", g, other, p)
			}
			seen[g] = p
		}
	}
}
