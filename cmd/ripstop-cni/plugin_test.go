package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// Pods of one node reach each other, the gateway and the node, up to the full
// MTU, from the first packet on; DEL leaves the node as it was.
func TestPodsOfANodeTalk(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string, families lab.Mode) {
		env := envOf(families, 7)
		m := newMachine(t, mode, &env)
		before := picture(t, m.ns)
		a, b := m.mustAdd(t), m.mustAdd(t)
		for _, f := range families.Families() {
			gateway := env.Subnets[f].Addr().Next()
			for _, p := range []*pod{a, b} {
				if !env.Subnets[f].Contains(p.addresses[f]) {
					t.Errorf("address %s is not in %s", p.addresses[f], env.Subnets[f])
				}
			}
			ping(t, a.ns, b.addresses[f], full(f, testMTU))
			ping(t, b.ns, gateway, lab.PingOptions{})
			ping(t, m.ns, a.addresses[f], lab.PingOptions{})
			if _, err := lab.Ping(t.Context(), a.ns, netip.Addr{}, b.addresses[f], full(f, testMTU+1)); err == nil {
				t.Errorf("a %s packet of %d bytes passes", f, testMTU+1)
			}
		}
		for _, p := range []*pod{a, b} {
			if err := m.check(t, p); err != nil {
				t.Errorf("CHECK: %s", describe(err))
			}
		}
		if links, err := handleOf(t, a.ns).LinkList(); err != nil || len(links) > 6 { // lo and eth0, and what modules add.
			t.Errorf("the container has links %v, %v", links, err)
		}

		m.del(t, a)
		m.del(t, a) // Again, of what is not there.
		if err := m.check(t, b); err != nil {
			t.Errorf("CHECK after another's DEL: %s", describe(err))
		}
		b.end()
		m.del(t, b) // Of a container that is gone.
		if got := m.allocated(t); len(got) > 0 {
			t.Errorf("addresses %v are still allocated", got)
		}
		after := picture(t, m.ns)
		if mode == bridged { // The bridge stays, as the standard plugin's does.
			h := handleOf(t, m.ns)
			link, err := h.LinkByName("cni0")
			if err != nil {
				t.Fatal(err)
			}
			if err := h.LinkDel(link); err != nil {
				t.Fatal(err)
			}
			after = picture(t, m.ns)
		}
		if d := cmp.Diff(before, after); d != "" {
			t.Errorf("the node is not as it was (-before +after):\n%s", d)
		}
	})
}

// The result is what other plugins and runtimes look for.
func TestResult(t *testing.T) {
	for _, mode := range []string{ptp, bridged} {
		env := envOf(lab.Dual, 7)
		m := newMachine(t, mode, &env)
		m.keys["dns"] = map[string]any{"nameservers": []string{"10.5.0.10"}}
		p := m.mustAdd(t)
		bits := map[string][2]int{ptp: {32, 128}, bridged: {24, 64}}[mode]
		names := []string{attachment{networkName, p.name, ifName}.hostName(), ifName}
		if mode == bridged {
			names = append([]string{"cni0"}, names...)
		}
		var got []string
		for i, in := range p.result.Interfaces {
			got = append(got, in.Name)
			if last := i == len(p.result.Interfaces)-1; last != (in.Sandbox == pathOf(p.file)) {
				t.Errorf("%s: interface %s has sandbox %q", mode, in.Name, in.Sandbox)
			}
			if mac, err := net.ParseMAC(in.Mac); err != nil || mac[0]&3 != 2 || in.Mtu != testMTU {
				t.Errorf("%s: interface %s has MAC %q and MTU %d", mode, in.Name, in.Mac, in.Mtu)
			}
			ns := m.ns
			if in.Sandbox != "" {
				ns = p.ns
			}
			link, err := handleOf(t, ns).LinkByName(in.Name)
			if err != nil || link.Attrs().HardwareAddr.String() != in.Mac || link.Attrs().MTU != testMTU {
				t.Errorf("%s: interface %s is %+v in the kernel, %v", mode, in.Name, link, err)
			}
		}
		if !slices.Equal(got, names) {
			t.Errorf("%s: interfaces %v, want %v", mode, got, names)
		}
		for i, ip := range p.result.IPs {
			ones, _ := ip.Address.Mask.Size()
			if *ip.Interface != len(names)-1 || ones != bits[i] || !ip.Gateway.Equal(env.Subnets[i].Addr().Next().AsSlice()) {
				t.Errorf("%s: address %v", mode, ip)
			}
		}
		for _, in := range p.result.Interfaces {
			ns := m.ns
			if in.Sandbox != "" {
				ns = p.ns
			}
			// The kernel's own would come late, and without this flag.
			if gateways := mode == bridged && in.Name == names[1]; !gateways && !hasOwnLinkLocal(t, ns, in.Name) {
				t.Errorf("%s: interface %s has no link-local address of the plugin's", mode, in.Name)
			}
		}
		if mode == bridged {
			h := handleOf(t, m.ns)
			link, err := h.LinkByName(names[1])
			if err != nil {
				t.Fatal(err)
			}
			if port, err := h.LinkGetProtinfo(link); err != nil || !port.Hairpin {
				t.Errorf("the bridge's port is %v, %v, want it in hairpin mode", port, err)
			}
		}
		if len(p.result.IPs) != 2 || len(p.result.Routes) != 2 || p.result.DNS.Nameservers[0] != "10.5.0.10" {
			t.Errorf("%s: result %v", mode, p.result)
		}
	}
}

