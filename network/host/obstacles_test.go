package host

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func dual() Network {
	return Network{
		Ranges:  subnet.Subnets{prefix("10.5.0.0/16"), prefix("fd00:10:5::/48")},
		Lengths: subnet.PerFamily[int]{24, 64},
		Own:     []subnet.Subnets{{prefix("10.5.7.0/24"), prefix("fd00:10:5:7::/64")}, {}},
		VNI:     1, Port: 8472,
	}
}

func route(dst string) backend.HostRoute {
	return backend.HostRoute{Dst: prefix(dst), Dev: "eth1", Protocol: 3}
}

func TestOverlap(t *testing.T) {
	gateway := route("10.5.3.0/24")
	gateway.Gateway = netip.MustParseAddr("192.0.2.1")
	nowhere, wide := route("10.5.3.0/24"), route("10.0.0.0/8")
	nowhere.Nowhere, nowhere.Dev, wide.Nowhere, wide.Dev = true, "", true, ""
	equal := route("10.5.0.0/16")
	equal.Nowhere, equal.Dev = true, ""
	plugin := route("10.5.9.4/32")
	plugin.Protocol = 83
	address := func(text, dev string, ours bool) backend.Survey {
		return backend.Survey{Addresses: []backend.HostAddress{{Prefix: prefix(text), Dev: dev, Ours: ours}}}
	}
	routes := func(r ...backend.HostRoute) backend.Survey { return backend.Survey{Routes: r} }
	device := address("10.5.8.0/32", "ripstop.1", true)
	device.Routes = []backend.HostRoute{route("10.5.8.0/24")}
	for what, c := range map[string]struct {
		survey backend.Survey
		says   []string // Empty where it is no obstacle.
	}{
		"nothing":                      {},
		"inside":                       {routes(route("10.5.3.0/24")), []string{"10.5.0.0/16", "10.5.3.0/24 dev eth1", "another Network"}},
		"the same":                     {routes(route("10.5.0.0/16")), []string{"route 10.5.0.0/16 dev eth1"}},
		"around":                       {routes(route("10.0.0.0/8")), []string{"route 10.0.0.0/8"}},
		"through a gateway":            {routes(gateway), []string{"10.5.3.0/24 via 192.0.2.1 dev eth1"}},
		"IPv6":                         {routes(route("fd00:10:5:3::/64")), []string{"fd00:10:5::/48", "fd00:10:5:3::/64 dev eth1", "another IPv6Network"}},
		"IPv6 around":                  {routes(route("fd00::/8")), []string{"fd00::/8 dev eth1"}},
		"beside":                       {routes(route("10.6.0.0/16"), route("fd00:10:6::/48")), nil},
		"nowhere, inside":              {routes(nowhere), []string{"10.5.3.0/24 that discards packets"}},
		"nowhere, around":              {routes(wide), nil},
		"nowhere, the network itself":  {routes(equal), nil},
		"halves of a default":          {routes(route("0.0.0.0/1"), route("128.0.0.0/1"), route("2000::/3"), route("8000::/1")), nil},
		"own subnet's":                 {routes(route("10.5.7.0/24"), route("10.5.7.19/32"), route("fd00:10:5:7::/64")), nil},
		"wider than the own subnet":    {routes(route("10.5.6.0/23")), []string{"10.5.6.0/23"}},
		"of the CNI plugin":            {routes(plugin), nil},
		"own ones first":               {routes(route("10.5.7.0/24"), plugin, route("10.5.3.0/24")), []string{"10.5.3.0/24"}},
		"an address":                   {address("10.5.0.1/16", "eth2", false), []string{"10.5.0.0/16", "address 10.5.0.1/16 of eth2"}},
		"an address of IPv6":           {address("fd00:10:5::1/64", "eth2", false), []string{"fd00:10:5::/48", "fd00:10:5::1/64 of eth2"}},
		"an address in the own subnet": {address("10.5.7.1/24", "cni0", false), nil},
		"an address beside":            {address("10.6.0.1/8", "eth2", false), nil},
		"our device's, and its subnet": {device, nil},
	} {
		t.Run(what, func(t *testing.T) {
			_, err := Obstacles(dual(), c.survey, Takeover{})
			if (len(c.says) > 0) != errors.Is(err, ErrOverlap) || len(c.says) == 0 && err != nil {
				t.Fatalf("error is %v", err)
			}
			for _, text := range c.says {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("%q does not say %q", err, text)
				}
			}
		})
	}
	alone := dual()
	alone.Ranges[subnet.V6] = netip.Prefix{}
	if _, err := Obstacles(alone, routes(route("fd00:10:5:3::/64")), Takeover{}); err != nil {
		t.Errorf("a family that is not in use: %v", err)
	}
}

