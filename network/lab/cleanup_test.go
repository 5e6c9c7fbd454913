package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// buildTool builds ripstop.
func buildTool(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ripstop")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, "github.com/ripstop-net/ripstop/cmd/ripstop").CombinedOutput(); err != nil {
		t.Fatalf("build ripstop: %v\n%s", err, out)
	}
	return path
}

// run runs a program on the host, to its end.
func run(t *testing.T, h *Host, path string, args ...string) (out string, err error) {
	t.Helper()
	var text bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdout, cmd.Stderr = &text, &text
	if err := h.Namespace.Start(cmd); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	return text.String(), err
}

// foreignRules are tables of somebody else's, one of them of the kind that iptables has.
func foreignRules(t *testing.T, h *Host) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(h.Namespace.FD()))
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range []*nftables.Table{{Name: "filter", Family: nftables.TableFamilyIPv4}, {Name: "ripstop-not", Family: nftables.TableFamilyINet}, {Name: "ripstop", Family: nftables.TableFamilyIPv4}} {
		c.AddTable(table)
		chain := c.AddChain(&nftables.Chain{Table: table, Name: "FORWARD", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
		for mark := range byte(3) {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, UserData: []byte("of an operator"), Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}, &expr.Cmp{Register: 1, Data: []byte{mark, 7, 7, 7}}, &expr.Verdict{Kind: expr.VerdictAccept},
			}})
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestCleanup: ripstop cleanup itself, on a host that is full of others' things, beside
// a host whose daemon runs. While this host's daemon runs it does nothing, whatever
// --run-dir it is given; after a crash it takes away what the daemon has made, down to
// the byte, and the lease if it is told to.
func TestCleanup(t *testing.T) {
	t.Parallel()
	tool := buildTool(t)
	l := startLab(t, Options{Nodes: 2, Mode: Dual, NoDaemons: true, DaemonArgs: []string{"--ip-masq=true"}})
	h, other := l.Hosts[0], l.Hosts[1]
	kerneltest.FillWithForeign(t, h.Namespace.file)
	foreignRules(t, h)
	foreignFile := filepath.Join(h.Dir, "state", "somebody's")
	if err := errors.Join(os.MkdirAll(filepath.Dir(foreignFile), 0o755), os.WriteFile(foreignFile, nil, 0o600),
		os.WriteFile(filepath.Join(h.Dir, "state", ".snapshot1234"), []byte("half"), 0o600)); err != nil { // As a daemon's that was killed.
		t.Fatal(err)
	}
	before := kerneltest.Settled(t, h.Namespace.file)
	for _, host := range l.Hosts {
		if err := host.StartDaemon(); err != nil {
			t.Fatal(err)
		}
	}
	if err := each(l.Hosts, func(h *Host) error { return h.WaitReady(t.Context()) }); err != nil {
		t.Fatal(err)
	}
	theirs, err := other.Env()
	if err != nil {
		t.Fatal(err)
	}
	if _, in := timeUntil(talkLimit, func() bool {
		have := mustPicture(t, h)
		return len(have) > 20 && mentions(have, other, theirs.Subnets) && saved(h)
	}); !in {
		t.Fatalf("the daemon has made little: %v", mustPicture(t, h))
	}
	flags := func(runDir string, more ...string) []string {
		return append([]string{"cleanup", "--run-dir=" + runDir, "--state-dir=" + filepath.Join(h.Dir, "state"), "--subnet-file=" + h.SubnetFile(), "--cni-conf-dir=" + filepath.Join(h.Dir, "cni"),
			"--etcd-endpoints=" + l.EtcdURL(), "--etcd-prefix=" + Prefix}, more...)
	}
	runDir := filepath.Join(h.Dir, "run")
	full := kerneltest.Settled(t, h.Namespace.file)
	for _, dir := range []string{runDir, t.TempDir(), "/nowhere"} {
		for _, more := range [][]string{nil, {"--dry-run"}, {"--release-lease"}} {
			out, err := run(t, h, tool, flags(dir, more...)...)
			if err == nil || !strings.Contains(out, fmt.Sprintf("a ripstopd (process %d) runs with --run-dir %s: stop it first", h.DaemonPID(), runDir)) || !strings.Contains(out, "nothing was removed") {
				t.Errorf("with a daemon that runs, --run-dir %s and %v: %v\n%s", dir, more, err, out)
			}
		}
	}
	unchanged := func(when string, want []string) {
		t.Helper()
		if d := cmp.Diff(want, kerneltest.Settled(t, h.Namespace.file)); d != "" {
			t.Errorf("%s the kernel differs:\n%s", when, d)
		}
	}
	unchanged("after a refusal", full)

	if _, _, err := h.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	out, err := run(t, h, tool, flags(runDir, "--dry-run", "--release-lease")...)
	for _, text := range []string{"would remove link ripstop.1", "would remove link ripstop-v6.1", "would remove nftables table inet ripstop", "would remove lease " + env.Subnets.String(), "would remove file " + h.SubnetFile(), "left " + filepath.Join(h.Dir, "state") + ": it holds more than ours"} {
		if err != nil || !strings.Contains(out, text) {
			t.Errorf("--dry-run does not say %q: %v\n%s", text, err, out)
		}
	}
	unchanged("after a look", full)

	out, err = run(t, h, tool, flags(runDir, "--release-lease")...)
	if err != nil || strings.Contains(out, "would") || !strings.Contains(out, "removed lease") {
		t.Errorf("cleanup: %v\n%s", err, out)
	}
	unchanged("from before the daemon", before)
	records, err := openStore(t, l).Get(t.Context(), Prefix+"/subnets/", clientv3.WithPrefix())
	if err != nil || len(records.Kvs) != 1 || !strings.Contains(string(records.Kvs[0].Value), other.Name) {
		t.Errorf("leases are %v, want the other host's: %v", records, err)
	}
	if _, err := os.Stat(h.SubnetFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the subnet file: %v", err)
	}
	var names []string
	for _, dir := range []string{"run", "state"} {
		entries, err := os.ReadDir(filepath.Join(h.Dir, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	if want := []string{"ripstopd.lock", "token", "somebody's"}; !slices.Equal(names, want) {
		t.Errorf("left are the files %q, want %q", names, want)
	}
	if out, err := run(t, h, tool, flags(runDir)...); err != nil || !strings.Contains(out, "there is nothing of ripstopd's on this host") {
		t.Errorf("a second time: %v\n%s", err, out)
	}
	if !other.Running() {
		t.Error("the other host's daemon has ended")
	}
	// What was taken away comes again, with another lease or the same.
	if err := h.StartDaemon(); err != nil {
		t.Fatal(err)
	}
	if err := h.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// saved tells whether the host's daemon has saved its lease.
func saved(h *Host) bool {
	_, err := os.Stat(filepath.Join(h.Dir, "state", "snapshot"))
	return err == nil
}
