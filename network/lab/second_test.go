package lab

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/status"
)

// TestSecondDaemonIsRefused: a second daemon in one network namespace ends with an error
// that names the first, whatever folders it has, and touches nothing. One that only waits
// keeps the first from no start.
func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 1, Mode: Dual})
	h := l.Hosts[0]
	before, ear := mustPicture(t, h), listen(t, h)
	dir := t.TempDir()
	args := append(slices.Clone(h.daemon.cmd.Args[1:]), "--node-name=second",
		"--run-dir="+filepath.Join(dir, "run"), "--state-dir="+filepath.Join(dir, "state"), "--subnet-file="+filepath.Join(dir, "subnet.env"))
	out, err := run(t, h, h.daemon.cmd.Path, args...)
	want := fmt.Sprintf("another ripstopd (process %d) runs with %s: stop it", h.DaemonPID(), filepath.Join(h.Dir, "run"))
	if err == nil || !strings.Contains(out, want) {
		t.Errorf("it ends with %v and does not say %q:\n%s", err, want, out)
	}
	if heard := ear.heard(t); len(heard) != 0 || !looksLike(h, before) {
		t.Errorf("the kernel announced %d changes: %v", len(heard), heard)
	}

	idle := exec.Command(h.daemon.cmd.Path, append(args, "--etcd-prefix=/nothing/here")...)
	if err := h.Namespace.Start(idle); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = idle.Process.Kill(), idle.Wait() }()
	eventually(t, talkLimit, "the idle one lives", func() bool {
		_, err := os.Stat(filepath.Join(dir, "run", status.SocketName)) // It is announced before.
		return err == nil
	})
	if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Errorf("beside one that only waits: %v", err)
	}
	conn, err := net.Dial("unix", filepath.Join(dir, "run", status.SocketName))
	if err != nil {
		t.Fatalf("the idle one has ended: %v", err)
	}
	_ = conn.Close()
}
