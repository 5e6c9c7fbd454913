package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

const (
	networkName = "pods"
	ifName      = "eth0"
	testMTU     = 1450
)

// machine is a host with a container runtime: libcni, which the real ones use
// too, starting plugins in the host's namespace.
type machine struct {
	ns  *lab.Namespace
	dir string
	cni *libcni.CNIConfig
	run *inNamespace
	// keys are those of the plugin's configuration.
	keys map[string]any
	// behind are plugins chained behind ripstop-cni.
	behind []map[string]any
	// version is the configuration's.
	version string
	pods    int
}

// pod is a container: a namespace that the plugin finds as the kernel made it.
type pod struct {
	name      string
	file      *os.File
	ns        *lab.Namespace
	args      [][2]string
	caps      map[string]any
	addresses subnet.PerFamily[netip.Addr]
	result    *current.Result
}

// newMachine is a host of its own, with a subnet file where there is an env.
func newMachine(t *testing.T, mode string, env *envfile.Env) *machine {
	t.Helper()
	ns, err := lab.OpenNamespace("host", pathOf(kerneltest.Namespace(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	m := machineAt(t, ns, mode)
	if env != nil {
		m.lease(t, *env)
	}
	return m
}

// machineAt puts a runtime on a host.
func machineAt(t *testing.T, ns *lab.Namespace, mode string, path ...string) *machine {
	t.Helper()
	m := &machine{ns: ns, dir: t.TempDir(), version: "1.1.0"}
	m.keys = map[string]any{
		"type": "ripstop-cni", "mode": mode,
		"subnetFile": filepath.Join(m.dir, "subnet.env"), "dataDir": filepath.Join(m.dir, "networks"), "runDir": filepath.Join(m.dir, "run"),
	}
	m.run = &inNamespace{DefaultExec: &invoke.DefaultExec{RawExec: &invoke.RawExec{}}, ns: ns}
	m.cni = libcni.NewCNIConfigWithCacheDir(append([]string{programs}, path...), filepath.Join(m.dir, "cache"), m.run)
	return m
}

func pathOf(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// inNamespace starts plugins on the host, not where the test runs.
type inNamespace struct {
	*invoke.DefaultExec
	ns *lab.Namespace

	mu   sync.Mutex
	said string // What the last plugin that ended wrote to its standard error.
}

func (e *inNamespace) ExecPlugin(ctx context.Context, path string, stdin []byte, env []string) ([]byte, error) {
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = bytes.NewReader(stdin), &out, &said, env
	err := e.ns.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	e.mu.Lock()
	e.said = said.String()
	e.mu.Unlock()
	if err == nil {
		return out.Bytes(), nil
	}
	var known types.Error
	if jerr := json.Unmarshal(out.Bytes(), &known); jerr == nil && known.Msg != "" {
		return nil, &known
	}
	return nil, fmt.Errorf("%s: %w; it said %q and %q", path, err, out.String(), said.String())
}

// envOf is what a daemon with the n-th subnet writes.
func envOf(mode lab.Mode, n int) envfile.Env {
	e := envfile.Env{MTU: testMTU}
	for _, f := range mode.Families() {
		if f == subnet.V4 {
			e.Networks[f], e.Subnets[f] = netip.MustParsePrefix("10.5.0.0/16"), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)
		} else {
			e.Networks[f], e.Subnets[f] = netip.MustParsePrefix("fd00:10:5::/48"), netip.MustParsePrefix(fmt.Sprintf("fd00:10:5:%d::/64", n))
		}
	}
	return e
}

func (m *machine) lease(t *testing.T, e envfile.Env) {
	t.Helper()
	if err := e.Write(m.keys["subnetFile"].(string)); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) list(t *testing.T) *libcni.NetworkConfigList {
	t.Helper()
	text, err := json.Marshal(map[string]any{"cniVersion": m.version, "name": networkName, "plugins": append([]map[string]any{m.keys}, m.behind...)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := libcni.ConfListFromBytes(text)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (m *machine) newPod(t *testing.T) *pod {
	t.Helper()
	m.pods++
	p := &pod{name: fmt.Sprintf("container%d", m.pods), file: kerneltest.Namespace(t)}
	var err error
	if p.ns, err = lab.OpenNamespace(p.name, pathOf(p.file)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.ns.Close() })
	return p
}

// end makes the namespace vanish, as when a container's last process ends.
func (p *pod) end() {
	_ = p.ns.Close()
	_ = p.file.Close()
}

func (p *pod) conf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: p.name, NetNS: pathOf(p.file), IfName: ifName, Args: p.args, CapabilityArgs: p.caps}
}

func (m *machine) add(t *testing.T, p *pod) error {
	t.Helper()
	r, err := m.cni.AddNetworkList(t.Context(), m.list(t), p.conf())
	if err != nil {
		return err
	}
	if p.result, err = current.NewResultFromResult(r); err != nil {
		t.Fatal(err)
	}
	for _, ip := range p.result.IPs {
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		p.addresses[subnet.FamilyOf(a.Unmap())] = a.Unmap()
	}
	return nil
}

func (m *machine) mustAdd(t *testing.T) *pod {
	t.Helper()
	p := m.newPod(t)
	if err := m.add(t, p); err != nil {
		t.Fatalf("ADD: %v", describe(err))
	}
	return p
}

func (m *machine) del(t *testing.T, p *pod) {
	t.Helper()
	if err := m.cni.DelNetworkList(t.Context(), m.list(t), p.conf()); err != nil {
		t.Errorf("DEL: %v", describe(err))
	}
}

func (m *machine) check(t *testing.T, p *pod) error {
	return m.cni.CheckNetworkList(t.Context(), m.list(t), p.conf())
}

func (m *machine) status(t *testing.T) error {
	return m.cni.GetStatusNetworkList(t.Context(), m.list(t))
}

// said is what the last plugin wrote to its standard error.
func (m *machine) said() string {
	m.run.mu.Lock()
	defer m.run.mu.Unlock()
	return m.run.said
}

func (m *machine) dataDir() string { return filepath.Join(m.keys["dataDir"].(string), networkName) }

// allocated lists the addresses that are handed out.
func (m *machine) allocated(t *testing.T) []netip.Addr {
	t.Helper()
	return allocatedIn(t, m.dataDir())
}

// allocatedIn lists those of a network's folder.
func allocatedIn(t *testing.T, dir string) []netip.Addr {
	t.Helper()
	held, err := (&allocations{dir: dir}).list()
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return slices.SortedFunc(maps.Keys(held), netip.Addr.Compare)
}

func handleOf(t *testing.T, ns *lab.Namespace) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// picture lists links, addresses and routes of a namespace, a line each. What
// the kernel makes by itself for IPv6 is left out.
func picture(t *testing.T, ns *lab.Namespace) string {
	t.Helper()
	h := handleOf(t, ns)
	var out []string
	links, err := whole(h.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		out = append(out, fmt.Sprintf("link %s %s mtu %d", l.Attrs().Name, l.Type(), l.Attrs().MTU))
	}
	for _, f := range subnet.Families {
		addrs, err := addressesOf(h, nil, f)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if !a.IP.IsLinkLocalUnicast() {
				out = append(out, "address "+prefixOf(a).String())
			}
		}
		family := subnet.PerFamily[int]{subnet.V4: unix.AF_INET, subnet.V6: unix.AF_INET6}[f]
		routes, err := whole(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Dst != nil && !r.Dst.IP.IsLinkLocalUnicast() && !r.Dst.IP.IsMulticast() {
				out = append(out, fmt.Sprintf("route %s type %d proto %d metric %d", r.Dst, r.Type, r.Protocol, r.Priority))
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

func ping(t *testing.T, from *lab.Namespace, to netip.Addr, opts lab.PingOptions) {
	t.Helper()
	if _, err := lab.Ping(t.Context(), from, netip.Addr{}, to, opts); err != nil {
		t.Errorf("from %s: %v", from.Name(), err)
	}
}

// full is a ping that fills the MTU.
func full(f subnet.Family, mtu int) lab.PingOptions {
	return lab.PingOptions{Size: mtu - subnet.PerFamily[int]{subnet.V4: 28, subnet.V6: 48}[f], DontFragment: true}
}

// wantCode checks an error's code and that its text and details say so.
func wantCode(t *testing.T, err error, code uint, say ...string) {
	t.Helper()
	var known *types.Error
	if !errors.As(err, &known) {
		t.Fatalf("got error %v, want one with code %d", err, code)
	}
	if known.Code != code {
		t.Errorf("error %v has code %d, want %d", known, known.Code, code)
	}
	for _, s := range say {
		if !strings.Contains(known.Msg+"\n"+known.Details, s) {
			t.Errorf("error %q (%q) does not say %q", known.Msg, known.Details, s)
		}
	}
}

func describe(err error) string {
	var known *types.Error
	if errors.As(err, &known) {
		return fmt.Sprintf("%v (code %d)", err, known.Code)
	}
	return fmt.Sprint(err)
}

// eachMode runs a test for both ways to connect pods and all families.
func eachMode(t *testing.T, f func(t *testing.T, mode string, families lab.Mode)) {
	for _, mode := range []string{ptp, bridged} {
		for _, families := range lab.Modes {
			t.Run(mode+"/"+string(families), func(t *testing.T) {
				t.Parallel()
				f(t, mode, families)
			})
		}
	}
}

const talkLimit = time.Minute
