package hostgw

import (
	"net/netip"
	"testing"

	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/subnet"
)

// TestFamiliesStandByThemselves: a peer that is on the link in one family alone is
// reached in that one, and is refused only where it is reached in none.
func TestFamiliesStandByThemselves(t *testing.T) {
	var self plan.Self
	self.Subnets = subnet.Subnets{netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:10:5:1::/64")}
	self.Underlay[subnet.V4] = plan.Underlay{Interface: "eth0", Addr: netip.MustParseAddr("10.99.0.1"), MTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")},
		Broadcasts: []netip.Addr{netip.MustParseAddr("10.99.0.255")}}
	self.Underlay[subnet.V6] = plan.Underlay{Interface: "eth0", Addr: netip.MustParseAddr("fd99::1"), MTU: 1500, OnLink: []netip.Prefix{netip.MustParsePrefix("fd99::/64")}}
	planner := Options{}.Planner(self)
	for _, tc := range []struct {
		four, six string
		routes    int
	}{
		{"10.99.0.2", "fd99::2", 2},
		{"10.99.0.2", "fd98::2", 1},
		{"10.98.0.2", "fd99::2", 1},
		{"10.98.0.2", "fd98::2", 0},
		{"10.99.0.255", "fd99::2", 1}, // The kernel takes no broadcast address for a gateway.
		{"10.99.0.255", "fd98::2", 0},
	} {
		l := subnet.Lease{Subnets: subnet.Subnets{netip.MustParsePrefix("10.5.2.0/24"), netip.MustParsePrefix("fd00:10:5:2::/64")}}
		l.Endpoints[subnet.V4].PublicIP, l.Endpoints[subnet.V6].PublicIP = netip.MustParseAddr(tc.four), netip.MustParseAddr(tc.six)
		if got := len(planner.Peer(l)); got != tc.routes {
			t.Errorf("%s, %s: %d routes, want %d", tc.four, tc.six, got, tc.routes)
		}
		if err := planner.Check(l); (err == nil) != (tc.routes > 0) {
			t.Errorf("%s, %s: %v", tc.four, tc.six, err)
		}
	}
}
