//go:build packages

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const unitFile = "../../dist/systemd/ripstopd.service"

// unitValues are the values of a setting of the unit, in the order of its lines.
func unitValues(t *testing.T, key string) (values []string) {
	t.Helper()
	text, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && k == key {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		t.Fatalf("%s has no %s", unitFile, key)
	}
	return values
}

// callsOf lists the system calls of a group of systemd's, those of the groups in it
// as well.
func callsOf(t *testing.T, group string) map[string]bool {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "--no-pager", "syscall-filter", group).Output()
	if err != nil {
		t.Fatalf("systemd-analyze syscall-filter %s: %v", group, err)
	}
	calls := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		switch word := strings.TrimSpace(line); {
		case word == group || word == "" || strings.HasPrefix(word, "#"):
		case strings.HasPrefix(word, "@"):
			for call := range callsOf(t, word) {
				calls[call] = true
			}
		default:
			calls[word] = true
		}
	}
	return calls
}

// allowedCalls are those that the unit's SystemCallFilter lets pass.
func allowedCalls(t *testing.T) map[string]bool {
	t.Helper()
	allowed := map[string]bool{}
	for _, value := range unitValues(t, "SystemCallFilter") {
		list, not := strings.CutPrefix(value, "~")
		for _, group := range strings.Fields(list) {
			for call := range callsOf(t, group) {
				if not {
					delete(allowed, call)
				} else {
					allowed[call] = true
				}
			}
		}
	}
	return allowed
}

// A daemon with the capabilities that the unit leaves it, and with nothing of
// /proc/sys to write but what the unit names, does all its work, by system calls
// that the unit's filter lets pass.
func TestRealUnitLeavesTheDaemonWhatItNeeds(t *testing.T) {
	dir := t.TempDir()
	caps := strings.ToLower(strings.Join(unitValues(t, "CapabilityBoundingSet"), " "))
	bounds := "-all"
	for _, c := range strings.Fields(caps) {
		bounds += ",+" + strings.TrimPrefix(c, "cap_")
	}
	if !slices.Contains(unitValues(t, "ReadWritePaths"), "/proc/sys/net") {
		t.Error("the unit does not let /proc/sys/net be written")
	}
	// The daemon as it is shipped: the race detector makes system calls of its own.
	daemon := filepath.Join(dir, "ripstopd-static")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", daemon, "github.com/ripstop-net/ripstop/cmd/ripstopd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build ripstopd: %v\n%s", err, out)
	}
	// The trace names each system call of every thread.
	script := fmt.Sprintf(`#!/bin/sh -e
if [ -z "$RIPSTOP_TEST_INSIDE" ]; then
	export RIPSTOP_TEST_INSIDE=1
	exec unshare --mount "$0" "$@"
fi
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t proc proc /mnt
mount --bind /mnt/sys/net /proc/sys/net
umount /mnt
exec setpriv --bounding-set %s --inh-caps -all --no-new-privs strace -D -f -qq -e signal=none -o %s/calls.$$ %s "$@"
`, bounds, dir, daemon)
	wrapper := filepath.Join(dir, "ripstopd")
	if err := os.WriteFile(wrapper, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	l := startLab(t, Options{Nodes: 2, Mode: Dual, Daemon: wrapper, DaemonArgs: []string{"--ip-masq", "--listen=127.0.0.1:8285"}})
	everyPairTalks(t, l, talkLimit)
	h := l.Hosts[0]
	shell(t, h, "iptables-legacy -P FORWARD DROP; nft add table ip other; nft add chain ip other forward '{ type filter hook forward priority 0; }'")
	eventually(t, time.Minute, "the policy of legacy iptables is told", func() bool {
		return strings.Contains(h.DaemonLog(), `"table":"legacy ip filter","chain":"FORWARD","rule":"policy drop"`)
	})
	for _, host := range l.Hosts {
		for line := range strings.Lines(host.DaemonLog()) {
			if strings.Contains(line, "not permitted") || strings.Contains(line, "permission denied") || strings.Contains(line, "read-only") {
				t.Errorf("%s: %s", host.Name, line)
			}
		}
		device, err := host.Devices()
		if err != nil {
			t.Fatal(err)
		}
		shell(t, host, "ip link delete "+device[0])
	}
	shell(t, h, "iptables-legacy -P FORWARD ACCEPT")
	everyPairTalks(t, l, talkLimit)
	for _, host := range l.Hosts {
		if err := host.RestartDaemon(t.Context(), 15); err != nil {
			t.Fatal(err)
		}
	}

	allowed, seen := allowedCalls(t), map[string]bool{}
	traces, err := filepath.Glob(filepath.Join(dir, "calls.*"))
	if err != nil || len(traces) < 2*len(l.Hosts) {
		t.Fatalf("%d traces: %v", len(traces), err)
	}
	call := regexp.MustCompile(`(?m)^\d+ +(\w+)\(`)
	for _, trace := range traces {
		text, err := os.ReadFile(trace)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllSubmatch(text, -1) {
			seen[string(m[1])] = true
		}
	}
	if len(seen) < 20 {
		t.Errorf("only %d system calls were seen", len(seen))
	}
	for name := range seen {
		if !allowed[name] {
			t.Errorf("the daemon makes the system call %s, which the unit's filter refuses", name)
		}
	}
}
