package lab

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// vtepMACs are those of a host's VXLAN devices, by name.
func vtepMACs(t *testing.T, h *Host) map[string]string {
	t.Helper()
	macs := map[string]string{}
	err := vxlans(h, func(_ *netlink.Handle, v *netlink.Vxlan) error {
		macs[v.Name] = net.HardwareAddr(v.HardwareAddr).String()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return macs
}

// boot does to a host what a crash and a boot do: of the daemon's nothing is left
// but its folder for what outlives them. The daemon is started, and not waited for.
func boot(t *testing.T, h *Host) {
	t.Helper()
	if _, _, err := h.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	err := errors.Join(
		os.RemoveAll(filepath.Join(h.Dir, "run")), os.Remove(h.SubnetFile()),
		vxlans(h, func(n *netlink.Handle, v *netlink.Vxlan) error { return n.LinkDel(v) }),
	)
	if err == nil {
		err = h.StartDaemon()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestRebootIsShort: the store still knows the host's earlier life, and gives it
// its full time again when it is restarted meanwhile. The overlay comes up at once,
// and the daemon is not refused.
func TestRebootIsShort(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	h, store := l.Hosts[0], openStore(t, l)
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	macs, key := vtepMACs(t, h), Prefix+"/subnets/"+env.Subnets.Key()
	before, err := store.Get(t.Context(), key)
	if err != nil || len(before.Kvs) != 1 {
		t.Fatalf("record: %v, %v", before, err)
	}
	unchanged := func() {
		t.Helper()
		now, err := store.Get(t.Context(), key)
		if err != nil || len(now.Kvs) != 1 || now.Kvs[0].ModRevision != before.Kvs[0].ModRevision {
			t.Errorf("the record is %v (%v), was %v", now, err, before)
		}
	}
	eventually(t, talkLimit, "the lease is saved", func() bool { return saved(h) })

	began := time.Now()
	boot(t, h)
	m := everyPairTalks(t, l, talkLimit)
	t.Logf("all pods talk %s after the crash", time.Since(began).Round(time.Millisecond))
	// Its earlier life is known for a minute. Beside other tests a start by itself takes seconds.
	limit := 8 * time.Second
	if os.Getenv(faultsEnv) != "" {
		limit = 3 * time.Second
	}
	if took := time.Since(began); took > limit {
		t.Errorf("it took %s, of which %s until the last pair talked", took, m.Took)
	}
	if err := h.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now, err := h.Env(); err != nil || now != env {
		t.Errorf("subnet file says %v (%v), before it said %v", now, err, env)
	}
	for name, mac := range vtepMACs(t, h) {
		if mac != macs[name] {
			t.Errorf("%s has %s, had %s", name, mac, macs[name])
		}
	}
	unchanged()

	presence := func() clientv3.LeaseID {
		got, err := store.Get(t.Context(), Prefix+"/ripstop/nodes/"+h.Name)
		if err != nil || len(got.Kvs) != 1 {
			return clientv3.NoLease
		}
		return clientv3.LeaseID(got.Kvs[0].Lease)
	}
	left := func() int64 {
		ttl, err := store.TimeToLive(t.Context(), presence())
		if err != nil {
			return 0
		}
		return ttl.TTL
	}
	aged := left()
	eventually(t, 40*time.Second, "the earlier life has aged", func() bool { aged = left(); return aged > 0 && aged < 46 })
	if err := l.Etcd.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "it is given its time again", func() bool { return left() > aged })
	time.Sleep(6 * time.Second) // The daemon looks at it every two.
	if log := h.DaemonLog(); !h.Running() || strings.Contains(log, `"msg":"lease held"`) {
		t.Errorf("running %t:\n%s", h.Running(), log)
	}
	unchanged()
	if _, err := store.Revoke(t.Context(), presence()); err != nil { // A minute later.
		t.Fatal(err)
	}
	eventually(t, talkLimit, "the lease is taken up", func() bool { return strings.Contains(h.DaemonLog(), `"msg":"lease held"`) })
	unchanged()
	everyPairTalks(t, l, talkLimit)
}

// startClone starts a daemon on a host that says it is another.
func startClone(t *testing.T, h *Host, name string, more ...string) {
	t.Helper()
	args := append([]string{
		"--etcd-endpoints=" + h.lab.EtcdURL(), "--etcd-prefix=" + Prefix, "--iface=" + hostInterface, "--node-name=" + name,
		"--run-dir=" + filepath.Join(h.Dir, "run"), "--state-dir=" + filepath.Join(h.Dir, "state"), "--subnet-file=" + h.SubnetFile(),
	}, more...)
	var err error
	if h.daemon, err = startDaemon(h.Namespace, h.LogFile(), false, h.lab.opts.Daemon, args...); err != nil {
		t.Fatal(err)
	}
}

// TestClonesAreRefused: machines with the name, the address or all of a host that
// lives. None of them is ready for good, each is told whose place it is, and the
// first's pods lose nothing.
func TestClonesAreRefused(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	first, store := l.Hosts[0], openStore(t, l)
	env, err := first.Env()
	if err != nil {
		t.Fatal(err)
	}
	record := func() string {
		got, err := store.Get(t.Context(), Prefix+"/subnets/"+env.Subnets.Key())
		if err != nil || len(got.Kvs) != 1 {
			t.Fatalf("record: %v, %v", got, err)
		}
		return got.Kvs[0].String()
	}
	before := record()
	// One address at two machines would harm the first by itself, so the clones
	// say that they have it, and have another.
	same := []string{"--public-ip=" + first.Address(subnet.V4).String(), "--public-ipv6=" + first.Address(subnet.V6).String()}
	clones := []struct {
		what, name string
		args       []string
		saved      bool
		host       *Host
	}{
		{what: "same name, another address", name: first.Name},
		{what: "another name, same address", name: "clone", args: same},
		{what: "same name and address", name: first.Name, args: same},
		{what: "all the same", name: first.Name, args: same, saved: true},
	}
	eventually(t, talkLimit, "the first host has saved its lease", func() bool { return saved(first) })
	flows := startFlows(t, l)
	time.Sleep(calm)
	began := time.Now()
	for i := range clones {
		c := &clones[i]
		if c.host, err = l.plugHost(t.Context(), len(l.Hosts)+1); err != nil {
			t.Fatal(err)
		}
		if !c.saved {
			startClone(t, c.host, c.name, c.args...)
		}
	}
	ended := func() bool { return !slices.ContainsFunc(l.Hosts[3:], (*Host).Running) }
	eventually(t, time.Minute, "clones with nothing saved have ended", ended)
	// While its files are copied it writes none, and until the clone that has them is ready
	// it gives no sign of life, by which that one would end.
	pid := first.DaemonPID()
	if err := standStill(pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = goOn(pid) })
	for _, c := range clones {
		if !c.saved {
			continue
		}
		if err := os.CopyFS(filepath.Join(c.host.Dir, "state"), os.DirFS(filepath.Join(first.Dir, "state"))); err != nil {
			t.Fatal(err)
		}
		startClone(t, c.host, c.name, c.args...)
		// It has less time than the first is known as living without a sign.
		eventually(t, 40*time.Second, c.what+": ready", func() bool { return strings.Contains(c.host.DaemonLog(), `"msg":"ready"`) })
	}
	if err := goOn(pid); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "all clones have ended", ended)
	for _, c := range clones {
		state, log := c.host.daemon.cmd.ProcessState, c.host.DaemonLog()
		lines := strings.Split(strings.TrimSpace(log), "\n")
		last := lines[len(lines)-1]
		t.Logf("%s: %s", c.what, last)
		if state.ExitCode() != 1 || !strings.Contains(last, "node1 ("+first.Address(subnet.V4).String()) || !strings.Contains(last, "lives") {
			t.Errorf("%s: %s:\n%s", c.what, state, log)
		}
		if ready := strings.Contains(log, `"msg":"ready"`); ready != c.saved {
			t.Errorf("%s: ready %t:\n%s", c.what, ready, log)
		}
	}
	t.Logf("all have ended %s after their start", time.Since(began).Round(time.Millisecond))
	time.Sleep(calm)
	stopFlows(t, l, flows, nobody)
	if after := record(); after != before {
		t.Errorf("the record is %s, was %s", after, before)
	}
	if log := first.DaemonLog(); strings.Contains(log, `"level":"error"`) || !first.Running() {
		t.Errorf("running %t:\n%s", first.Running(), log)
	}
}
