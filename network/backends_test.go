package network

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// onLink gives the rig's interface a link with 10.99.0.0/24 on it.
func (r *rig) onLink() {
	r.t.Helper()
	r.host.host[0].OnLink = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}
	r.host.host[0].Broadcasts = []netip.Addr{netip.MustParseAddr("10.99.0.255")}
	if err := r.kernel.Link("eth0", backendtest.Make); err != nil {
		r.t.Fatal(err)
	}
}

// beside writes the record of the n-th peer of a backend without a device.
func (r *rig) beside(backend string, n int, public string) subnet.Lease {
	l := subnet.Lease{
		Subnets: subnet.Subnets{netip.MustParsePrefix(fmt.Sprintf("10.5.%d.0/24", n))}, Node: fmt.Sprint("node", n), Backend: backend,
		Endpoints: subnet.PerFamily[subnet.Endpoint]{{PublicIP: netip.MustParseAddr(public)}},
	}
	r.store.Put(l.Subnets.Key(), l.Record(), true)
	return l
}

// directly is the plain route to a lease's subnet.
func directly(l subnet.Lease, mtu uint16) backend.Route {
	return backend.Route{
		Dst: l.Subnets[subnet.V4], Plain: true, MTU: mtu,
		Via: backend.Nexthop{Dev: "eth0", Gateway: l.Endpoints[subnet.V4].PublicIP},
	}
}

// TestHostGatewayNode: no device, a plain route to who is on the link, and a word
// about who is not.
func TestHostGatewayNode(t *testing.T) {
	r := newRig(t)
	r.onLink()
	r.store.SetConfig([]byte(`{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}`))
	near, far := r.beside("host-gw", 2, "10.99.0.2"), r.beside("host-gw", 3, "10.98.0.3")
	other := r.join(4) // Of the vxlan backend.
	nobodys := r.beside("host-gw", 5, "10.99.0.255")
	r.start()
	r.ready()
	r.eventually("the peer on the link is reached", func() bool { return r.kernel.State().Has(directly(near, 0)) })
	if s := r.kernel.State(); s.Len() != 1 {
		t.Errorf("kernel:\n%s", s)
	}
	for key, why := range map[string]string{
		far.Subnets.Key():     "public address 10.98.0.3 is not on the link of eth0",
		nobodys.Subnets.Key(): "public address 10.99.0.255 is the broadcast address of the link of eth0",
		other.Subnets.Key():   `BackendType is "vxlan", the network's is "host-gw"`,
	} {
		r.eventually(fmt.Sprintf("of %s it is said: %s", key, why), func() bool { return r.said(why) && r.said(key) })
	}
	_, own := r.own()
	if own.Backend != "host-gw" || own.MTU != 1500 || own.Endpoints[0] != (subnet.Endpoint{PublicIP: netip.MustParseAddr("10.99.0.1")}) {
		t.Errorf("own record: %s", own.Record())
	}
	if env, err := os.ReadFile(r.opts.SubnetFile); err != nil || !strings.Contains(string(env), "FLANNEL_MTU=1500\n") {
		t.Errorf("%v, subnet file:\n%s", err, env)
	}
	r.store.Delete(near.Subnets.Key())
	r.eventually("the peer is gone", func() bool { return r.kernel.State().Len() == 0 })
}

// TestAllocNode leases a subnet, says so and does nothing else.
func TestAllocNode(t *testing.T) {
	r := newRig(t)
	r.store.SetConfig([]byte(`{"Network": "10.5.0.0/16", "Backend": {"Type": "alloc"}}`))
	r.beside("alloc", 2, "10.98.0.2")
	rules := &fakeFirewall{rig: r, try: make(chan struct{}), let: map[netip.Addr]int{}}
	r.firewall = rules
	r.start()
	r.ready()
	if rules.mu.Lock(); rules.began != 0 || len(rules.let) != 0 {
		t.Errorf("rules were begun %d times, for %v", rules.began, rules.let)
	}
	rules.mu.Unlock()
	_, own := r.own()
	a := r.asked()
	a.well()
	page, err := a.client.Peers(t.Context(), status.Query{})
	if err != nil || page.Backend != "alloc" || len(page.Peers) != 1 || len(page.Peers[0].Ways) != 1 {
		t.Fatalf("peers: %+v, %v", page, err)
	}
	want := status.Way{Family: "IPv4", Subnet: netip.MustParsePrefix("10.5.2.0/24"), Public: netip.MustParseAddr("10.98.0.2"), Path: status.NoPath, Entries: status.NoneOwed}
	if page.Peers[0].Ways[0] != want {
		t.Errorf("way is %+v, want %+v", page.Peers[0].Ways[0], want)
	}
	if own.Backend != "alloc" || own.MTU != 1500 {
		t.Errorf("own record: %s", own.Record())
	}
	if ops := r.kernel.Ops(); len(ops) > 0 {
		t.Errorf("ops %v", ops)
	}
	if r.said("passed over") {
		t.Errorf("%v", r.logs.All())
	}
}

