package host

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

var (
	mac4 = subnet.MAC{0xd6, 0x95, 0x53, 0xdf, 0x61, 4}
	mac6 = subnet.MAC{0xd6, 0x95, 0x53, 0xdf, 0x61, 6}
)

// served is a host as flannel leaves it, and what the store knows of it.
func served() (backend.Survey, Records) {
	own := subnet.Lease{
		Subnets: subnet.Subnets{prefix("10.5.7.0/24"), prefix("fd00:10:5:7::/64")}, Backend: "vxlan",
		Endpoints: subnet.PerFamily[subnet.Endpoint]{
			{PublicIP: netip.MustParseAddr("10.99.0.1"), VNI: 1, MAC: mac4}, {PublicIP: netip.MustParseAddr("fd99::1"), VNI: 1, MAC: mac6},
		},
	}
	laid := func(dst, dev string) backend.HostRoute {
		return backend.HostRoute{Dst: prefix(dst), Dev: dev, Gateway: prefix(dst).Addr(), Protocol: 3}
	}
	return backend.Survey{
		Tunnels: []backend.Tunnel{
			{Name: "flannel.1", VNI: 1, Port: 8472, MAC: backend.MAC(mac4)}, {Name: "flannel-v6.1", VNI: 1, Port: 8472, MAC: backend.MAC(mac6), V6: true},
		},
		Addresses: []backend.HostAddress{
			{Prefix: prefix("10.5.7.0/32"), Dev: "flannel.1"}, {Prefix: prefix("fd00:10:5:7::/128"), Dev: "flannel-v6.1"}, {Prefix: prefix("10.5.7.1/24"), Dev: "cni0"},
		},
		Routes: []backend.HostRoute{laid("10.5.8.0/24", "flannel.1"), laid("fd00:10:5:8::/64", "flannel-v6.1")},
	}, Records{Own: own, All: []subnet.Lease{own}}
}

// TestFlannelsNodeIsTakenOver, with name, MAC and routes, of both families.
func TestFlannelsNodeIsTakenOver(t *testing.T) {
	survey, records := served()
	want := subnet.PerFamily[Device]{{"flannel.1", mac4}, {"flannel-v6.1", mac6}}
	got := TakeOver(dual(), survey, records)
	if got.Devices != want || !reflect.DeepEqual(got.New, []string{"flannel.1", "flannel-v6.1"}) || len(got.Refused) > 0 || !got.Adopts() {
		t.Errorf("got %+v", got)
	}
	if notes, err := Obstacles(dual(), survey, got); err != nil || len(notes) > 0 {
		t.Errorf("in the way: %v, %v", notes, err)
	}
	survey.Flanneld = 4711
	if _, err := Obstacles(dual(), survey, got); !errors.Is(err, ErrTunnel) || !strings.Contains(err.Error(), "flanneld (process 4711)") || strings.Contains(err.Error(), "ip link delete") {
		t.Errorf("with flanneld: %v", err)
	}
	for i := range survey.Tunnels {
		survey.Tunnels[i].Adopted = true
	}
	survey.Routes = nil // Of our own devices a survey has none.
	if got = TakeOver(dual(), survey, records); got.Devices != want || len(got.New) > 0 {
		t.Errorf("a second time: %+v", got)
	}
	if _, err := Obstacles(dual(), survey, got); err != nil {
		t.Errorf("what is ours is in the way: %v", err)
	}
	survey.Tunnels[0].MAC[5]++ // By a hand, while no daemon ran: the record says what peers know.
	if got = TakeOver(dual(), survey, records); got.Devices != want {
		t.Errorf("with another MAC: %+v", got)
	}
	if got = TakeOver(dual(), survey, Records{}); got.Devices[0].Name != "flannel.1" || got.Devices[0].MAC != subnet.MAC(survey.Tunnels[0].MAC) {
		t.Errorf("without a record: %+v", got)
	}
}

// TestLookAlikesAreNotTakenOver: what is not flannel's for certain stays in the way, and
// is named with the reason.
func TestLookAlikesAreNotTakenOver(t *testing.T) {
	for reason, change := range map[string]func(*backend.Survey, *Records){
		"no record in the store is of this host's public address":                        func(_ *backend.Survey, r *Records) { *r = Records{} },
		"its MAC is 02:00:00:00:00:01, that of this node's record":                       func(s *backend.Survey, _ *Records) { s.Tunnels[0].MAC = backend.MAC{2, 0, 0, 0, 0, 1} },
		"it has address 10.5.9.0/32":                                                     func(s *backend.Survey, _ *Records) { s.Addresses[0].Prefix = prefix("10.5.9.0/32") },
		"it has address 10.5.7.0/24":                                                     func(s *backend.Survey, _ *Records) { s.Addresses[0].Prefix = prefix("10.5.7.0/24") },
		"it does not have address 10.5.7.0":                                              func(s *backend.Survey, _ *Records) { s.Addresses = s.Addresses[1:] },
		"it answers ARP and ND for others":                                               func(s *backend.Survey, _ *Records) { s.Tunnels[0].Odd = "answers ARP and ND for others" },
		"this node's record 10.5.7.0/24,fd00:10:5:7::/64 is of another backend or VNI":   func(_ *backend.Survey, r *Records) { r.Own.Backend = "host-gw" },
		"this node's record 10.5.7.0/24,fd00:10:5:7::/64 is of another backend or VNI: ": func(_ *backend.Survey, r *Records) { r.Own.Endpoints[0].VNI = 2 },
		"vxlan0 has VNI 1 on UDP port 8472: stop what made it":                           func(s *backend.Survey, _ *Records) { s.Tunnels[0].Name = "vxlan0" },
		"flannel.2 has VNI 1 on UDP port 8472":                                           func(s *backend.Survey, _ *Records) { s.Tunnels[0].Name = "flannel.2" },
	} {
		t.Run(reason, func(t *testing.T) {
			survey, records := served()
			change(&survey, &records)
			over := TakeOver(dual(), survey, records)
			if over.Devices[0].Name != "" {
				t.Errorf("taken over: %+v", over)
			}
			_, err := Obstacles(dual(), survey, over)
			if !errors.Is(err, ErrTunnel) || !strings.Contains(err.Error(), reason) || !strings.Contains(err.Error(), "ip link delete") {
				t.Errorf("got %v", err)
			}
		})
	}
	// One that is ours by the record, from a life that ended before it had an address.
	survey, records := served()
	survey.Addresses, records.Own.Node = survey.Addresses[1:], "node-a"
	if over := TakeOver(dual(), survey, records); over.Devices[0].Name != "flannel.1" {
		t.Errorf("half made: %+v", over)
	}
}

