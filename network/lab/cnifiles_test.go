package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/cnifiles"
)

// A daemon puts CNI plugin and list in place once its node is ready, and not while it
// waits for its store; a stop takes neither away.
func TestCNIFilesComeWithReadiness(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	daemon, plugin := filepath.Join(dir, "ripstopd"), filepath.Join(dir, cnifiles.PluginName)
	if err := os.Link(daemonPath, daemon); err != nil {
		if out, err := exec.CommandContext(t.Context(), "cp", daemonPath, daemon).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.WriteFile(plugin, []byte("plugin"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf, bin := filepath.Join(dir, "net.d"), filepath.Join(dir, "bin")
	l := startLab(t, Options{Nodes: 1, NoDaemons: true, Daemon: daemon, DaemonArgs: []string{"--cni-conf-dir=" + conf, "--cni-bin-dir=" + bin}})
	h := l.Hosts[0]
	h.DaemonArgs = []string{"--etcd-prefix=/nothing/here"}
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	probeOf(t, h).ready(503, "network config")
	for _, folder := range []string{conf, bin} {
		if _, err := os.Stat(folder); err == nil {
			t.Errorf("%s is there before the node is ready", folder)
		}
	}
	h.DaemonArgs = nil
	if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(conf, cnifiles.ListName)
	eventually(t, talkLimit, "the list is there", func() bool {
		_, err := os.Stat(list)
		return err == nil
	})
	if text, err := os.ReadFile(filepath.Join(bin, cnifiles.PluginName)); err != nil || string(text) != "plugin" {
		t.Errorf("the list is there before the plugin: %v", err)
	}
	if _, _, err := h.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if ours, err := cnifiles.Ours(list); err != nil || !ours {
		t.Errorf("after a stop: %v", err)
	}
}
