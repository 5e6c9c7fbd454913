package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"go.etcd.io/etcd/etcdctl/v3/ctlv3"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// asEtcdctl makes the test binary run as the real etcdctl.
const asEtcdctl = "RIPSTOP_TEST_AS_ETCDCTL"

func runIfEtcdctl() {
	if os.Getenv(asEtcdctl) != "" {
		ctlv3.MustStart()
		os.Exit(0)
	}
}

// The commands of the page on security, run as they stand there, give each node enough
// to live in the network by its certificate, and no more than the page says.
func TestSecurityPage(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, NoDaemons: true})
	dir := t.TempDir()
	authority, err := etcdserver.NewAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	at := l.EtcdAddress(subnet.V4)
	issue := func(name string, hosts ...string) {
		t.Helper()
		cert, key, err := authority.Issue(name, hosts...)
		if err == nil && len(hosts) == 0 { // By the names that the page has.
			if err = os.Rename(cert, filepath.Join(dir, name+".crt")); err == nil {
				err = os.Chmod(key, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	issue("server", at.String())
	for _, name := range []string{"root", "operator", "node1", "node2"} {
		issue(name)
	}
	if err := os.Link(authority.CAFile, filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	store := etcdserver.ForTest(t, etcdserver.Options{
		ListenClientURL: "https://" + netip.AddrPortFrom(at, 2479).String(),
		CertFile:        filepath.Join(dir, "server.pem"), KeyFile: filepath.Join(dir, "server.key"), ClientCAFile: authority.CAFile,
		Run: func(cmd *exec.Cmd) error { return l.EtcdNamespace().Start(cmd) },
	})

	script := func(text string) (string, error) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-ec", "etcdctl() { "+asEtcdctl+"=1 "+os.Args[0]+` "$@"; }`+"\n"+text)
		cmd.Dir = dir
		var said strings.Builder
		cmd.Stdout, cmd.Stderr = &said, &said
		err := l.EtcdNamespace().Start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		return said.String(), err
	}
	text, err := os.ReadFile("../../Documentation/security.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) != 5 {
		t.Fatalf("the page has %d blocks of commands", len(blocks))
	}
	environment := strings.ReplaceAll(blocks[0], "https://10.0.0.1:2379", store.URL())
	run := func(block string) {
		t.Helper()
		if said, err := script(environment + block); err != nil {
			t.Fatalf("%v: %s\n%s", err, said, block)
		}
	}
	run(blocks[1])
	for _, h := range l.Hosts {
		own := strings.NewReplacer("NODE=worker-1", "NODE="+h.Name, "ADDRESS=10.0.0.11", "ADDRESS="+h.Address(subnet.V4).String()).Replace(blocks[2])
		run(own + fmt.Sprintf("etcdctl role grant-permission ripstop-$NODE readwrite /coreos.com/network/ripstop/addresses/%s\n", h.Address(subnet.V6)))
	}
	run(blocks[3])
	run(blocks[4])

	as := func(user string) string {
		return strings.NewReplacer("root.crt", user+".crt", "root.key", user+".key").Replace(environment)
	}
	if said, err := script(as("operator") + "etcdctl put /coreos.com/network/config '" + UsualConfig(Dual) + "'"); err != nil {
		t.Fatalf("the operator cannot write the config: %v: %s", err, said)
	}
	for _, h := range l.Hosts {
		h.StoreURL = store.URL()
		h.DaemonArgs = []string{
			"--etcd-cafile=" + authority.CAFile, "--etcd-certfile=" + filepath.Join(dir, h.Name+".crt"), "--etcd-keyfile=" + filepath.Join(dir, h.Name+".key"),
		}
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range l.Hosts {
		if err := l.settle(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	everyPairTalks(t, l, talkLimit)
	if err := l.Hosts[0].RestartDaemon(t.Context(), 15); err != nil {
		t.Fatal(err)
	}

	for what, command := range map[string]string{
		"write the config":                     "put /coreos.com/network/config {}",
		"delete the config":                    "del /coreos.com/network/config",
		"pass for another node":                "put /coreos.com/network/ripstop/nodes/node2 x",
		"take another's address":               "put /coreos.com/network/ripstop/addresses/" + l.Hosts[1].Address(subnet.V4).String() + " x",
		"read what else is in etcd":            "get /registry/secrets",
		"read everything under the prefix":     "get --prefix /coreos.com/network/",
		"give itself rights":                   "user grant-role node1 root",
		"turn authentication off":              "auth disable",
		"delete every lease by the whole path": "del --prefix /coreos.com/",
	} {
		if said, err := script(as("node1") + "etcdctl " + command); err == nil || !strings.Contains(said, "permission denied") {
			t.Errorf("a node may %s: %v: %s", what, err, said)
		}
	}
	// What the page says cannot be kept from a node.
	if said, err := script(as("node1") + "etcdctl put /coreos.com/network/subnets/10.5.250.0-24 x"); err != nil {
		t.Errorf("the page says that a node may write any lease: %v: %s", err, said)
	}
}
