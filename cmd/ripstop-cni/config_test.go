package main

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/cnifiles"
	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		text, say string
		code      uint
	}{
		{`{"name":"a"}`, "", 0},
		{`{"name":"a","mode":"bridge","delegate":{"isDefaultGateway":true},"somethingElse":[1]}`, "", 0},
		{`{"name":"a","ipMasq":false}`, "", 0},
		{`{"name":"a"`, "cannot be read", types.ErrDecodingFailure},
		{`{"name":"a","mtu":"1400"}`, "cannot be read", types.ErrDecodingFailure},
		{`{"name":"a","mode":"macvlan"}`, "it may be", types.ErrInvalidNetworkConfig},
		{`{"name":"a","mode":""}`, "it may be", types.ErrInvalidNetworkConfig},
		{`{"name":"a","ipMasq":true}`, "ripstopd that masquerades", types.ErrInvalidNetworkConfig},
		{`{"name":"a","ipam":{"type":"host-local"}}`, "itself", types.ErrInvalidNetworkConfig},
		{`{"name":"a","dataDir":"networks"}`, "no absolute path", types.ErrInvalidNetworkConfig},
		{`{"name":"a","bridge":"a-name-that-is-too-long"}`, "1 to 15", types.ErrInvalidNetworkConfig},
		{`{"name":"a","mtu":-1}`, "up to 65535", types.ErrInvalidNetworkConfig},
	} {
		_, err := load([]byte(c.text))
		if c.code == 0 {
			if err != nil {
				t.Errorf("%s: %v", c.text, err)
			}
			continue
		}
		wantCode(t, err, c.code, c.say)
	}
}

func TestMTU(t *testing.T) {
	for _, c := range []struct {
		families lab.Mode
		env, own int
		want     int
		code     uint
	}{
		{lab.IPv4, 1450, 0, 1450, 0},
		{lab.IPv4, 1450, 1400, 1400, 0},
		{lab.IPv4, 1450, 576, 576, 0},
		{lab.IPv4, 1450, 1451, 0, types.ErrInvalidNetworkConfig},
		{lab.Dual, 1430, 1279, 0, types.ErrInvalidNetworkConfig},
		{lab.IPv6, 1279, 0, 0, codeNotReady},
		{lab.IPv4, 70000, 0, 0, codeNotReady},
	} {
		env := envOf(c.families, 7)
		env.MTU = c.env
		n, err := nodeOf(env, config{MTU: c.own})
		if c.code != 0 {
			wantCode(t, err, c.code, "")
		} else if err != nil || n.mtu != c.want {
			t.Errorf("%+v: %d, %v", c, n.mtu, err)
		}
	}
}

// A flock is found by the file, whoever holds it, and nothing else is.
func TestHoldsLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), lockName)
	if holdsLock(path) {
		t.Error("a file that is not there is locked")
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if holdsLock(path) {
		t.Error("a file that nobody locked is locked")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if !holdsLock(path) {
		t.Error("a locked file is not found")
	}
}

// Names of interfaces fit the kernel, differ, and stay: DEL of a later version
// must find what an earlier one made.
func TestNames(t *testing.T) {
	at := attachment{"pods", strings.Repeat("0123456789abcdef", 20), "eth0"}
	if n := len(at.hostName()); n > longestName {
		t.Errorf("%s has %d characters", at.hostName(), n)
	}
	if n := len(at.alias()); n > 255 {
		t.Errorf("the alias has %d bytes", n)
	}
	if got := (attachment{"pods", "container1", "eth0"}).hostName(); got != "rs446700100ad1" {
		t.Errorf("the name of the host's end was rs446700100ad1 and is %s", got)
	}
	if a, b := (attachment{"pods", "a", "eth0"}), (attachment{"pods", "a", "eth1"}); a.hostName() == b.hostName() {
		t.Error("two interfaces of one container have one host end")
	}
	if got, want := linkLocal(net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56}), netip.MustParseAddr("fe80::5054:ff:fe12:3456"); got != want {
		t.Errorf("link-local address %s, want %s", got, want)
	}
	if got, want := solicitedNode(netip.MustParseAddr("4037::1:800:200e:8c6c")), netip.MustParseAddr("ff02::1:ff0e:8c6c"); got != want { // RFC 4291's own example.
		t.Errorf("solicited-node address %s, want %s", got, want)
	}
}

