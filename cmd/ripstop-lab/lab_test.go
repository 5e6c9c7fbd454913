package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

// asProgram makes the test binary be ripstop-lab, so that the tests run it as
// people do.
const asProgram = "RIPSTOP_LAB_AS_PROGRAM"

var daemonPath string

func TestMain(m *testing.M) {
	lab.RunIfChild()
	if os.Getenv(asProgram) != "" {
		main()
	}
	if os.Geteuid() != 0 {
		fmt.Println("the tests of ripstop-lab make network namespaces: run them as root")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "ripstop-lab-test-")
	if err == nil {
		daemonPath = filepath.Join(dir, "ripstopd")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", daemonPath, "github.com/ripstop-net/ripstop/cmd/ripstopd").CombinedOutput(); err != nil {
			err = fmt.Errorf("build ripstopd: %w\n%s", err, out)
		}
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

// runLimit bounds one run of the program, and liveLimit the life of a lab, in which there
// are many such.
const (
	runLimit  = 2 * time.Minute
	liveLimit = 8 * time.Minute
)

// program is a run of ripstop-lab.
type program struct {
	*exec.Cmd
	out output
}

// output can be read while it is written.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func newProgram(t *testing.T, limit time.Duration, args ...string) *program {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	p := &program{Cmd: exec.CommandContext(ctx, self, args...)}
	p.Env = append(os.Environ(), asProgram+"=1", "GORACE=atexit_sleep_ms=0")
	p.Stdout, p.Stderr = &p.out, &p.out
	return p
}

// run runs ripstop-lab to its end and checks exit code and output.
func run(t *testing.T, wantCode int, wantOut string, args ...string) string {
	t.Helper()
	p := newProgram(t, runLimit, args...)
	var exit *exec.ExitError
	if err := p.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if code := p.ProcessState.ExitCode(); code != wantCode || !strings.Contains(p.out.String(), wantOut) {
		t.Errorf("ripstop-lab %s: exit code %d, want %d, and %q in:\n%s", strings.Join(args, " "), code, wantCode, wantOut, p.out.String())
	}
	return p.out.String()
}

// startUp starts "up" and waits until the lab stands.
func startUp(t *testing.T, args ...string) *program {
	t.Helper()
	p := newProgram(t, liveLimit, append([]string{"up"}, args...)...)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill()
			_ = p.Wait() // It was killed.
		}
	})
	for deadline := time.Now().Add(runLimit); !strings.Contains(p.out.String(), "Ctrl-C takes it all away"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the lab does not come up:\n%s", p.out.String())
		}
	}
	return p
}

func TestUpExecPingListDown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(args ...string) []string { return append([]string{args[0], "--dir", dir}, args[1:]...) }
	up := startUp(t, "--dir", dir, "--ripstopd", daemonPath, "--nodes", "2", "--ip-family", "dual")
	shown := up.out.String()
	for _, want := range []string{"10.99.0.2", "fd99::2", "ripstop.1", "ripstop-v6.1", "by IPv4", "by IPv6", "Every pair of pods talks", " --dir " + dir, "exec --dir " + dir + " node1 -- "} {
		if !strings.Contains(shown, want) {
			t.Errorf("up does not show %q:\n%s", want, shown)
		}
	}
	run(t, 0, "pod2", at("list")...)
	run(t, 0, "4 sent, 4 answered", at("ping", "pod1", "pod2", "--interval=10ms")...)
	run(t, 0, "answer from fd00:10:5:", at("ping", "pod1", "pod2", "-6", "-c1")...)
	run(t, 0, "1 answered", at("ping", "pod2", "10.99.0.1", "-c1", "--size=1402", "--dont-fragment")...)
	run(t, 1, "message too long", at("ping", "pod1", "pod2", "-c1", "--size=1403", "--dont-fragment")...)
	run(t, 1, "there are node1, node2, pod1, pod2", at("ping", "pod1", "pod9")...)
	inside := run(t, 0, "eth0", at("exec", "pod1", "--", "cat", "/proc/net/dev")...)
	if strings.Contains(inside, "cni0") {
		t.Errorf("exec shows other interfaces than the pod's:\n%s", inside)
	}
	run(t, 7, "", at("exec", "node1", "--", "sh", "-c", "exit 7")...)
	theDoctorHint(t, shown)
	run(t, exitNotFound, "no-such-command", at("exec", "node1", "no-such-command")...)
	run(t, 1, "is up already", at("up", "--ripstopd", daemonPath)...)
	run(t, 0, "was taken away", at("down")...)
	if err := up.Wait(); err != nil {
		t.Errorf("up ended with %v:\n%s", err, up.out.String())
	}
	run(t, 1, "is not up", at("down")...)
	run(t, 1, "is not up", at("exec", "pod1", "true")...)
	nothingIn(t, dir)
}