func hasOwnLinkLocal(t *testing.T, ns *lab.Namespace, name string) bool {
	t.Helper()
	h := handleOf(t, ns)
	link, err := h.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := addressesOf(h, link, subnet.V6)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_NODAD != 0
	})
}

// A link whose other end is down is waited for until it has a carrier.
func TestAwaitUp(t *testing.T) {
	h := handleOf(t, newMachine(t, ptp, nil).ns)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "near"
	pair := netlink.NewVeth(attrs)
	pair.PeerName = "far"
	if err := h.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(pair); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := awaitUp(ctx, h, "near"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a carrier: %v", err)
	}
	far, err := h.LinkByName("far")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(far); err != nil {
		t.Fatal(err)
	}
	if err := awaitUp(t.Context(), h, "near"); err != nil {
		t.Error(err)
	}
}

// Every version of the specification that is offered is served.
func TestVersions(t *testing.T) {
	info, err := newMachine(t, ptp, nil).cni.GetVersionInfo(t.Context(), "ripstop-cni")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	if got := info.SupportedVersions(); !slices.Equal(got, want) {
		t.Fatalf("versions %v, want %v", got, want)
	}
	env := envOf(lab.Dual, 7)
	for _, v := range want {
		m := newMachine(t, ptp, &env)
		m.version = v
		p := m.mustAdd(t)
		ping(t, m.ns, p.addresses[subnet.V4], lab.PingOptions{})
		if err := m.check(t, p); (err != nil) != (v == "0.3.1") { // CHECK came with 0.4.0.
			t.Errorf("%s: CHECK: %v", v, err)
		}
		m.del(t, p)
		if got := m.allocated(t); len(got) > 0 {
			t.Errorf("%s: addresses %v are left", v, got)
		}
	}
}

// Two hundred containers that start at once get an address each, and leave
// nothing when they all end at once. Where the host has a real daemon, that has
// nothing to do, and all are reached from another host.
func TestManyAtOnce(t *testing.T) {
	t.Run(bridged, func(t *testing.T) {
		env := envOf(lab.Dual, 7)
		manyAtOnce(t, newMachine(t, bridged, &env), bridged, func([]*pod) {})
	})
	t.Run(ptp, func(t *testing.T) {
		l, machines := startLab(t, lab.Options{Nodes: 2, Mode: lab.Dual}, ptp)
		host, m := l.Hosts[0], machines[0]
		env, err := host.Env()
		if err != nil {
			t.Fatal(err)
		}
		far, near := machines[1].mustAdd(t), m.mustAdd(t)
		reach(t, l, far, near, env.MTU) // All peers are there.
		m.del(t, near)
		said := host.DaemonLog()
		manyAtOnce(t, m, ptp, func(pods []*pod) {
			for _, p := range []*pod{pods[0], pods[99], pods[199]} {
				reach(t, l, far, p, env.MTU)
			}
		})
		for line := range strings.Lines(strings.TrimPrefix(host.DaemonLog(), said)) {
			// Of the peer it tells late, and so of its first packet, which came before its record.
			if !strings.Contains(line, `"replaced":0,"deleted":0`) && !strings.Contains(line, "of no peer were dropped") {
				t.Errorf("the daemon has news: %s", line)
			}
		}
	})
}

// manyAtOnce starts two hundred containers at once, looks at them while they are
// there, and ends them at once.
func manyAtOnce(t *testing.T, m *machine, mode string, look func([]*pod)) {
	t.Helper()
	const many = 200
	before := picture(t, m.ns)
	var pods []*pod
	for range many {
		pods = append(pods, m.newPod(t))
	}
	atOnce := func(do func(*pod)) time.Duration {
		began := time.Now()
		var group sync.WaitGroup
		for _, p := range pods {
			group.Go(func() { do(p) })
		}
		group.Wait()
		return time.Since(began)
	}
	took := atOnce(func(p *pod) {
		if err := m.add(t, p); err != nil {
			t.Errorf("ADD: %s", describe(err))
		}
	})
	t.Logf("%d ADDs at once took %s", many, took.Round(time.Millisecond))
	holders := map[netip.Addr]string{}
	for _, p := range pods {
		for _, a := range p.addresses {
			if other, twice := holders[a]; twice {
				t.Errorf("%s and %s both have %s", other, p.name, a)
			}
			holders[a] = p.name
		}
	}
	if got := len(m.allocated(t)); got != 2*many || len(holders) != 2*many {
		t.Errorf("%d addresses are allocated, %d in use, want %d", got, len(holders), 2*many)
	}
	for _, p := range pods[many-3:] {
		ping(t, pods[0].ns, p.addresses[subnet.V4], lab.PingOptions{})
		ping(t, pods[0].ns, p.addresses[subnet.V6], lab.PingOptions{})
	}
	look(pods)
	took = atOnce(func(p *pod) { m.del(t, p) })
	t.Logf("%d DELs at once took %s", many, took.Round(time.Millisecond))
	if got := m.allocated(t); len(got) > 0 {
		t.Errorf("addresses %v are still allocated", got)
	}
	after := picture(t, m.ns)
	if mode == bridged {
		after = withoutBridge(after)
	}
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("the node is not as it was (-before +after):\n%s", d)
	}
}