func TestTunnels(t *testing.T) {
	for what, c := range map[string]struct {
		tunnel backend.Tunnel
		refuse string // Empty where it may stay.
		note   string
	}{
		"flannel's":                 {backend.Tunnel{Name: "flannel.1", VNI: 1, Port: 8472}, "flannel.1 has VNI 1 on UDP port 8472: stop flannel on this host for good, then: ip link delete flannel.1", ""},
		"flannel's of IPv6":         {backend.Tunnel{Name: "flannel-v6.1", VNI: 1, Port: 8472, V6: true}, "stop flannel", ""},
		"somebody's":                {backend.Tunnel{Name: "vx0", VNI: 1, Port: 8472}, "vx0 has VNI 1 on UDP port 8472: stop what made it, then: ip link delete vx0", ""},
		"of any VNI":                {backend.Tunnel{Name: "cilium_vxlan", Port: 8472, Exclusive: true}, "cilium_vxlan takes UDP port 8472 for itself alone", ""},
		"of any VNI, another port":  {backend.Tunnel{Name: "vx0", Port: 4789, Exclusive: true}, "", ""},
		"our port":                  {backend.Tunnel{Name: "vx0", VNI: 7, Port: 8472}, "", "vx0 has VNI 7 on our UDP port 8472"},
		"our VNI":                   {backend.Tunnel{Name: "vx0", VNI: 1, Port: 4789}, "", "vx0 has our VNI 1 on UDP port 4789"},
		"neither":                   {backend.Tunnel{Name: "vx0", VNI: 7, Port: 4789}, "", ""},
		"flannel's, of another VNI": {backend.Tunnel{Name: "flannel.7", VNI: 7, Port: 8472}, "", "stop flannel"},
	} {
		t.Run(what, func(t *testing.T) {
			survey := backend.Survey{Tunnels: []backend.Tunnel{c.tunnel}, Routes: []backend.HostRoute{{Dst: prefix("10.5.3.0/24"), Dev: c.tunnel.Name}}}
			if c.refuse == "" {
				survey.Routes = nil
			}
			notes, err := Obstacles(dual(), survey, Takeover{})
			if (c.refuse != "") != errors.Is(err, ErrTunnel) || c.refuse != "" && !strings.Contains(err.Error(), c.refuse) {
				t.Errorf("error is %v, want it to say %q", err, c.refuse)
			}
			if (c.note != "") != (len(notes) == 1) || c.note != "" && !strings.Contains(notes[0], c.note) {
				t.Errorf("notes are %q, want one that says %q", notes, c.note)
			}
			direct := dual()
			direct.VNI, direct.Port = 0, 0
			survey.Routes = nil
			if notes, err := Obstacles(direct, survey, Takeover{}); err != nil || len(notes) > 0 {
				t.Errorf("without a tunnel of ours: %v, %q", err, notes)
			}
		})
	}
	// One of the other family is no clash.
	four := dual()
	four.Ranges[subnet.V6] = netip.Prefix{}
	if _, err := Obstacles(four, backend.Survey{Tunnels: []backend.Tunnel{{Name: "vx6", VNI: 1, Port: 8472, V6: true}}}, Takeover{}); err != nil {
		t.Error(err)
	}
}

func TestTxChecksum(t *testing.T) {
	for release, without := range map[string]bool{
		"4.19.0-26-amd64": true, "5.3.0": true, "5.4.0-150-generic": true, "5.6.13": true, "5.7.0": false, "5.7-rc1": false,
		"5.10.0": false, "6.18.5": false, "": false, "odd": false, "5": false,
	} {
		for policy, want := range map[TxChecksum]bool{"": without, TxChecksumAuto: without, TxChecksumOn: false, TxChecksumOff: true} {
			if got := policy.Without(release); got != want {
				t.Errorf("%q on %q: off is %t, want %t", policy, release, got, want)
			}
		}
	}
	if _, err := ParseTxChecksum("maybe"); err == nil {
		t.Error("a policy that there is not was taken")
	}
	if p, err := ParseTxChecksum("off"); err != nil || p != TxChecksumOff {
		t.Errorf("off is %q: %v", p, err)
	}
	if Release() == "" {
		t.Error("the running kernel has no release")
	}
}
