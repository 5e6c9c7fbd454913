package network_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ripstop-net/ripstop/"

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func listPackages(t *testing.T) map[string]listed {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", module+"...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := map[string]listed{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages[strings.TrimPrefix(p.ImportPath, module)] = p
	}
}

// TestImportsRunOneWay holds the layout that Documentation/architecture.md
// describes: tests apart, packages import only what is named here.
func TestImportsRunOneWay(t *testing.T) {
	packages := listPackages(t)
	// Which of our packages each may import; what is not listed may import
	// none. A folder's name stands for all below it.
	ours := map[string][]string{
		"subnet/etcd":               {"subnet"},
		"subnet/subnettest":         {"subnet"},
		"backend/plan":              {"subnet", "backend"},
		"backend/vxlan":             {"subnet", "backend", "backend/plan"},
		"backend/hostgw":            {"subnet", "backend", "backend/plan"},
		"backend/planners":          {"subnet", "backend", "backend/plan", "backend/vxlan", "backend/hostgw"},
		"backend/sockfilter":        {},
		"backend/kernel":            {"backend", "backend/sockfilter"},
		"backend/kernel/kerneltest": {},
		"backend/backendtest":       {"backend"},
		"network":                   {"subnet", "backend", "backend/plan", "backend/planners", "network/converge", "network/envfile", "network/host", "network/probe", "network/rundir", "network/status", "network/status/serve", "network/underlay"},
		"network/neterror":          {},
		"network/ping":              {"network/neterror"},
		"network/probe":             {"subnet", "backend/sockfilter", "network/neterror", "network/status"},
		"network/rundir":            {},
		"network/doctor":            {"subnet", "backend", "backend/plan", "backend/planners", "backend/vxlan", "network/cnifiles", "network/envfile", "network/host", "network/rundir", "network/status", "network/underlay"},
		"network/doctor/path":       {"subnet", "backend", "backend/plan", "backend/vxlan", "network/doctor", "network/neterror", "network/ping", "network/probe", "network/status"},
		"network/host":              {"subnet", "backend", "network/status"},
		"network/cleanup":           {"subnet", "backend", "network/cnifiles", "network/envfile"},
		"network/cnifiles":          {},
		"network/status":            {"subnet", "network/rundir"},
		"network/status/serve":      {"network/status"},
		"network/converge":          {"backend"},
		"network/underlay":          {"subnet", "backend"},
		"network/envfile":           {"subnet"},
		"network/firewall":          {"subnet", "network/status"},
		"network/lab":               {"subnet", "subnet/etcd", "subnet/subnettest/etcdserver", "network/envfile", "network/ping", "backend/vxlan"},
		"network/fleet":             {"network/lab"},
		"network/bench":             {"subnet", "backend", "backend/plan", "backend/kernel", "backend/vxlan", "network/firewall", "network/lab"},
		"cmd/internal/settings":     {"subnet", "subnet/etcd"},
		"cmd/internal/ripstopd":     {"cmd/internal/settings", "subnet", "subnet/etcd", "network", "network/cnifiles", "network/firewall", "network/host", "network/probe"},
		"cmd/ripstop":               {"cmd/internal/ripstopd", "cmd/internal/settings", "subnet", "subnet/etcd", "backend", "backend/kernel", "backend/planners", "backend/vxlan", "network", "network/cleanup", "network/cnifiles", "network/doctor", "network/doctor/path", "network/envfile", "network/firewall", "network/host", "network/rundir", "network/status"},
		"cmd/ripstop-cni":           {"subnet", "network/envfile"},
		"cmd/ripstop-lab":           {"cmd/internal/settings", "network/lab", "network/fleet", "network/bench", "subnet", "subnet/subnettest/etcdserver"},
		"cmd/ripstopd":              {"cmd/internal/ripstopd", "cmd/internal/settings", "subnet/etcd", "backend/kernel", "backend/vxlan", "network", "network/firewall", "network/host", "network/rundir"},
	}
	// Who alone may import a library.
	theirs := map[string][]string{
		"go.etcd.io/etcd/client/v3":       {"subnet/etcd", "network/bench"},
		"go.etcd.io/etcd/server/":         {"subnet/subnettest/etcdserver"},
		"github.com/vishvananda/netlink":  {"backend/kernel/kerneltest", "network/lab", "cmd/ripstop-cni"},
		"gonum.org/v1/":                   {"network/bench"},
		"k8s.io/":                         {}, // Tests only.
		"github.com/fsnotify/fsnotify":    {"network"},
		"github.com/google/nftables":      {"network/firewall"},
		"github.com/mdlayher/netlink":     {"network/firewall"},
		"github.com/containernetworking/": {"cmd/ripstop-cni"},
		"github.com/prometheus/":          {"network/status/serve"},
		"github.com/coreos/go-systemd/":   {"network/status/serve"},
	}
	for name, p := range packages {
		for _, i := range p.Imports {
			if own, ok := strings.CutPrefix(i, module); ok && !slices.Contains(ours[name], own) {
				t.Errorf("%s imports %s", name, own)
			}
			for library, by := range theirs {
				if strings.HasPrefix(i, library) && !slices.Contains(by, name) {
					t.Errorf("%s imports %s", name, i)
				}
			}
		}
	}
	for _, command := range []string{"cmd/ripstopd", "cmd/ripstop", "cmd/ripstop-cni"} {
		for _, d := range packages[command].Deps {
			if strings.HasPrefix(d, "go.etcd.io/etcd/server/") || strings.HasPrefix(d, "gonum.org/") {
				t.Errorf("%s links %s", command, d)
			}
		}
	}
}
