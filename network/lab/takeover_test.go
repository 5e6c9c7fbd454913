package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// TestTakeover: nodes that flannel served are taken over one after another under a
// ping between all of them, and lose nothing: neither while half of them is flannel's,
// nor when daemons are restarted or killed on them.
func TestTakeover(t *testing.T) {
	for name, opts := range map[string]Options{
		"ipv4": {Mode: IPv4}, "ipv6": {Mode: IPv6}, "dual": {Mode: Dual},
		"dual, direct":  {Mode: Dual, Config: strings.Replace(UsualConfig(Dual), `"vxlan"`, `"vxlan", "DirectRouting": true`, 1)},
		"ipv4, host-gw": {Mode: IPv4, Config: strings.Replace(UsualConfig(IPv4), "vxlan", "host-gw", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts.Nodes, opts.NoDaemons = 3, true
			l := startLab(t, opts)
			all := layOutFlannel(t, l, inNFTables)
			pings := pingAll(t, l)
			for _, f := range all {
				time.Sleep(calm)
				if err := f.host.StartDaemon(); err != nil {
					t.Fatal(err)
				}
				if err := f.host.WaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
				f.isOurs(t, all)
			}
			for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
				time.Sleep(calm)
				before := mustPicture(t, l.Hosts[0])
				if err := l.Hosts[0].RestartDaemon(t.Context(), sig); err != nil {
					t.Fatal(err)
				}
				if after := mustPicture(t, l.Hosts[0]); !slices.Equal(before, after) {
					t.Errorf("after %s the kernel has\n%s\nhad\n%s", sig, strings.Join(after, "\n"), strings.Join(before, "\n"))
				}
			}
			time.Sleep(calm)
			pings.lostNone(t)
			for _, f := range all {
				f.isOurs(t, all)
			}
		})
	}
}

