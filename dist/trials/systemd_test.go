//go:build runtime

package trials

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/lab"
)

// cleanRoot is a root filesystem of Debian's as debootstrap makes it, with systemd and
// what a newcomer finds on a machine. TRIAL_ROOT names one that is there already.
func cleanRoot(t *testing.T) string {
	t.Helper()
	if root := os.Getenv("TRIAL_ROOT"); root != "" {
		return root
	}
	root := filepath.Join(t.TempDir(), "root")
	// With mounts of its own: debootstrap leaves /proc mounted where it is interrupted.
	run(t, "unshare", "--mount", "--propagation=private", "debootstrap", "--variant=minbase",
		"--include=systemd-sysv,iproute2,iputils-ping", "bookworm", root, debianMirror())
	return root
}

func debianMirror() string {
	if mirror := os.Getenv("DEBIAN_MIRROR"); mirror != "" {
		return mirror
	}
	return "http://deb.debian.org/debian"
}

// machine is a host of the lab on which systemd is the first process.
type machine struct {
	host *lab.Host
	pid  int
}

// boot boots a machine in a clean root of its own, whose changes end with it.
func boot(t *testing.T, h *lab.Host, group, root, packages string) *machine {
	t.Helper()
	// A control group of its own: without it systemd-nspawn makes its groups where it is,
	// in those of the machine that the test runs on.
	const script = `
group=$1 root=$2 name=$3 packages=$4
for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
	if [ -e $hierarchy/cgroup.procs ]; then mkdir -p $hierarchy$group/$name; echo $$ > $hierarchy$group/$name/cgroup.procs; fi
done
touch /run/net && mount --bind /proc/self/ns/net /run/net
mkdir /run/upper /run/work /run/root
mount -t overlay -o lowerdir=$root,upperdir=/run/upper,workdir=/run/work overlay /run/root
echo $name > /run/root/etc/hostname
echo $name | md5sum | cut -c 1-32 > /run/root/etc/machine-id # One without has a first boot, which asks things.
cp $packages/*.deb /run/root/root/
# The network is the machine's own, of which systemd-nspawn is not told.
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
exec systemd-nspawn --capability=CAP_NET_ADMIN --quiet --register=no --keep-unit --directory=/run/root --machine=$name --hostname=$name \
	--network-namespace-path=/run/net --resolv-conf=off --console=pipe --boot`
	e := startEnclosed(t, h, "sh", "-ec", script, "sh", group, root, h.Name, packages)
	m := &machine{host: h}
	eventually(t, 30*time.Second, h.Name+" has a first process", func() bool {
		m.pid = descendant(e.cmd.Process.Pid, "systemd")
		return m.pid != 0
	})
	eventually(t, 2*time.Minute, h.Name+" is booted", func() bool {
		out, _ := m.command(t.Context(), "systemctl is-system-running").CombinedOutput()
		return strings.TrimSpace(string(out)) == "running"
	})
	t.Cleanup(func() {
		if t.Failed() {
			out, err := m.command(context.Background(), "journalctl --no-pager --lines=60; systemctl status --no-pager ripstopd").CombinedOutput()
			t.Logf("journal of %s: %v\n%s", h.Name, err, out)
		}
	})
	return m
}

// descendant finds a process below another by its name, 0 if there is none.
func descendant(pid int, name string) int {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return 0
	}
	for _, word := range strings.Fields(string(children)) {
		child, err := strconv.Atoi(word)
		if err != nil {
			continue
		}
		if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", child)); err == nil && strings.TrimSpace(string(comm)) == name {
			return child
		}
		if found := descendant(child, name); found != 0 {
			return found
		}
	}
	return 0
}

// command is a script that runs on the machine, in root's home.
func (m *machine) command(ctx context.Context, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(m.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root",
		"/bin/sh", "-ec", "cd /root\n"+script)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	return cmd
}