// TestRoutesOfAnotherFormStayInTheWay also on a device that is taken over.
func TestRoutesOfAnotherFormStayInTheWay(t *testing.T) {
	for what, change := range map[string]func(*backend.HostRoute){
		"another gateway": func(r *backend.HostRoute) { r.Gateway = netip.MustParseAddr("10.5.8.1") },
		"another device":  func(r *backend.HostRoute) { r.Dev = "eth1" },
		"zebra's":         func(r *backend.HostRoute) { r.Protocol = 11 },
	} {
		survey, records := served()
		change(&survey.Routes[0])
		if _, err := Obstacles(dual(), survey, TakeOver(dual(), survey, records)); !errors.Is(err, ErrOverlap) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestDirectRoutesAreTakenOver: those to a node's subnet by its public address, as its
// record has both, also where there is no device.
func TestDirectRoutesAreTakenOver(t *testing.T) {
	survey, records := served()
	peer := subnet.Lease{Subnets: subnet.Subnets{prefix("10.5.9.0/24")}, Endpoints: subnet.PerFamily[subnet.Endpoint]{{PublicIP: netip.MustParseAddr("10.99.0.9")}}}
	records.All = append(records.All, peer)
	direct := backend.HostRoute{Dst: prefix("10.5.9.0/24"), Dev: "eth0", Gateway: netip.MustParseAddr("10.99.0.9"), Protocol: 3}
	gateway := Network{Ranges: dual().Ranges, Lengths: dual().Lengths, Own: dual().Own}
	for what, c := range map[string]struct {
		change func(*backend.HostRoute)
		taken  bool
	}{
		"as flannel makes them": {func(*backend.HostRoute) {}, true},
		"by another address":    {func(r *backend.HostRoute) { r.Gateway = r.Gateway.Next() }, false},
		"to a part":             {func(r *backend.HostRoute) { r.Dst = prefix("10.5.9.0/25") }, false},
		"zebra's":               {func(r *backend.HostRoute) { r.Protocol = 11 }, false},
	} {
		r := direct
		c.change(&r)
		survey.Routes, survey.Flanneld = []backend.HostRoute{r}, 0
		for _, n := range []Network{dual(), gateway} {
			over := TakeOver(n, survey, records)
			_, err := Obstacles(n, survey, over)
			if (len(over.Routes) == 1) != c.taken || (err == nil) != c.taken {
				t.Errorf("%s: %+v, %v", what, over, err)
			}
		}
		survey.Flanneld = 4711
		if _, err := Obstacles(gateway, survey, TakeOver(gateway, survey, records)); c.taken && !errors.Is(err, ErrTunnel) {
			t.Errorf("%s, with flanneld: %v", what, err)
		}
	}
}

// TestMACOfTheRecordOutlivesTheDevice, but not one that no device can have, or that two
// records have, or of another VNI.
func TestMACOfTheRecordOutlivesTheDevice(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*Records)
		want   subnet.MAC
	}{
		"as it was":   {func(*Records) {}, mac4},
		"multicast":   {func(r *Records) { r.Own.Endpoints[0].MAC[0] |= 1 }, subnet.MAC{}},
		"another VNI": {func(r *Records) { r.Own.Endpoints[0].VNI = 2 }, subnet.MAC{}},
		"no VNI":      {func(r *Records) { r.Own.Endpoints[0].VNI = 0 }, subnet.MAC{}},
		"nothing":     {func(r *Records) { *r = Records{} }, subnet.MAC{}},
		"another's too": {func(r *Records) {
			other := r.Own
			other.Subnets[0] = prefix("10.5.9.0/24")
			r.All = append(r.All, other)
		}, subnet.MAC{}},
	} {
		_, records := served()
		c.change(&records)
		got := TakeOver(dual(), backend.Survey{}, records)
		if got.Devices[0] != (Device{MAC: c.want}) || got.Adopts() {
			t.Errorf("%s: %+v", what, got)
		}
	}
	if got := TakeOver(Network{Ranges: dual().Ranges}, backend.Survey{}, Records{}); got.Adopts() {
		t.Errorf("without a tunnel: %+v", got)
	}
}