// takenOver is a lab whose nodes were flannel's.
func takenOver(t *testing.T, opts Options) (*Lab, []flannel) {
	t.Helper()
	opts.NoDaemons = true
	l := startLab(t, opts)
	all := layOutFlannel(t, l, inNFTables)
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	if err := each(l.Hosts, func(h *Host) error { return h.WaitReady(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	return l, all
}

// allOurs takes over what is flannel's yet, and sees that nothing was lost.
func allOurs(t *testing.T, l *Lab, pings flows, all []flannel) {
	t.Helper()
	for _, h := range l.Hosts {
		if h.Running() {
			continue
		}
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := h.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(calm)
	pings.lostNone(t)
	for _, f := range all {
		f.isOurs(t, all)
	}
}

// TestTakeoverIsCutOff: a daemon that is killed again and again while it takes a node
// over loses no packet, and the next one goes on where it ended.
func TestTakeoverIsCutOff(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, NoDaemons: true})
	all := layOutFlannel(t, l, inNFTables)
	h := l.Hosts[0]
	pings := pingAll(t, l)
	// From the claim on, which is the first thing that others see of it.
	for _, after := range []time.Duration{0, 0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55} {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if _, ok := timeUntil(talkLimit, func() bool { return strings.Contains(h.DaemonLog(), `"msg":"lease held"`) }); !ok {
			t.Fatalf("no lease:\n%s", h.DaemonLog())
		}
		time.Sleep(after * time.Millisecond)
		if _, _, err := h.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := h.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	all[0].isOurs(t, all)
	allOurs(t, l, pings, all)
}

// TestLookAlikeIsNotTakenOver: a device that the node's record does not know, or that
// flannel's daemon serves yet, is named with the reason and left as it is; when the
// reason is gone the node comes up, and loses nothing.
func TestLookAlikeIsNotTakenOver(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: IPv4, NoDaemons: true})
	all := layOutFlannel(t, l, inNFTables)
	h, store := l.Hosts[0], openStore(t, l)
	pings := pingAll(t, l)
	before := append(mustPicture(t, h), all[0].left(t)...)
	untouched := func() {
		t.Helper()
		if after := append(mustPicture(t, h), all[0].left(t)...); !slices.Equal(before, after) {
			t.Errorf("the kernel has\n%s\nhad\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	}
	other := all[0]
	other.macs[subnet.V4][5] = 0x77
	if _, err := store.Put(t.Context(), other.key(), other.record()); err != nil {
		t.Fatal(err)
	}
	flanneld := pretendFlanneld(t, h)
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	saysInTime(t, h, "flannel.1 has VNI 1 on UDP port 8472, and is not taken over as flannel's, for its MAC is d6:95:53:00:00:00, that of this node's record 10.5.80.0/24 is d6:95:53:00:00:77")
	untouched()
	if _, err := store.Put(t.Context(), all[0].key(), all[0].record()); err != nil {
		t.Fatal(err)
	}
	saysInTime(t, h, fmt.Sprintf("flanneld (process %d) serves this host with flannel.1: stop it for good", flanneld.Process.Pid))
	untouched()
	if got, err := store.Get(t.Context(), all[0].key()); err != nil || string(got.Kvs[0].Value) != all[0].record() {
		t.Errorf("the record was changed: %v, %v", got, err)
	}
	_ = flanneld.Process.Kill()
	_ = flanneld.Wait()
	if err := h.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	all[0].isOurs(t, all)
	allOurs(t, l, pings, all)
}

// pretendFlanneld starts a process on a host that has the name of flannel's daemon, and
// does nothing.
func pretendFlanneld(t *testing.T, h *Host) *exec.Cmd {
	t.Helper()
	path := filepath.Join(t.TempDir(), "flanneld")
	sleep, err := exec.LookPath("sleep")
	if err == nil {
		err = os.Symlink(sleep, path)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "600")
	if err := h.Namespace.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// TestAdoptedDeviceDies: the new one has its name and MAC and is bound to nothing, also
// after a restart. After a reboot it has our own name; the MAC stays, and the record with
// it.
func TestAdoptedDeviceDies(t *testing.T) {
	t.Parallel()
	l, all := takenOver(t, Options{Nodes: 2, Mode: Dual})
	h, f := l.Hosts[0], all[0]
	lower := func(name string) (index int, mac string) {
		err := h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(name)
			if err == nil {
				index, mac = link.(*netlink.Vxlan).VtepDevIndex, link.Attrs().HardwareAddr.String()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return index, mac
	}
	remove := func(name string) {
		err := h.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(name)
			if err != nil {
				return err
			}
			return n.LinkDel(link)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, family := range l.Families() {
		if index, _ := lower(flannelNames[family]); index == 0 {
			t.Errorf("%s is not bound, so that the test is none", flannelNames[family])
		}
		remove(flannelNames[family])
	}
	everyPairTalks(t, l, talkLimit)
	f.isOurs(t, all)
	for range 2 {
		for _, family := range l.Families() {
			if index, mac := lower(flannelNames[family]); index != 0 || mac != f.macs[family].String() {
				t.Errorf("the new %s is bound to %d and has MAC %s", flannelNames[family], index, mac)
			}
		}
		before := mustPicture(t, h)
		if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if after := mustPicture(t, h); !slices.Equal(before, after) {
			t.Errorf("after a restart the kernel has\n%s\nhad\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	}
	if _, _, err := h.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, name := range flannelNames {
		remove(name)
	}
	peer := mustPicture(t, l.Hosts[1])
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := h.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	everyPairTalks(t, l, talkLimit)
	for family, name := range [...]string{"ripstop.1", "ripstop-v6.1"} {
		if index, mac := lower(name); index != 0 || mac != f.macs[family].String() {
			t.Errorf("after a reboot %s is bound to %d and has MAC %s", name, index, mac)
		}
	}
	if after := mustPicture(t, l.Hosts[1]); !slices.Equal(peer, after) {
		t.Errorf("a peer has\n%s\nhad\n%s", strings.Join(after, "\n"), strings.Join(peer, "\n"))
	}
}

// TestWayBackToFlannel: once flannel's daemon serves the node again, cleanup gives it its
// device and takes away what is ours alone, and not a packet is lost; without flannel's
// daemon the device goes.
func TestWayBackToFlannel(t *testing.T) {
	t.Parallel()
	l, all := takenOver(t, Options{Nodes: 2, Mode: Dual})
	h, f := l.Hosts[0], all[0]
	pings := pingAll(t, l)
	if _, _, err := h.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// What flanneld does at its start where its device is there.
	flanneld := pretendFlanneld(t, h)
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		for _, family := range l.Families() {
			link, err := n.LinkByName(flannelNames[family])
			if err != nil {
				return err
			}
			if err := all[1].enterOn(n, link, family); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	inNFTables(t, f)
	cleanUp(t, h)
	time.Sleep(calm)
	pings.lostNone(t)
	for _, line := range mustPicture(t, h) {
		if strings.HasPrefix(line, "nexthop ") || strings.HasPrefix(line, "route ") {
			t.Errorf("ours is left: %s", line)
		}
	}
	if left := f.left(t); len(left) != 2*2 { // For each family a table and a route.
		t.Errorf("flannel has %q", left)
	}
	if env, err := h.Env(); err != nil || env.Subnets != f.subnets {
		t.Errorf("subnet file: %v, %v", env, err)
	}
	// The other way round: forth again, and back without flannel's daemon.
	_ = flanneld.Process.Kill()
	_ = flanneld.Wait()
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := h.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.isOurs(t, all)
	if _, _, err := h.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cleanUp(t, h)
	if devices, err := h.Devices(); err != nil || devices != (subnet.PerFamily[string]{}) {
		t.Errorf("left are %v, %v", devices, err)
	}
	got, err := openStore(t, l).Get(t.Context(), f.key())
	if err != nil || got.Count != 1 {
		t.Errorf("its record, which flannel takes up: %v, %v", got, err)
	}
}

// cleanUp does on a host what "ripstop cleanup" does.
func cleanUp(t *testing.T, h *Host) {
	t.Helper()
	ripstop := filepath.Join(t.TempDir(), "ripstop")
	if out, err := exec.Command("go", "build", "-o", ripstop, "github.com/ripstop-net/ripstop/cmd/ripstop").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var said bytes.Buffer
	cmd := exec.Command(ripstop, "cleanup", "--run-dir="+filepath.Join(h.Dir, "run"), "--state-dir="+filepath.Join(h.Dir, "state"), "--subnet-file="+h.SubnetFile())
	cmd.Stdout, cmd.Stderr = &said, &said
	err := h.Namespace.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	t.Logf("ripstop cleanup on %s:\n%s", h.Name, &said)
	if err != nil {
		t.Fatal(err)
	}
}
