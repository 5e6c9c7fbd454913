package main

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

// startHosts starts a lab of hosts with real daemons and no pods, and a runtime
// on each.
func startHosts(t *testing.T, families lab.Mode, mode string, path ...string) (*lab.Lab, []*machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := lab.Start(ctx, lab.Options{Nodes: 3, Mode: families, NoPods: true, Dir: t.TempDir(), Daemon: filepath.Join(programs, "ripstopd")})
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
	// The token is left: without it the store takes the node for another until a
	// minute after its last sign is over, about as long as a machine takes to boot.
	for _, path := range []string{m.keys["subnetFile"].(string), filepath.Join(m.keys["runDir"].(string), lockName)} {
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

// While etcd does not answer at a node's first start, ADD says that the daemon
// runs.
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
	if err := host.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(talkLimit); !holdsLock(filepath.Join(host.Dir, "run", lockName)); {
		if time.Now().After(end) {
			t.Fatal("the daemon does not take its lock")
		}
		time.Sleep(10 * time.Millisecond)
	}
	wantCode(t, m.add(t, m.newPod(t)), codeNotReady, "ripstopd runs")
}