// theDoctorHint is given as it is shown, but for where the programs are; nothing is
// wrong by it, and from outside the same is refused as another network namespace.
func theDoctorHint(t *testing.T, shown string) {
	t.Helper()
	m := regexp.MustCompile(`(?m)^  \S+ (exec .* -- )\S+ripstop (doctor --run-dir \S+)$`).FindStringSubmatch(shown)
	if m == nil {
		t.Fatalf("there is no hint of the doctor:\n%s", shown)
	}
	tool := filepath.Join(filepath.Dir(daemonPath), "ripstop")
	if out, err := exec.Command("go", "build", "-o", tool, "github.com/ripstop-net/ripstop/cmd/ripstop").CombinedOutput(); err != nil {
		t.Fatalf("build ripstop: %v\n%s", err, out)
	}
	none := "--env-file=" + filepath.Join(t.TempDir(), "none")
	run(t, 0, "all is well", append(append(strings.Fields(m[1]), tool), append(strings.Fields(m[2]), none, "--cni-conf-dir="+t.TempDir())...)...)
	cmd := exec.CommandContext(t.Context(), tool, append(strings.Fields(m[2]), none)...)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "nsenter -t ") || !strings.Contains(string(out), "1 failure, 0 warnings") {
		t.Errorf("from outside: %v\n%s", err, out)
	}
}

// A lab that is only coming up can be taken away as well.
func TestDownWhileComingUp(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stub := filepath.Join(dir, "stub") // A daemon that is never ready.
	if err := os.WriteFile(stub, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	up := newProgram(t, liveLimit, "up", "--dir", filepath.Join(dir, "labs"), "--ripstopd", stub, "--nodes", "1")
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(runLimit); !strings.Contains(up.out.String(), "hosts: 1"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the lab does not begin:\n%s", up.out.String())
		}
	}
	run(t, 1, "still coming up", "exec", "--dir", filepath.Join(dir, "labs"), "node1", "true")
	run(t, 0, "was taken away", "down", "--dir", filepath.Join(dir, "labs"))
	if err := up.Wait(); up.ProcessState.ExitCode() != exitFailed || !strings.Contains(up.out.String(), "interrupted") {
		t.Errorf("up ended with %v:\n%s", err, up.out.String())
	}
	nothingIn(t, filepath.Join(dir, "labs"))
}

func TestUpOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	run(t, 0, "Every pair of pods talks", "up", "--once", "--dir", dir, "--ripstopd", daemonPath, "--ip-family", "ipv6", "--pods", "2", "--nodes", "2")
	nothingIn(t, dir)
}

func TestFleet(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	shown := run(t, 0, "known everywhere", "fleet", "--dir", dir, "--ripstopd", daemonPath, "--nodes", "3", "--joiners", "1", "--idle", "100ms", "--ip-family", "dual")
	for _, want := range []string{"3 nodes, dual", "Every node knows every other", "Memory of a daemon", "processor of a daemon", "renewals a second"} {
		if !strings.Contains(shown, want) {
			t.Errorf("fleet does not show %q:\n%s", want, shown)
		}
	}
	nothingIn(t, dir)
}

