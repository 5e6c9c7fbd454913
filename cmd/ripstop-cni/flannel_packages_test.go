//go:build packages

package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ripstop-net/ripstop/network/lab"
)

// flannelPlugin is flannel's own CNI plugin in the last version that came with the
// standard ones: Debian's package no longer has it, and that of the repository that it
// went to (github.com/flannel-io/cni-plugin) is not to be had from every proxy. That one
// reads the same file and calls the same plugins.
const flannelPlugin = "github.com/containernetworking/plugins/plugins/meta/flannel@v0.9.1"

// buildFlannelPlugin builds it outside of this module and returns its folder.
func buildFlannelPlugin(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "install", flannelPlugin)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go install %s: %v\n%s", flannelPlugin, err, out)
	}
	return dir
}

// flannel's own plugin, configured as flannel's manifests do, connects pods by
// Ripstop's subnet file: with addresses of the node's subnet and the MTU there, across
// nodes, and leaves neither address nor interface.
func TestRealFlannelPlugin(t *testing.T) {
	plugin := buildFlannelPlugin(t)
	for _, families := range lab.Modes {
		t.Run(string(families), func(t *testing.T) {
			l, machines := startLab(t, lab.Options{Nodes: 2, Mode: families, DaemonArgs: []string{"--ip-masq"}}, bridged, plugin, standardPlugins())
			var pods []*pod
			for i, m := range machines {
				env, err := l.Hosts[i].Env()
				if err != nil {
					t.Fatal(err)
				}
				m.version = "0.3.1"
				dataDir := m.keys["dataDir"]
				m.keys = map[string]any{
					"type": "flannel", "subnetFile": m.keys["subnetFile"], "dataDir": filepath.Join(m.dir, "flannel"),
					"delegate": map[string]any{"hairpinMode": true, "isDefaultGateway": true},
					"ipam":     map[string]any{"type": "host-local", "dataDir": dataDir}, // Not this machine's own.
				}
				for range 2 {
					p := m.mustAdd(t)
					for _, f := range families.Families() {
						if !env.Subnets[f].Contains(p.addresses[f]) {
							t.Errorf("address %s is not in %s", p.addresses[f], env.Subnets[f])
						}
					}
					link, err := handleOf(t, p.ns).LinkByName(ifName)
					if err != nil || link.Attrs().MTU != env.MTU {
						t.Errorf("%s has %v (%v), want an MTU of %d", p.name, link, err, env.MTU)
					}
					pods = append(pods, p)
				}
			}
			env, err := l.Hosts[0].Env()
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range pods {
				for _, b := range pods {
					if a != b {
						reach(t, l, a, b, env.MTU)
					}
				}
			}
			for i, p := range pods {
				m := machines[i/2]
				m.del(t, p)
				if links, err := handleOf(t, p.ns).LinkList(); err != nil || containsLink(links, ifName) {
					t.Errorf("the container has links %v, %v", links, err)
				}
				if held := allocatedIn(t, filepath.Join(m.dir, "networks", networkName)); len(held) != (1-i%2)*len(families.Families()) {
					t.Errorf("allocated are %v", held)
				}
				if _, err := os.Stat(filepath.Join(m.dir, "flannel", p.name)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("what the plugin noted of %s is left: %v", p.name, err)
				}
			}
		})
	}
}