// withoutBridge leaves the bridge, its addresses and their routes out of a
// picture.
func withoutBridge(s string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(s, "\n"), func(line string) bool {
		return strings.HasPrefix(line, "link cni0") || strings.Contains(line, "10.5.7.") || strings.Contains(line, "fd00:10:5:7:")
	}), "\n")
}

// An address of the subnet that no pod has is answered for on the spot, and
// does not take the default route.
func TestFreeAddressesAreUnreachable(t *testing.T) {
	env := envOf(lab.Dual, 7)
	m := newMachine(t, ptp, &env)
	uplink(t, m.ns)
	p := m.mustAdd(t)
	for _, text := range []string{"10.5.7.99", "fd00:10:5:7::99"} {
		for _, from := range []*lab.Namespace{m.ns, p.ns} {
			_, err := lab.Ping(t.Context(), from, netip.Addr{}, netip.MustParseAddr(text), lab.PingOptions{Timeout: 100 * time.Millisecond})
			if err == nil {
				t.Errorf("%s answers", text)
			}
		}
		routes, err := handleOf(t, m.ns).RouteGet(net.ParseIP(text))
		if err == nil {
			t.Errorf("the way to %s is %v, want none", text, routes)
		}
	}
}

// uplink gives a host a default route.
func uplink(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	h := handleOf(t, ns)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	link := &netlink.Bridge{LinkAttrs: attrs}
	err := h.LinkAdd(link)
	if err == nil {
		err = h.LinkSetUp(link)
	}
	for _, text := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		p := netip.MustParsePrefix(text)
		if err == nil {
			err = addAddress(h, link, p)
		}
		if err == nil {
			f := subnet.FamilyOf(p.Addr())
			err = addRoute(h, &netlink.Route{Dst: ipNet(anywhere(f)), Gw: p.Addr().Next().AsSlice(), LinkIndex: link.Attrs().Index})
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A host that does not forward is made to, and goes on to hear the router that
// it has its default route from, and no other.
func TestForwarding(t *testing.T) {
	env := envOf(lab.Dual, 7)
	m := newMachine(t, ptp, &env)
	uplink(t, m.ns)
	read := func(key string) string {
		var value []byte
		if err := m.ns.Do(func() (err error) { value, err = os.ReadFile("/proc/sys/net/" + key); return err }); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(value))
	}
	h := handleOf(t, m.ns)
	link, err := h.LinkByName("uplink")
	if err != nil {
		t.Fatal(err)
	}
	advertised := &netlink.Route{Dst: ipNet(anywhere(subnet.V6)), Gw: net.ParseIP("2001:db8::3"), LinkIndex: link.Attrs().Index, Protocol: 9, Priority: 2048}
	if err := addRoute(h, advertised); err != nil {
		t.Fatal(err)
	}
	if got := read("ipv6/conf/all/forwarding") + read("ipv4/ip_forward"); got != "00" {
		t.Fatalf("forwarding is %s before", got)
	}
	m.mustAdd(t)
	for key, want := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1", "ipv6/conf/uplink/accept_ra": "2", "ipv6/conf/lo/accept_ra": "1", "ipv6/conf/default/accept_ra": "1"} {
		if got := read(key); got != want {
			t.Errorf("%s is %s, want %s", key, got, want)
		}
	}
}

// A plugin that comes before is passed on.
func TestBehindAnother(t *testing.T) {
	env := envOf(lab.IPv4, 7)
	m := newMachine(t, ptp, &env)
	previous := `{"cniVersion":"1.1.0","interfaces":[{"name":"first0","sandbox":"/elsewhere"}],"ips":[{"interface":0,"address":"192.0.2.9/24"}]}`
	p := m.newPod(t)
	conf := fmt.Sprintf(`{"cniVersion":"1.1.0","name":%q,"type":"ripstop-cni","subnetFile":%q,"dataDir":%q,"runDir":%q,"prevResult":%s}`,
		networkName, m.keys["subnetFile"], m.keys["dataDir"], m.keys["runDir"], previous)
	n, err := libcni.NetworkPluginConfFromBytes([]byte(conf))
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.cni.AddNetwork(t.Context(), n, p.conf())
	if err != nil {
		t.Fatal(describe(err))
	}
	if s := fmt.Sprint(r); !strings.Contains(s, "first0") || !strings.Contains(s, "192.0.2.9") || !strings.Contains(s, "10.5.7.2") {
		t.Errorf("result %v", r)
	}
}
