package lab

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// Two machines on the underlay reach each other and the gateway, with no word
// of ripstopd.
func TestUnderlayJoinsMachines(t *testing.T) {
	u, err := newUnderlay(subnet.Families[:], near)
	if err != nil {
		t.Fatal(err)
	}
	defer u.ns.Close()
	var machines []*Namespace
	for i, name := range []string{"one", "two"} {
		ns, err := NewNamespace(name)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		if err := u.plug(t.Context(), near, ns, i+1, underlayMTU); err != nil {
			t.Fatal(err)
		}
		machines = append(machines, ns)
	}
	for _, f := range subnet.Families {
		for _, to := range []int{2, gatewayNumber} {
			rtt, err := Ping(t.Context(), machines[0], netip.Addr{}, near.prefix(f, to).Addr(), PingOptions{Timeout: 5 * time.Second})
			if err != nil {
				t.Errorf("%s to %d: %v", f, to, err)
			}
			t.Logf("%s to %d: %s", f, to, rtt)
		}
	}
	if _, err := Ping(t.Context(), machines[0], netip.Addr{}, netip.MustParseAddr("10.99.0.77"), PingOptions{Timeout: 200 * time.Millisecond}); err == nil {
		t.Error("an address that nobody has answered")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Ping(ctx, machines[0], netip.Addr{}, netip.MustParseAddr("10.99.0.77"), PingOptions{}); err == nil {
		t.Error("a ping with a cancelled context ended without an error")
	}
}