// TestPageShowsWhatWorks holds the examples of the page to the code.
func TestPageShowsWhatWorks(t *testing.T) {
	text, err := os.ReadFile("../../Documentation/cni.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(examples) < 2 {
		t.Fatalf("the page has %d examples", len(examples))
	}
	for _, e := range examples {
		list, err := libcni.ConfListFromBytes([]byte(e[1]))
		if err != nil {
			t.Errorf("%v in %s", err, e[1])
			continue
		}
		for _, p := range list.Plugins {
			if p.Network.Type != "ripstop-cni" {
				continue
			}
			one, err := libcni.InjectConf(p, map[string]any{"name": list.Name, "cniVersion": list.CNIVersion})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := load(one.Bytes); err != nil {
				t.Errorf("%v in %s", err, e[1])
			}
			// A key that is not read is passed over, so that load does not find it.
			var given map[string]any
			if err := json.Unmarshal(one.Bytes, &given); err != nil {
				t.Fatal(err)
			}
			for key := range given {
				if !strings.Contains(string(text), "`"+key+"`") && key != "name" && key != "cniVersion" && key != "type" && key != "capabilities" {
					t.Errorf("the page does not explain %q", key)
				}
			}
		}
	}
	// The defaults that the page names are the code's.
	c, err := load([]byte(`{"name":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{"mode": c.Mode, "bridge": c.Bridge, "subnetFile": c.SubnetFile, "dataDir": c.DataDir, "runDir": c.RunDir} {
		if !strings.Contains(string(text), "| `"+key+"` | `"+value+"` |") {
			t.Errorf("the page does not say that %q is %q by default", key, value)
		}
	}
}

// TestListOfTheDaemonIsTaken: libcni and the plugin read what ripstopd puts into
// --cni-conf-dir.
func TestListOfTheDaemonIsTaken(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "portmap"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	text, err := cnifiles.Options{BinDir: bin, SubnetFile: "/other/subnet.env", RunDir: "/other/run"}.List()
	if err != nil {
		t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(text)
	if err != nil || len(list.Plugins) != 2 || list.Plugins[0].Network.Type != "ripstop-cni" || list.Plugins[1].Network.Type != "portmap" {
		t.Fatalf("%+v, %v", list, err)
	}
	one, err := libcni.InjectConf(list.Plugins[0], map[string]any{"name": list.Name, "cniVersion": list.CNIVersion})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := load(one.Bytes); err != nil || c.SubnetFile != "/other/subnet.env" || c.RunDir != "/other/run" {
		t.Errorf("%+v, %v", c, err)
	}
}

// A configuration that is wrong does not keep DEL and GC from cleaning up.
func TestDelOfWrongConfig(t *testing.T) {
	env := envfile.Env{Networks: subnet.PerFamily[netip.Prefix]{netip.MustParsePrefix("10.5.0.0/16")}, Subnets: subnet.Subnets{netip.MustParsePrefix("10.5.7.0/24")}, MTU: testMTU}
	m := newMachine(t, ptp, &env)
	p := m.mustAdd(t)
	m.keys["mode"] = "macvlan"
	if err := os.Remove(m.keys["subnetFile"].(string)); err != nil {
		t.Fatal(err)
	}
	m.del(t, p)
	if got := m.allocated(t); len(got) > 0 || strings.Contains(picture(t, m.ns), "10.5.7.") {
		t.Errorf("%v are allocated, and there is\n%s", got, picture(t, m.ns))
	}
}

// The lock on the allocations is not waited for longer than the run may take.
func TestLockedAllocations(t *testing.T) {
	dir := t.TempDir()
	c := config{DataDir: dir}
	c.Name = networkName
	first, err := openAllocations(c)
	if err != nil {
		t.Fatal(err)
	}
	second, err := openAllocations(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = first.hold(t.Context(), func() error {
		cancel()
		wantCode(t, second.hold(ctx, func() error { t.Error("two hold the lock"); return nil }), types.ErrTryAgainLater, "stay locked")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Let the goroutine that waits have it, so that it ends.
	for _, a := range []*allocations{first, second} {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	}
}