// TestChangeOfBackendLeavesNoTrace: routes change in place, and the old device
// goes once nothing needs it. The lease stays.
func TestChangeOfBackendLeavesNoTrace(t *testing.T) {
	r := newRig(t)
	r.onLink()
	tunnelled := r.join(2)
	r.start()
	r.ready()
	r.eventually("the peer is reached", func() bool { return r.reaches(tunnelled) })
	key, _ := r.own()
	r.stop()
	r.kernel.Ops()
	r.store.SetConfig([]byte(`{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}`))
	near := r.beside("host-gw", 2, "10.99.0.2")
	r.start()
	r.ready()
	r.eventually("the device is gone", func() bool { return r.kernel.State().Equal(backend.NewState(directly(near, 0))) })
	if ops := r.kernel.Ops(); ops[0] != (backend.Op{Verb: backend.Replace, Entry: directly(near, 0)}) {
		t.Errorf("ops %v", ops)
	}
	if again, own := r.own(); again != key || own.Backend != "host-gw" {
		t.Errorf("own record %s: %s", again, own.Record())
	}
	r.stop()
	r.store.SetConfig([]byte(testConfig))
	tunnelled = r.join(2)
	r.start()
	r.ready()
	r.eventually("the tunnel is back", func() bool { return r.reaches(tunnelled) && r.kernel.State().Len() == 2+4 })
}

// TestDirectRoutesNode: who is on the link is reached without the tunnel.
func TestDirectRoutesNode(t *testing.T) {
	r := newRig(t)
	r.onLink()
	r.store.SetConfig([]byte(`{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}`))
	near, far := r.join(2), r.join(3)
	far.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr("10.98.0.3")
	r.store.Put(far.Subnets.Key(), far.Record(), true)
	r.start()
	r.ready()
	r.eventually("both are reached", func() bool { return r.kernel.State().Has(directly(near, 0)) && r.reaches(far) })
	if n := r.kernel.State().Len(); n != 2+1+4 || r.said("has no effect") {
		t.Errorf("kernel:\n%s", r.kernel.State())
	}
	r.kernel.Ops()
	near.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr("10.98.0.2") // It moves off the link,
	r.store.Put(near.Subnets.Key(), near.Record(), true)
	r.eventually("it is reached by the tunnel", func() bool { return r.reaches(near) })
	near.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr("10.99.0.2") // and back.
	r.store.Put(near.Subnets.Key(), near.Record(), true)
	r.eventually("it is reached directly", func() bool { return r.kernel.State().Has(directly(near, 0)) && r.kernel.State().Len() == 2+1+4 })
	for _, op := range r.kernel.Ops() {
		if op.Entry.Kind() == backend.KindRoute && op.Verb != backend.Replace {
			t.Errorf("not in place: %s", op)
		}
	}
}

// TestPeersMTU: what a node publishes, and what it makes of a peer's. An MTU that
// nobody can have is named, and costs a peer nothing.
func TestPeersMTU(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	if _, own := r.own(); own.MTU != 1450 {
		t.Errorf("own record: %s", own.Record())
	}
	second := r.join(2)
	via := backend.Nexthop{Dev: "ripstop.1", Gateway: second.Subnets[subnet.V4].Addr()}
	bears := func(mtu uint16) func() bool {
		return func() bool {
			return r.kernel.State().Has(backend.Route{Dst: second.Subnets[subnet.V4], MTU: mtu, Via: via})
		}
	}
	for _, step := range []struct {
		mtu   int
		route uint16
	}{{0, 0}, {1350, 1350}, {1450, 0}, {1449, 1449}, {9000, 0}, {600, 600}} {
		second.MTU = step.mtu
		r.store.Put(second.Subnets.Key(), second.Record(), true)
		r.eventually(fmt.Sprintf("the route to a peer with %d bears %d", step.mtu, step.route), bears(step.route))
	}
	r.kernel.Ops()
	second.MTU = 17
	r.store.Put(second.Subnets.Key(), second.Record(), true)
	r.eventually("it is named", func() bool { return r.said("MTU: 17 is outside") })
	if ops := r.kernel.Ops(); len(ops) > 0 || !bears(600)() {
		t.Errorf("ops %v", ops)
	}
}
