package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

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
