package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

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
// nothing when they all end at once.
func TestManyAtOnce(t *testing.T) {
	for _, mode := range []string{ptp, bridged} {
		t.Run(mode, func(t *testing.T) {
			const many = 200
			env := envOf(lab.Dual, 7)
			m := newMachine(t, mode, &env)
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
		})
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

// What the runtime asks for is given, or refused with the reason.
func TestRequests(t *testing.T) {
	env := envOf(lab.Dual, 7)
	m := newMachine(t, ptp, &env)
	m.keys["capabilities"] = map[string]bool{"ips": true, "mac": true}
	p := m.newPod(t)
	p.caps = map[string]any{"ips": []string{"10.5.7.40/24", "fd00:10:5:7::40"}, "mac": "02:11:22:33:44:55"}
	if err := m.add(t, p); err != nil {
		t.Fatal(describe(err))
	}
	if p.addresses != (subnet.PerFamily[netip.Addr]{netip.MustParseAddr("10.5.7.40"), netip.MustParseAddr("fd00:10:5:7::40")}) {
		t.Errorf("addresses %v", p.addresses)
	}
	link, err := handleOf(t, p.ns).LinkByName(ifName)
	if err != nil || link.Attrs().HardwareAddr.String() != "02:11:22:33:44:55" {
		t.Errorf("%v, %v", link, err)
	}
	old := m.newPod(t)
	old.args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAME", "web-0"}, {"IP", "10.5.7.41"}, {"MAC", "02:11:22:33:44:56"}}
	if err := m.add(t, old); err != nil || old.addresses[subnet.V4] != netip.MustParseAddr("10.5.7.41") {
		t.Errorf("by CNI_ARGS: %v, %v", old.addresses, err)
	}
	for _, c := range []struct {
		caps map[string]any
		code uint
		say  string
	}{
		{map[string]any{"ips": []string{"10.5.7.40"}}, codeAddress, "belongs to container container1"},
		{map[string]any{"ips": []string{"10.5.8.40"}}, codeAddress, "not in the node's subnet 10.5.7.0/24"},
		{map[string]any{"ips": []string{"10.5.7.1"}}, codeAddress, "not for pods"},
		{map[string]any{"ips": []string{"10.5.7.255"}}, codeAddress, "not for pods"},
		{map[string]any{"ips": []string{"10.5.7.50", "10.5.7.51"}}, codeAddress, "a pod has one"},
		{map[string]any{"ips": []string{"here"}}, codeAddress, "cannot be read"},
		{map[string]any{"mac": "01:00:5e:00:00:01"}, types.ErrInvalidNetworkConfig, "no unicast"},
	} {
		p := m.newPod(t)
		p.caps = c.caps
		wantCode(t, m.add(t, p), c.code, c.say)
	}
	// What other plugins do is left to them, with a word.
	m.keys["capabilities"] = map[string]bool{"bandwidth": true}
	limited := m.newPod(t)
	limited.caps = map[string]any{"bandwidth": map[string]int{"ingressRate": 1000, "ingressBurst": 1000}}
	if err := m.add(t, limited); err != nil || !strings.Contains(m.said(), "left to the bandwidth plugin") {
		t.Errorf("with bandwidth: %v; it said %q", err, m.said())
	}
	m.del(t, limited)
	if got := m.allocated(t); len(got) != 4 {
		t.Errorf("after refusals %v are allocated, want those of two pods", got)
	}
}

// A full subnet says so, has room again when a pod ends, and costs the other
// family no address.
func TestFullSubnet(t *testing.T) {
	for _, c := range []struct {
		subnet string
		room   int
	}{{"10.5.7.0/29", 5}, {"fd00:10:5:7::/126", 2}} {
		env := envOf(lab.Dual, 7)
		small := netip.MustParsePrefix(c.subnet)
		f := subnet.FamilyOf(small.Addr())
		env.Subnets[f] = small
		m := newMachine(t, ptp, &env)
		var pods []*pod
		for range c.room {
			pods = append(pods, m.mustAdd(t))
		}
		wantCode(t, m.add(t, m.newPod(t)), types.ErrTryAgainLater, c.subnet+" has no free address")
		if got := m.allocated(t); len(got) != 2*c.room {
			t.Errorf("%s: %d addresses are allocated to %d pods", c.subnet, len(got), c.room)
		}
		m.del(t, pods[1])
		if p := m.mustAdd(t); p.addresses[f] != pods[1].addresses[f] {
			t.Errorf("got %s, want the one that is free, %s", p.addresses[f], pods[1].addresses[f])
		}
	}
}

// A second ADD of one container is refused and changes nothing; what an ADD
// that was killed has left does not keep the next from being made.
func TestAddTwice(t *testing.T) {
	env := envOf(lab.IPv4, 7)
	m := newMachine(t, ptp, &env)
	p := m.mustAdd(t)
	wantCode(t, m.add(t, p), codeAttached, "has address 10.5.7.2 already")
	ping(t, m.ns, p.addresses[subnet.V4], lab.PingOptions{})
	m.del(t, p)
	p = m.mustAdd(t)

	// An interface of that name that is somebody else's.
	if err := os.Remove(filepath.Join(m.dataDir(), p.addresses[subnet.V4].String())); err != nil {
		t.Fatal(err)
	}
	wantCode(t, m.add(t, p), codeAttached, "has an interface eth0 already")
	ping(t, m.ns, p.addresses[subnet.V4], lab.PingOptions{})
	if got := m.allocated(t); len(got) != 0 {
		t.Errorf("%v are allocated after a refusal", got)
	}
	// The namespace is another, the host's end and the address are of old.
	fresh := m.newPod(t)
	fresh.name = p.name
	if err := m.add(t, fresh); err != nil {
		t.Fatalf("ADD after one that was not finished: %s", describe(err))
	}
	ping(t, m.ns, fresh.addresses[subnet.V4], lab.PingOptions{})
}

// An address that a living pod has is not handed out although nobody remembers.
func TestEmptiedStore(t *testing.T) {
	env := envOf(lab.IPv4, 7)
	m := newMachine(t, ptp, &env)
	p := m.mustAdd(t)
	if err := os.RemoveAll(m.dataDir()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, m.add(t, m.newPod(t)), codeOccupied, "the host has a route to it")
	ping(t, m.ns, p.addresses[subnet.V4], lab.PingOptions{})
}

// After a reboot all addresses are free; within a boot they outlive everything.
func TestRebootFreesAddresses(t *testing.T) {
	env := envOf(lab.Dual, 7)
	m := newMachine(t, ptp, &env)
	p := m.mustAdd(t)
	if q := m.mustAdd(t); q.addresses[subnet.V4] == p.addresses[subnet.V4] {
		t.Fatalf("two pods have %s", q.addresses[subnet.V4])
	}
	// What a reboot leaves: the folder, stamped with the boot before; no link,
	// no namespace, no route.
	if err := os.WriteFile(filepath.Join(m.dataDir(), bootFile), []byte("8d7bb9a6-0a0d-4fd3-9d5c-0d9cdc42cb55\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	booted := newMachine(t, ptp, &env)
	booted.keys["dataDir"] = m.keys["dataDir"]
	if first := booted.mustAdd(t); !slices.Equal(booted.allocated(t), first.addresses[:]) {
		t.Errorf("allocated are %v, want those of the only pod, %v", booted.allocated(t), first.addresses)
	}
}

// A node whose subnet has changed says so while pods of the old one are there,
// and takes the new one when they are gone. The bridge never has two addresses.
func TestChangedSubnet(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string, families lab.Mode) {
		env := envOf(families, 7)
		m := newMachine(t, mode, &env)
		old := m.mustAdd(t)
		m.lease(t, envOf(families, 8))
		wantCode(t, m.add(t, m.newPod(t)), codeOccupied, "drain the node")
		wantCode(t, m.status(t), codeNotReady, "drain the node")
		for _, f := range families.Families() {
			ping(t, m.ns, old.addresses[f], lab.PingOptions{})
		}
		m.del(t, old)
		p := m.mustAdd(t)
		for _, f := range families.Families() {
			ping(t, m.ns, p.addresses[f], lab.PingOptions{})
			ping(t, p.ns, envOf(families, 8).Subnets[f].Addr().Next(), lab.PingOptions{})
		}
		if seen := picture(t, m.ns); strings.Contains(seen, "10.5.7.") || strings.Contains(seen, "fd00:10:5:7:") {
			t.Errorf("something of the old subnet is left:\n%s", seen)
		}
	})
}

// The bridge of an old subnet is found by its address alone, too.
func TestOldBridge(t *testing.T) {
	env := envOf(lab.IPv4, 7)
	m := newMachine(t, bridged, &env)
	m.mustAdd(t)
	if err := os.RemoveAll(m.dataDir()); err != nil {
		t.Fatal(err)
	}
	m.lease(t, envOf(lab.IPv4, 8))
	wantCode(t, m.add(t, m.newPod(t)), codeOccupied, "bridge cni0 has address 10.5.7.1/24 and 1 ports", "10.5.8.0/24")
}

// Pods on a bridge take the subnet for their own link, so the two modes cannot
// serve one subnet at the same time.
func TestModesDoNotMix(t *testing.T) {
	for _, families := range lab.Modes {
		env := envOf(families, 7)
		m := newMachine(t, bridged, &env)
		p := m.mustAdd(t)
		m.keys["mode"] = ptp
		wantCode(t, m.add(t, m.newPod(t)), codeOccupied, "bridge cni0", `"mode" to "bridge"`)
		m.del(t, p)
		p = m.mustAdd(t)
		m.keys["mode"] = bridged
		wantCode(t, m.add(t, m.newPod(t)), codeOccupied, `"mode" to "ptp"`)
		m.del(t, p)
		m.mustAdd(t)
	}
}

// GC takes away what a runtime that was killed has left, and nothing else.
func TestGC(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string, families lab.Mode) {
		env := envOf(families, 7)
		m := newMachine(t, mode, &env)
		var pods []*pod
		for range 4 {
			pods = append(pods, m.mustAdd(t))
		}
		pods[1].end() // Its namespace went, and nobody called DEL.
		// libcni would call DEL for what it remembers; this one has lost its memory.
		if err := os.RemoveAll(filepath.Join(m.dir, "cache")); err != nil {
			t.Fatal(err)
		}
		foreign := filepath.Join(m.dataDir(), "notes.txt")
		if err := os.WriteFile(foreign, []byte("mine"), 0o644); err != nil {
			t.Fatal(err)
		}
		valid := []types.GCAttachment{{ContainerID: pods[0].name, IfName: ifName}, {ContainerID: pods[3].name, IfName: ifName}}
		if err := m.cni.GCNetworkList(t.Context(), m.list(t), &libcni.GCArgs{ValidAttachments: valid}); err != nil {
			t.Fatal(describe(err))
		}
		var want []netip.Addr
		for _, p := range []*pod{pods[0], pods[3]} {
			for _, f := range families.Families() {
				want = append(want, p.addresses[f])
				ping(t, m.ns, p.addresses[f], lab.PingOptions{})
			}
		}
		slices.SortFunc(want, netip.Addr.Compare)
		if got := m.allocated(t); !slices.Equal(got, want) {
			t.Errorf("allocated are %v, want %v", got, want)
		}
		if _, err := os.Stat(foreign); err != nil {
			t.Error(err)
		}
		if link, err := linkByName(handleOf(t, m.ns), attachment{networkName, pods[2].name, ifName}.hostName()); err != nil || link != nil {
			t.Errorf("the interface of a container that is not valid is %v, %v", link, err)
		}
		// A list that is not there is not an empty one.
		err := m.cni.GCNetworkList(t.Context(), m.list(t), nil)
		wantCode(t, err, types.ErrInvalidNetworkConfig, "valid-attachments")
		if err := m.cni.GCNetworkList(t.Context(), m.list(t), &libcni.GCArgs{}); err != nil {
			t.Fatal(describe(err))
		}
		if got := m.allocated(t); len(got) > 0 || strings.Contains(picture(t, m.ns), "route 10.5.7.0/24 type 7") {
			t.Errorf("%v are allocated after all went:\n%s", got, picture(t, m.ns))
		}
	})
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
