package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// daemonPath is the ripstopd that the tests built.
var daemonPath string

func TestMain(m *testing.M) {
	RunIfChild()
	runIfDoomed()
	runIfBusy()
	runIfEtcdctl()
	if unix.Geteuid() != 0 {
		fmt.Println("the tests of network/lab make network namespaces: run them as root")
		os.Exit(1)
	}
	// A daemon with the race detector would else linger for a second at its end.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0")
	dir, err := os.MkdirTemp("", "ripstop-lab-test-")
	if err == nil {
		daemonPath = filepath.Join(dir, "ripstopd")
		err = buildDaemon(daemonPath)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

func buildDaemon(path string) error {
	args := []string{"build", "-o", path}
	if raceDetector {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "github.com/ripstop-net/ripstop/cmd/ripstopd")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("build ripstopd: %w\n%s", err, out)
	}
	return nil
}

// startLab starts a lab that ends with the test.
func startLab(t *testing.T, opts Options) *Lab {
	t.Helper()
	if opts.Daemon == "" {
		opts.Daemon = daemonPath
	}
	opts.Dir = t.TempDir()
	opts.Progress = func(line string) { t.Log(line) }
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := Start(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for _, h := range l.Hosts {
			log, err := os.ReadFile(h.LogFile())
			if err != nil || strings.Contains(string(log), "DATA RACE") {
				t.Errorf("%s: the daemon has a data race, or no log: %v", h.Name, err)
			}
			if t.Failed() {
				t.Logf("log of %s:\n%s", h.Name, log)
			}
		}
	})
	return l
}

// everyPairTalks checks the matrix and logs how long it took.
func everyPairTalks(t *testing.T, l *Lab, patience time.Duration) Matrix {
	t.Helper()
	m, err := l.Matrix(t.Context(), patience)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Err(); err != nil {
		t.Fatal(err)
	}
	return m
}
