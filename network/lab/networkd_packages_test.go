//go:build packages

package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startNetworkd starts systemd-networkd on a host with files of its own, which configure
// eth0 and every VXLAN device that none of the given files takes out. It returns its log, once it has
// gone through the interfaces, and what ends it.
func startNetworkd(t *testing.T, h *Host, files ...string) (log func() string, stop func()) {
	t.Helper()
	// A /sys that cannot be written to tells it that no udev works here.
	const script = `mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /etc/systemd && mount -t sysfs -o ro sysfs /sys
mkdir -p /run/systemd/netif /run/systemd/network /run/systemd/networkd.conf.d
chown systemd-network:systemd-network /run/systemd/netif
printf '[Match]\nName=eth0\n[Network]\nLinkLocalAddressing=no\nKeepConfiguration=yes\n' > /run/systemd/network/50-eth0.network
printf '[Match]\nName=*\nKind=vxlan\n[Network]\nLinkLocalAddressing=no\nAddress=192.0.2.9/32\n' > /run/systemd/network/90-all.network
for f; do
	case $f in *.network) cp "$f" /run/systemd/network/;; *) cp "$f" /run/systemd/networkd.conf.d/;; esac
done
SYSTEMD_LOG_TARGET=console exec /lib/systemd/systemd-networkd`
	path := filepath.Join(t.TempDir(), "log")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command("unshare", append([]string{"--mount", "--propagation=private", "sh", "-ec", script, "sh"}, files...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := h.Namespace.Start(cmd); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Signal(unix.SIGTERM)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	log = func() string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if _, ok := timeUntil(20*time.Second, func() bool {
		return strings.Contains(log(), "Enumeration completed") && strings.Contains(log(), "eth0: Configuring with")
	}); !ok {
		t.Fatalf("systemd-networkd does not come up:\n%s", log())
	}
	return log, stop
}

// systemd-networkd with a file that is for the overlay's devices, too, as one for all
// interfaces is, leaves them alone where our drop-ins are, at its restart too; without
// them it takes them for its own.
func TestRealNetworkdLeavesDevicesAlone(t *testing.T) {
	l := startLab(t, Options{Nodes: 2, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	h := l.Hosts[0]
	before := mustPicture(t, h)
	for range 2 {
		log, stop := startNetworkd(t, h, "../../dist/systemd/network/10-ripstop.network", "../../dist/systemd/networkd.conf.d/ripstop.conf")
		time.Sleep(time.Second) // What it does not do has no end.
		stop()
		if text := log(); strings.Contains(text, "ripstop.1: Configuring") || strings.Contains(text, "ripstop-v6.1: Configuring") {
			t.Errorf("it configures a device of ours:\n%s", text)
		}
		if after := mustPicture(t, h); !slices.Equal(before, after) {
			t.Errorf("the kernel has\n%s\nhad\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
	}
	everyPairTalks(t, l, talkLimit)

	log, _ := startNetworkd(t, h)
	eventually(t, 20*time.Second, "without the drop-in it configures the device", func() bool { return strings.Contains(log(), "ripstop.1: Configuring with") })
}
