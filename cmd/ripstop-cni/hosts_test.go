package main

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

// startHosts starts a lab of hosts with real daemons and no pods, and a runtime
// on each.
func startHosts(t *testing.T, families lab.Mode, mode string, path ...string) (*lab.Lab, []*machine) {
	t.Helper()
	return startLab(t, lab.Options{Nodes: 3, Mode: families}, mode, path...)
}

// startLab is startHosts with more to choose.
func startLab(t *testing.T, opts lab.Options, mode string, path ...string) (*lab.Lab, []*machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	opts.NoPods, opts.Dir, opts.Daemon = true, t.TempDir(), filepath.Join(programs, "ripstopd")
	l, err := lab.Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	var machines []*machine
	for _, h := range l.Hosts {
		m := machineAt(t, h.Namespace, mode, path...)
		m.keys["subnetFile"], m.keys["runDir"] = h.SubnetFile(), filepath.Join(h.Dir, "run")
		machines = append(machines, m)
	}
	return l, machines
}

// reach waits until a pod reaches another by packets that fill the MTU: a peer
// may join a moment after the node is ready.
func reach(t *testing.T, l *lab.Lab, from, to *pod, mtu int) {
	t.Helper()
	for _, f := range l.Families() {
		var err error
		for end := time.Now().Add(talkLimit); time.Now().Before(end); {
			o := full(f, mtu)
			o.Timeout = 200 * time.Millisecond
			if _, err = lab.Ping(t.Context(), from.ns, netip.Addr{}, to.addresses[f], o); err == nil {
				break
			}
		}
		if err != nil {
			t.Errorf("%s to %s: %v", from.name, to.name, err)
		}
	}
}

// Pods that the plugin connects reach each other across nodes with real daemons,
// in both modes and all families, up to the MTU; the host's daemon may be away.
func TestPodsOfThreeHostsTalk(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string, families lab.Mode) {
		l, machines := startHosts(t, families, mode)
		var pods []*pod
		for _, m := range append(machines, machines[0]) { // Two on the first.
			if err := m.status(t); err != nil {
				t.Errorf("STATUS: %s", describe(err))
			}
			pods = append(pods, m.mustAdd(t))
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
		if _, _, err := l.Hosts[0].StopDaemon(t.Context(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := machines[0].status(t); err != nil {
			t.Errorf("STATUS just after a stop: %s", describe(err))
		}
		reach(t, l, machines[0].mustAdd(t), pods[1], env.MTU)
	})
}

// A node that was booted anew refuses pods until its daemon is ready, and then
// takes them as if none had been.
func TestRebootedHost(t *testing.T) {
	l, machines := startHosts(t, lab.Dual, ptp)
	host, m := l.Hosts[0], machines[0]
	env, err := host.Env()
	if err != nil {
		t.Fatal(err)
	}
	old, far := []*pod{m.mustAdd(t), m.mustAdd(t)}, machines[1].mustAdd(t)

	// The host goes down: no daemon, no namespaces, an empty /run, no links.
	if _, _, err := host.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h := handleOf(t, host.Namespace)
	for _, p := range old {
		link, err := h.LinkByName(attachment{networkName, p.name, ifName}.hostName())
		if err == nil {
			err = h.LinkDel(link)
		}
		if err != nil {
			t.Fatal(err)
		}
		p.end()
	}
	devices, err := host.Devices()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range devices {
		if link, err := h.LinkByName(name); name != "" && err == nil {
			if err := h.LinkDel(link); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, s := range env.Subnets {
		if err := h.RouteDel(unreachableRoute(s)); err != nil {
			t.Fatal(err)
		}
	}
	// Neither is the token by which the store knows this life of the node.
	for _, path := range []string{m.keys["subnetFile"].(string), m.keys["runDir"].(string)} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(m.dataDir(), bootFile), []byte("8d7bb9a6-0a0d-4fd3-9d5c-0d9cdc42cb55\n"), 0o644); err != nil {
		t.Fatal(err)
	}

	p := m.newPod(t)
	wantCode(t, m.add(t, p), codeNotReady, "ripstopd is not running")
	wantCode(t, m.status(t), codeNotReady, "ripstopd is not running")
	if err := host.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := host.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.status(t); err != nil {
		t.Errorf("STATUS: %s", describe(err))
	}
	if err := m.add(t, p); err != nil {
		t.Fatal(describe(err))
	}
	if got := m.allocated(t); len(got) != 2 || !env.Subnets[0].Contains(got[0]) {
		t.Errorf("allocated are %v, want the two of the only pod, in %s", got, env.Subnets)
	}
	reach(t, l, p, far, env.MTU)
	for _, q := range old { // The runtime may only learn of their end now.
		m.del(t, q)
	}
	reach(t, l, p, far, env.MTU)
}

// refuses waits until ADD is refused with what a text matches: a daemon answers
// a moment after its start, and knows only then what it waits for.
func refuses(t *testing.T, m *machine, text string) {
	t.Helper()
	p, want := m.newPod(t), regexp.MustCompile(text)
	for end := time.Now().Add(talkLimit); ; time.Sleep(20 * time.Millisecond) {
		err := m.add(t, p)
		wantCode(t, err, codeNotReady)
		if want.MatchString(err.Error()) {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("ADD says %q, which does not match %q", err, text)
		}
	}
	if err := m.status(t); err == nil || !want.MatchString(err.Error()) {
		t.Errorf("STATUS says %q, which does not match %q", err, text)
	}
}

// since is how a daemon tells since when it waits.
const since = ` since 20\d\d-\d\d-\d\dT\S+: `

// While etcd does not answer at a node's first start, ADD says what the daemon
// waits for, since when, and why.
func TestHostWithoutStore(t *testing.T) {
	l, machines := startHosts(t, lab.IPv4, ptp)
	host, m := l.Hosts[0], machines[0]
	if _, _, err := host.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{m.keys["subnetFile"].(string), filepath.Join(host.Dir, "state")} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Etcd.Kill(); err != nil {
		t.Fatal(err)
	}
	refuses(t, m, "ripstopd is not running")
	if err := host.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	refuses(t, m, "ripstopd runs, but started failed: waits for .*"+since+".*connection refused")
}

// Where all subnets are held, ADD says so and by whom.
func TestHostWithoutSubnet(t *testing.T) {
	const onlyOne = `{"Network": "10.5.0.0/16", "SubnetLen": 24, "SubnetMin": "10.5.7.0", "SubnetMax": "10.5.7.0", "Backend": {"Type": "vxlan"}}`
	l, machines := startLab(t, lab.Options{Nodes: 2, Mode: lab.IPv4, NoDaemons: true, Config: onlyOne}, ptp)
	first, second := l.Hosts[0], l.Hosts[1]
	if err := first.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := first.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	machines[0].mustAdd(t)
	if err := second.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	refuses(t, machines[1], "ripstopd runs, but started failed: waits for lease"+since+"no free IPv4 subnet: .*"+first.Name)
	if got := machines[1].allocated(t); len(got) > 0 {
		t.Errorf("refused ADDs have allocated %v", got)
	}
}