func TestUpEndsOnInterrupt(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	up := startUp(t, "--dir", dir, "--ripstopd", daemonPath, "--nodes", "1")
	if err := up.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := up.Wait(); err != nil {
		t.Errorf("up ended with %v:\n%s", err, up.out.String())
	}
	nothingIn(t, dir)
}

// A lab that was killed is told from one that runs, cleared by down, and in
// nobody's way.
func TestCrashedLabIsRecognised(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	crash := func() {
		t.Helper()
		up := startUp(t, "--dir", dir, "--name", "second", "--ripstopd", daemonPath, "--nodes", "1")
		if err := up.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = up.Wait() // It was killed.
	}
	crash()
	run(t, 0, "is gone", "list", "--dir", dir)
	run(t, 1, "is gone", "exec", "--dir", dir, "--name", "second", "pod1", "true")
	run(t, 0, "had crashed", "down", "--dir", dir, "--name", "second")
	nothingIn(t, dir)
	crash()
	run(t, 0, "Lab \"second\" is up", "up", "--once", "--dir", dir, "--name", "second", "--ripstopd", daemonPath, "--nodes", "1")
	nothingIn(t, dir)
}

// A process that was given the number of a lab's is not taken for the lab.
func TestReusedProcessNumberIsNotTheLab(t *testing.T) {
	at := &place{dir: t.TempDir(), name: usualName}
	if err := os.Mkdir(at.folder(), 0o755); err != nil {
		t.Fatal(err)
	}
	started, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := at.writeState(state{PID: os.Getpid(), Started: started}); err != nil {
		t.Fatal(err)
	}
	if _, err := at.running(); err != nil {
		t.Errorf("a process that runs is not seen: %v", err)
	}
	if err := at.writeState(state{PID: os.Getpid(), Started: started - 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := at.running(); !errors.Is(err, errNotUp) {
		t.Errorf("another process of the lab's number: %v", err)
	}
	// SIGTERM would end this test.
	if err := endProcess(t.Context(), state{PID: os.Getpid(), Started: started - 1}); err != nil {
		t.Error(err)
	}
}

func TestWrongUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, c := range []struct {
		code int
		want string
		args string
	}{
		{exitUsage, "none of ipv4, ipv6, dual", "up --ip-family ipx"},
		{exitUsage, "--nodes: 0 is outside", "up --nodes 0"},
		{exitUsage, "--pods: 1000 is outside", "up --pods 1000"},
		{exitUsage, "--nodes: 1 is outside", "fleet --nodes 1"},
		{exitUsage, "at most 250 hosts", "fleet --nodes 250 --joiners 1"},
		{exitUsage, "unknown flag", "up --nosuch"},
		{exitUsage, "--name", "up --name a/b"},
		{exitUsage, "unknown command", "nosuch"},
		{exitUsage, "exec:", "exec pod1"},
		{exitUsage, "a command is missing", "exec pod1 --"},
		{exitUsage, "ping:", "ping pod1"},
		{exitUsage, "--size", "ping pod1 pod2 --size 3"},
		{exitFailed, "no ripstopd", "up --ripstopd /no/such/file"},
		{exitFailed, "is not up", "down"},
		{0, "No lab is up", "list"},
		{0, "Examples:", "up --help"},
		{0, "Examples:", "exec --help"},
		{0, "Examples:", "--help"},
	} {
		args := strings.Fields(c.args)
		if args[0] == "exec" { // What follows the machine is the command's.
			args = append([]string{"--dir=" + dir}, args...)
		} else {
			args = append(args, "--dir="+dir)
		}
		run(t, c.code, c.want, args...)
	}
	nothingIn(t, dir)
}

// nothingIn checks that no file was left.
func nothingIn(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			t.Errorf("%s was left", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