func (m *machine) do(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Second)
	defer cancel()
	out, err := m.command(ctx, script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %s: %v\n%s", m.host.Name, script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// property is one of the unit's.
func (m *machine) property(t *testing.T, name string) string {
	t.Helper()
	return m.do(t, "systemctl show --value --property="+name+" ripstopd")
}

// pageBlocks are the blocks of commands of getting-started.md, in order.
func pageBlocks(t *testing.T) []string {
	t.Helper()
	text, err := os.ReadFile("../../Documentation/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

// Three machines, each a clean Debian with systemd as its first process, are set up by
// the commands of getting-started.md as they stand there, in less than ten minutes; the
// unit then keeps what the page says of it.
func TestSystemd(t *testing.T) {
	root, group := cleanRoot(t), controlGroup(t)
	packages := t.TempDir()
	run(t, "make", "-C", "../..", "packages", "PACKAGES="+packages, "PACKAGE_VERSION=9.8.7")
	l := startLab(t, lab.Options{Nodes: 3, Mode: lab.IPv4, NoPods: true, Config: "{}"})
	began := time.Now()
	var machines []*machine
	for _, h := range l.Hosts {
		machines = append(machines, boot(t, h, group, root, packages))
	}
	t.Logf("three machines booted in %s", time.Since(began).Round(time.Second))
	began = time.Now()
	here := strings.NewReplacer("http://10.0.0.1:2379", l.EtcdURL())
	blocks := pageBlocks(t)
	if len(blocks) < 5 {
		t.Fatalf("the page has %d blocks of commands", len(blocks))
	}
	// The first block was run above.
	install, network, daemon, pods := blocks[1], here.Replace(blocks[2]), here.Replace(blocks[3]), blocks[4]
	for _, m := range machines {
		m.do(t, install)
	}
	machines[0].do(t, network)
	for _, m := range machines {
		m.do(t, daemon)
		if state := m.do(t, "systemctl is-active ripstopd"); state != "active" {
			t.Errorf("%s: once systemctl has returned, the unit is %s", m.host.Name, state)
		}
	}
	for _, m := range machines {
		if said := m.do(t, "ripstop status"); !regexp.MustCompile(`(?m)^Status +ready$`).MatchString(said) {
			t.Errorf("%s: ripstop status says\n%s", m.host.Name, said)
		}
	}
	ping := regexp.MustCompile(`(?m)^ip netns exec pod ping .*\n`)
	if !ping.MatchString(pods) {
		t.Fatalf("the block of the pods ends otherwise:\n%s", pods)
	}
	var at []netip.Addr
	for _, m := range machines {
		m.do(t, ping.ReplaceAllString(pods, ""))
		at = append(at, netip.MustParseAddr(m.do(t, ". /run/flannel/subnet.env; echo ${FLANNEL_SUBNET%.*}.9")))
	}
	for _, m := range machines {
		for _, to := range at {
			m.do(t, "ip netns exec pod ping -c 1 -W 2 "+to.String())
		}
	}
	t.Logf("from the package to pods that talk in %s", time.Since(began).Round(time.Second))

	checkUnit(t, machines[0])
	checkRestarts(t, machines[0], machines[1], at)
	checkOrder(t, machines[2])
	checkRemoval(t, machines[0], here.Replace(lastCommands(t)))
}

// checkUnit holds what systemd makes of the unit to what the page says.
func checkUnit(t *testing.T, m *machine) {
	t.Helper()
	for name, want := range map[string]string{"Type": "notify", "NRestarts": "0", "WatchdogUSec": "30s", "Result": "success"} {
		if got := m.property(t, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	if text := m.property(t, "StatusText"); !strings.Contains(text, "ready") {
		t.Errorf("the unit's status is %q", text)
	}
	// A daemon that does not feed the watchdog is ended. The feed shows in the timestamp.
	fed := func() string { return m.property(t, "WatchdogTimestampMonotonic") }
	first := fed()
	eventually(t, 20*time.Second, "the watchdog is fed", func() bool { return fed() != first })

	pid := m.property(t, "MainPID")
	for key, want := range map[string]string{
		"NoNewPrivs": "1", "Seccomp": "2",
		"CapBnd": "0000000000003000", "CapEff": "0000000000003000", // CAP_NET_ADMIN and CAP_NET_RAW.
	} {
		if got := m.do(t, "sed -n 's/^"+key+":[[:space:]]*//p' /proc/"+pid+"/status"); got != want {
			t.Errorf("%s of the daemon is %s, want %s", key, got, want)
		}
	}
	// What the daemon sees is tried from outside in its mounts, as root of the machine.
	may := func(path string) bool {
		return m.command(t.Context(), "nsenter --target "+pid+" --mount sh -c 'echo > "+path+"/trial && rm "+path+"/trial'").Run() == nil
	}
	for path, want := range map[string]bool{
		"/run/ripstop": true, "/run/flannel": true, "/var/lib/ripstop": true, "/etc/cni/net.d": true, "/opt/cni/bin": true,
		"/etc": false, "/etc/ripstop": false, "/usr/bin": false, "/var/lib": false, "/run": false, "/root": false, "/home": false, "/proc/sys/kernel": false,
	} {
		if got := may(path); got != want {
			t.Errorf("the daemon may write to %s: %t, want %t", path, got, want)
		}
	}
	if got := m.do(t, "nsenter --target "+pid+" --mount sh -c 'cat /proc/sys/net/ipv4/ip_forward > /tmp/is && cat /tmp/is > /proc/sys/net/ipv4/ip_forward && rm /tmp/is && echo may'"); got != "may" {
		t.Errorf("the daemon may not write to /proc/sys/net: %s", got)
	}
	out := m.do(t, "systemd-analyze security --no-pager ripstopd | tail -1")
	t.Log(out)
}

// checkRestarts restarts, stops and kills one machine's daemon under pings from another's
// pod.
func checkRestarts(t *testing.T, m, other *machine, at []netip.Addr) {
	t.Helper()
	pod, err := lab.OpenNamespace("pod", fmt.Sprintf("/proc/%d/root/run/netns/pod", other.pid))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = pod.Close() }()
	pinger, err := lab.StartPinger(t.Context(), pod, at[1], at[0], 100, lab.PingOptions{})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	m.do(t, "systemctl restart ripstopd")
	restart := time.Since(began)
	restarted := func(was, what string) {
		t.Helper()
		eventually(t, time.Minute, what, func() bool {
			pid := m.property(t, "MainPID")
			return pid != was && pid != "0" && strings.TrimSpace(m.do(t, "systemctl is-active ripstopd || true")) == "active"
		})
	}
	before := m.property(t, "MainPID")
	m.do(t, "dpkg -i ripstop_*.deb") // An upgrade restarts, too, in the background.
	restarted(before, "an upgraded daemon is started again")
	before = m.property(t, "MainPID")
	m.do(t, "kill -KILL "+before)
	restarted(before, "a killed daemon is started again")
	began = time.Now()
	m.do(t, "systemctl stop ripstopd")
	stop := time.Since(began)
	if state := m.do(t, "systemctl is-active ripstopd || true"); state != "inactive" {
		t.Errorf("a stopped unit is %s", state)
	}
	m.do(t, "systemctl start ripstopd")
	report := pinger.Stop()
	t.Logf("restart %s, stop %s; %s", restart.Round(time.Millisecond), stop.Round(time.Millisecond), report)
	if report.Lost > 0 || report.Sent < 100 {
		t.Errorf("restart, upgrade, kill and stop lost pings: %s", report)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/ripstop", m.pid)); err != nil {
		t.Errorf("the run folder did not outlive a stop: %v", err)
	}

	// A hung daemon is ended by the watchdog; what hangs here is stopped by a signal.
	m.do(t, "mkdir -p /run/systemd/system/ripstopd.service.d && printf '[Service]\nWatchdogSec=3s\n' > /run/systemd/system/ripstopd.service.d/trial.conf && systemctl daemon-reload && systemctl restart ripstopd")
	hung := m.property(t, "MainPID")
	m.do(t, "kill -STOP "+hung)
	restarted(hung, "the watchdog has a daemon that hangs started again")
	m.do(t, "rm -r /run/systemd/system/ripstopd.service.d && systemctl daemon-reload && systemctl restart ripstopd")

	// A flag that is wrong ends it for good.
	m.do(t, "cp /etc/ripstop/ripstopd.env /root/env && echo RIPSTOPD_GUARD=perhaps >> /etc/ripstop/ripstopd.env && ! systemctl restart ripstopd")
	if got := m.property(t, "ExecMainStatus") + " " + m.property(t, "SubState"); got != "64 failed" {
		t.Errorf("with a flag that is wrong the unit is %s, want 64 failed", got)
	}
	m.do(t, "cp /root/env /etc/ripstop/ripstopd.env && systemctl restart ripstopd")
}

// checkOrder starts the daemon and something that gives containers addresses at once,
// as a boot does: the second starts when the first is ready.
func checkOrder(t *testing.T, m *machine) {
	t.Helper()
	m.do(t, `systemctl stop ripstopd
printf '[Unit]\nDescription=stands for Docker\n[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c "systemctl is-active ripstopd > /run/seen || true"\n[Install]\nWantedBy=multi-user.target\n' > /etc/systemd/system/docker.service
printf '[Unit]\nWants=docker.service ripstopd.service\n' > /run/systemd/system/trial.target
systemctl daemon-reload
systemctl start trial.target
systemctl start docker`)
	if seen := m.do(t, "cat /run/seen"); seen != "active" {
		t.Errorf("when Docker was started, ripstopd was %s", seen)
	}
	m.do(t, "systemctl disable --now docker && rm /etc/systemd/system/docker.service && systemctl daemon-reload")
}

// lastCommands are those by which the page takes a machine out.
func lastCommands(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../Documentation/getting-started.md")
	if err != nil {
		t.Fatal(err)
	}
	_, last, found := strings.Cut(string(text), "To take a machine out:")
	if !found {
		t.Fatal("the page does not say how to take a machine out")
	}
	var commands []string
	for _, m := range regexp.MustCompile("(?s)`(.*?)`").FindAllStringSubmatch(last, -1) {
		commands = append(commands, strings.ReplaceAll(m[1], "\n", " "))
	}
	return strings.ReplaceAll(strings.Join(commands, "\n"), "--etcd-endpoints …", "--etcd-endpoints http://10.0.0.1:2379")
}

// checkRemoval takes a machine out: nothing of the daemon's is left in the kernel or in
// the store, and nothing of the package's on the disk.
func checkRemoval(t *testing.T, m *machine, commands string) {
	t.Helper()
	m.do(t, commands)
	m.do(t, "dpkg --purge ripstop")
	if left := m.do(t, "ip -o link show type vxlan; ip route show proto 82; ip nexthop show proto 82; ls -d /usr/bin/ripstop* /etc/ripstop /run/flannel/subnet.env 2>/dev/null || true"); left != "" {
		t.Errorf("left behind:\n%s", left)
	}
	if state := m.do(t, "systemctl is-active ripstopd || true"); state != "inactive" {
		t.Errorf("the unit that was removed is %s", state)
	}
	if failed := m.do(t, "systemctl --failed --quiet --plain"); failed != "" {
		t.Errorf("failed units: %s", failed)
	}
}
