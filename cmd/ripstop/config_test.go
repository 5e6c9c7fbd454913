package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

func TestMain(m *testing.M) {
	etcdserver.RunIfChild()
	if os.Getenv(asTool) != "" {
		main()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// tool runs ripstop against an etcd and returns all that it says.
type tool struct {
	t        *testing.T
	endpoint string
}

func (r tool) run(in string, args ...string) (string, error) {
	r.t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(append(args, "--etcd-endpoints="+r.endpoint))
	root.SetIn(strings.NewReader(in))
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(r.t.Context())
	return out.String(), err
}

// says expects success and a text in the output; fails expects an error with it.
func (r tool) says(want string, args ...string) {
	r.t.Helper()
	if out, err := r.run("", args...); err != nil || !strings.Contains(out, want) {
		r.t.Errorf("%v: %v\n%swant %q", args, err, out, want)
	}
}

func (r tool) fails(want string, args ...string) {
	r.t.Helper()
	if out, err := r.run("", args...); err == nil || !strings.Contains(out+err.Error(), want) {
		r.t.Errorf("%v: %v\n%swant %q", args, err, out, want)
	}
}

func start(t *testing.T) (tool, *clientv3.Client) {
	t.Helper()
	s := etcdserver.ForTest(t, etcdserver.Options{})
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.URL()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return tool{t, s.URL()}, c
}

func TestConfig(t *testing.T) {
	r, c := start(t)
	lease := func(key, node string) {
		t.Helper()
		_, err := c.Put(context.Background(), "/coreos.com/network/subnets/"+key, `{"PublicIP":"10.99.0.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:02"},"Node":"`+node+`"}`)
		if err != nil {
			t.Fatal(err)
		}
	}
	r.fails("there is no network config in etcd", "config", "get")
	r.fails("there is no network config in etcd (/coreos.com/network/config)", "config", "check")
	r.fails(`which config? Give JSON such as '{"Network": "10.5.0.0/16"}'`, "config", "set")
	r.fails(`takes one config, and there is "10.5.0.0/16}" too: put JSON in quotes`, "config", "set", "{Network:", "10.5.0.0/16}")
	r.fails("Network is missing: IPv4 is enabled and needs one: nothing was written", "config", "set", `{}`)
	r.fails(`no backend of Type "udp": there are vxlan, host-gw, alloc`, "config", "set", `{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}`)
	r.fails(`unknown command "bogus"`, "config", "bogus")
	r.fails("VNI 0 is outside", "config", "set", `{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan","VNI":0}}`)
	r.fails("there is no network config in etcd", "config", "get")

	const first = `{"Network": "10.5.0.0/16"}`
	r.says("written: 10.5.0.0/16 with 255 subnets of /24 from 10.5.1.0 to 10.5.255.0; backend vxlan", "config", "set", first)
	r.says("unchanged", "config", "set", first)
	if out, err := r.run("", "config", "get"); err != nil || out != first+"\n" {
		t.Errorf("get: %q, %v", out, err)
	}
	lease("10.5.200.0-24", "node-b")
	lease("10.5.3.0-24", "node-c")
	lease("junk", "node-d")
	r.says("2 leases, all within it", "config", "check")
	r.says("unreadable junk: key is no subnet", "config", "check")

	const narrow = `{"Network": "10.5.0.0/20"}`
	r.fails("strands 10.5.200.0-24: 10.5.200.0/24 is outside the network 10.5.0.0/20 (held by node-b (10.99.0.2))", "config", "set", narrow)
	r.fails("1 of 2 leases have no room in this config: nothing was written", "config", "set", narrow)
	r.fails("strands 10.5.200.0-24", "config", "check", narrow)
	r.says("10.5.0.0/16", "config", "get")
	r.says("restart them one by one", "config", "set", "--force", narrow)
	r.says("10.5.0.0/20", "config", "get")

	file := filepath.Join(t.TempDir(), "net.json")
	if err := os.WriteFile(file, []byte("{\n  \"Network\": \"10.5.0.0/16\",\n  \"SubnetLenght\": 26\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.says(`warning: the key "SubnetLenght" means nothing`, "config", "set", file)
	r.says("SubnetLenght", "config", "get")
	r.says(`the key "Backend.Prot" means nothing`, "config", "check", `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Prot": 1}}`)
	if out, err := r.run(first, "config", "set", "-"); err != nil || !strings.Contains(out, "written") {
		t.Errorf("from standard input: %s %v", out, err)
	}
	r.fails("give JSON such as", "config", "set", "10.5.0.0/16")
	r.says("IPv6Network has no effect", "config", "check", `{"Network": "10.5.0.0/16", "IPv6Network": "fd00:10:5::/48"}`)
	r.says(`the key "Backend.VNI" means nothing`, "config", "check", `{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw", "VNI": 1}}`)
	if out, err := r.run("", "config", "set", `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}`); err != nil || strings.Contains(out, "at once") || strings.Contains(out, "no effect") {
		t.Errorf("direct routes: %s %v", out, err)
	}
	for _, backend := range []string{`{"Type": "host-gw"}`, `{"Type": "vxlan", "VNI": 7}`, `{"Type": "vxlan", "VNI": 7, "Port": 4789}`} {
		out, err := r.run("", "config", "set", `{"Network": "10.5.0.0/16", "Backend": `+backend+`}`)
		if err != nil || !strings.Contains(out, "Restart them all at once") || strings.Contains(out, "one by one") {
			t.Errorf("%s: %s %v", backend, out, err)
		}
	}
}

// TestEtcdThatNobodyNamed: who asked by default alone, and had no answer, is told of the flag.
func TestEtcdThatNobodyNamed(t *testing.T) {
	const hint = "if etcd is elsewhere, give --etcd-endpoints"
	s, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{"http://127.0.0.1:1"}, RequestTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_, away := s.List(t.Context())
	if !etcd.IsAway(away) {
		t.Fatal(away)
	}
	refused := fmt.Errorf("%w: wrong user or password", subnet.ErrRefused)
	for _, tc := range []struct {
		endpoints string
		err       error
		want      bool
	}{{"http://127.0.0.1:2379", away, true}, {"http://127.0.0.1:2379", refused, false}, {"http://127.0.0.1:1", away, false}} {
		var flags settings.Etcd
		set := pflag.NewFlagSet("", pflag.ContinueOnError)
		flags.Register(set)
		if err := set.Parse([]string{"--etcd-endpoints=" + tc.endpoints}); err != nil {
			t.Fatal(err)
		}
		got := withStore(t.Context(), &flags, func(*etcd.Store) error { return tc.err })
		if !errors.Is(got, tc.err) || strings.Contains(got.Error(), hint) != tc.want {
			t.Errorf("%s: %v", tc.endpoints, got)
		}
	}
}

func TestEnvironmentReachesTheTool(t *testing.T) {
	r, _ := start(t)
	t.Setenv("RIPSTOP_ETCD_PREFIX", "/elsewhere")
	r.says("written", "config", "set", `{"Network": "10.5.0.0/16"}`)
	r.fails("there is no network config", "config", "get", "--etcd-prefix=/coreos.com/network")
}
