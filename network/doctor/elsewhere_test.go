package doctor

import (
	"context"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/status"
)

// sleeper is a process in a network namespace of its own.
func sleeper(t *testing.T) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd.Process.Pid
}

// process is a daemon of which no more is seen than its process.
type process int

func (p process) Process(context.Context) (int, error) { return int(p), nil }
func (p process) Status(context.Context) (status.Status, error) {
	return status.Status{Ready: true, Up: true}, nil
}

// noHost is one without interfaces.
type noHost struct{ Host }

func (noHost) Interfaces(context.Context) ([]backend.Interface, error) { return nil, nil }

// TestAnotherNamespaceIsNamed, once, whatever is to be looked at, and the kernel of here is
// not taken for that of the daemon; where it is the same one, nothing is said.
func TestAnotherNamespaceIsNamed(t *testing.T) {
	apart := sleeper(t)
	for name, c := range map[string]struct {
		process int
		checks  []string
		apart   bool
	}{
		"another":                  {apart, []string{"daemon", "device", "entries", "conntrack"}, true},
		"another, asked of a part": {apart, []string{"device"}, true},
		"the same":                 {os.Getpid(), []string{"daemon"}, false},
		"not seen":                 {0, []string{"daemon"}, false},
		"gone":                     {1 << 30, []string{"daemon"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := Sources{
				Setup: Setup{RunDir: t.TempDir() + "/it's here", Program: "./bin/ripstop"}, Daemon: process(c.process),
				Saved: func() (*Saved, error) { return nil, nil }, Host: noHost{}, Settings: settings{"netfilter/nf_conntrack_count": 1, "netfilter/nf_conntrack_max": 1},
			}
			var checks []Check
			for _, check := range Node(s) {
				for _, id := range c.checks {
					if check.ID == id {
						checks = append(checks, check)
					}
				}
			}
			var named []string
			for _, v := range Run(t.Context(), checks, nil) {
				switch {
				case strings.Contains(v.Summary, "another network namespace"):
					named = append(named, strings.Join(v.Remedy, "\n"))
					if v.Severity != Failure || v.Check != "daemon" {
						t.Errorf("%+v", v)
					}
				case c.apart && v.Check != "daemon":
					t.Errorf("of another kernel than the daemon's: %+v", v)
				}
			}
			if (len(named) == 1) != c.apart || len(named) > 1 {
				t.Errorf("named %d times: %q", len(named), named)
			}
			if c.apart && !strings.Contains(named[0], " -n ./bin/ripstop doctor --run-dir='"+strings.ReplaceAll(s.Setup.RunDir, "'", `'\''`)+"'") {
				t.Errorf("%q", named[0])
			}
		})
	}
}
