package etcdserver_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"go.uber.org/goleak"

	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

func TestMain(m *testing.M) {
	etcdserver.RunIfChild()
	if dir := os.Getenv(parentEnv); dir != "" {
		runParent(dir)
	}
	goleak.VerifyTestMain(m)
}

// parentEnv marks a process that starts a server in the directory it names,
// says its PID and waits to be killed.
const parentEnv = "RIPSTOP_ETCDSERVER_TEST_PARENT"

func runParent(dir string) {
	s, err := etcdserver.Start(context.Background(), etcdserver.Options{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.PID())
	time.Sleep(time.Minute)
	os.Exit(1)
}

func TestDiesWithParent(t *testing.T) {
	parent := exec.Command(os.Args[0])
	parent.Env = append(os.Environ(), parentEnv+"="+t.TempDir())
	parent.Stderr = os.Stderr
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	_, scanErr := fmt.Fscan(out, &pid)
	running := scanErr == nil && syscall.Kill(pid, 0) == nil
	killErr := parent.Process.Kill()
	_ = parent.Wait()
	if scanErr != nil || killErr != nil || !running {
		t.Fatalf("PID %d, running %v: %v, %v", pid, running, scanErr, killErr)
	}
	for deadline := time.Now().Add(10 * time.Second); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server outlived its parent")
		}
	}
}

// alive tells whether a process runs: one that nobody waits for may linger as a zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// TestRunInAnotherNamespace starts the child from a thread that has left for
// another network namespace.
func TestRunInAnotherNamespace(t *testing.T) {
	const url = "http://127.0.0.1:2379"
	before, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	s, err := etcdserver.Start(t.Context(), etcdserver.Options{
		Dir: t.TempDir(), ListenClientURL: url,
		Run: func(cmd *exec.Cmd) error {
			if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
				return err
			}
			if err := loopbackUp(); err != nil {
				return err
			}
			return cmd.Start()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Kill() }()
	there, err1 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", s.PID()))
	after, err2 := os.Readlink("/proc/self/ns/net")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if there == before || after != before {
		t.Errorf("the server is in %s, this process was in %s and is in %s", there, before, after)
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Error(err)
	}
}

func healthy(t *testing.T, s *etcdserver.Server) bool {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(s.URL() + "/health")
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	return resp.StatusCode == http.StatusOK
}

func TestLife(t *testing.T) {
	began := time.Now()
	s := etcdserver.ForTest(t, etcdserver.Options{})
	t.Logf("started in %s", time.Since(began))
	if !healthy(t, s) {
		t.Fatal("not healthy after Start")
	}
	where, pid := s.URL(), s.PID()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if healthy(t, s) {
		t.Fatal("still there after Kill")
	}
	if err := s.Kill(); err != nil {
		t.Fatalf("second Kill: %v", err)
	}
	began = time.Now()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("restarted in %s", time.Since(began))
	if !healthy(t, s) || s.URL() != where || s.PID() == pid {
		t.Fatalf("after Restart: healthy %v, URL %s (was %s), PID %d (was %d)", healthy(t, s), s.URL(), where, s.PID(), pid)
	}
	began = time.Now()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %s", time.Since(began))
	if err := s.Wipe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !healthy(t, s) {
		t.Fatal("not healthy after Wipe")
	}
}

// TestPortStaysItsOwn: nobody is given it while the server does not run.
func TestPortStaysItsOwn(t *testing.T) {
	s := etcdserver.ForTest(t, etcdserver.Options{})
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	runtime.GC() // Which closes files that nobody holds.
	runtime.GC()
	from, err := net.ResolveTCPAddr("tcp", strings.TrimPrefix(s.URL(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := (&net.Dialer{LocalAddr: from}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err == nil {
		defer func() { _ = c.Close() }()
		t.Error("a connection is made from it")
	}
	if c, err := net.Dial("tcp", from.String()); err == nil {
		_ = c.Close()
		t.Error("somebody listens there")
	}
	if err := s.Restart(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestPortTaken(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	u := url.URL{Scheme: "http", Host: l.Addr().String()}
	_, err = etcdserver.Start(t.Context(), etcdserver.Options{Dir: t.TempDir(), ListenClientURL: u.String()})
	if err == nil || !strings.Contains(err.Error(), "taken") {
		t.Fatalf("Start on a taken port: %v", err)
	}
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/data", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := etcdserver.Start(t.Context(), etcdserver.Options{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "start etcd") {
		t.Fatalf("Start on a file: %v", err)
	}
}

// loopbackUp takes lo up in the network namespace of the calling thread.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
