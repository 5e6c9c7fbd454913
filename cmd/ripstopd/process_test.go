package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// asDaemon makes the test binary run as ripstopd.
const asDaemon = "TEST_AS_RIPSTOPD"

func TestMain(m *testing.M) {
	etcdserver.RunIfChild()
	if os.Getenv(asDaemon) != "" {
		main()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// process is a ripstopd that cannot get as far as changing the network: the
// interface that it is told to use does not exist.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *output
	done chan struct{}
}

// output is what a process has said so far.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func startProcess(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	return startProcessAs(t, nil, env, args...)
}

// rootOfNothing is root in a user namespace of its own, without rights over
// the network namespace that it is in.
var rootOfNothing = &syscall.SysProcAttr{
	Cloneflags:  syscall.CLONE_NEWUSER,
	UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}},
}

func startProcessAs(t *testing.T, as *syscall.SysProcAttr, env []string, args ...string) *process {
	t.Helper()
	dir := t.TempDir()
	args = append([]string{"--iface=nosuch0", "--node-name=test", "--run-dir=" + dir, "--state-dir=" + dir, "--subnet-file=" + filepath.Join(dir, "subnet.env")}, args...)
	p := &process{t: t, cmd: exec.Command(os.Args[0], args...), out: &output{}, done: make(chan struct{})}
	// A program with the race detector lingers for a second when it ends.
	p.cmd.Env = append(append(os.Environ(), asDaemon+"=1", "GORACE=atexit_sleep_ms=0"), env...)
	p.cmd.SysProcAttr = as
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

// says waits for a text in what the process says.
func (p *process) says(want string) {
	p.t.Helper()
	for end := time.Now().Add(time.Minute); !strings.Contains(p.out.String(), want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatalf("does not say %q:\n%s", want, p.out)
		}
	}
}

// ends waits for the end and returns the exit code.
func (p *process) ends(within time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(within):
		p.t.Fatalf("still there after %s:\n%s", within, p.out)
		return -1
	}
}

func client(t *testing.T, s *etcdserver.Server) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{s.URL()}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func put(t *testing.T, c *clientv3.Client, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := c.Put(ctx, "/coreos.com/network/config", value); err != nil {
		t.Fatal(err)
	}
}

// TestEndsAtOnceWithOneLine: what does not pass by waiting ends the daemon with
// one line that says what to do.
func TestEndsAtOnceWithOneLine(t *testing.T) {
	plain := etcdserver.ForTest(t, etcdserver.Options{})
	malformed := "--etcd-prefix=/malformed"
	if _, err := client(t, plain).Put(t.Context(), "/malformed/config", `{"Network":"10.5.0.0"}`); err != nil {
		t.Fatal(err)
	}
	locked := etcdserver.ForTest(t, etcdserver.Options{})
	enableAuth(t, client(t, locked))
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		as   *syscall.SysProcAttr
		env  []string
		args []string
		code int
		want []string
	}{
		"unknown flag":      {args: []string{"--bogus"}, code: exitUsage, want: []string{"unknown flag: --bogus", "--help"}},
		"bad endpoint":      {args: []string{"--etcd-endpoints=10.0.0.1:2379"}, code: exitUsage, want: []string{"10.0.0.1:2379", "http://"}},
		"bad variable":      {env: []string{"RIPSTOPD_LEASE_TTL=long"}, code: exitUsage, want: []string{"RIPSTOPD_LEASE_TTL"}},
		"no CA file":        {args: []string{"--etcd-endpoints=https://127.0.0.1:1", "--etcd-cafile=" + filepath.Join(dir, "none")}, code: exitFailed, want: []string{"--etcd-cafile", "no such file"}},
		"junk CA file":      {args: []string{"--etcd-endpoints=https://127.0.0.1:1", "--etcd-cafile=" + junk}, code: exitFailed, want: []string{"--etcd-cafile"}},
		"certificate alone": {args: []string{"--etcd-endpoints=https://127.0.0.1:1", "--etcd-certfile=" + junk}, code: exitUsage, want: []string{"--etcd-keyfile"}},
		"no password file":  {args: []string{"--etcd-endpoints=http://127.0.0.1:1", "--etcd-username=a", "--etcd-password-file=/nowhere/at"}, code: exitFailed, want: []string{"--etcd-password-file", "/nowhere/at"}},
		"malformed config":  {args: []string{"--etcd-endpoints=" + plain.URL(), malformed}, code: exitFailed, want: []string{"malformed network config: Network:", "ripstop config set"}},
		"wrong password": {
			env: []string{"RIPSTOPD_ETCD_USERNAME=root", "RIPSTOPD_ETCD_PASSWORD=hunter2"}, args: []string{"--etcd-endpoints=" + locked.URL()},
			code: exitFailed, want: []string{"refuses", "--etcd-password"},
		},
		"no user":   {args: []string{"--etcd-endpoints=" + locked.URL()}, code: exitFailed, want: []string{"refuses", "--etcd-username"}},
		"no rights": {as: rootOfNothing, args: []string{"--etcd-endpoints=" + plain.URL()}, code: exitFailed, want: []string{"not permitted", "CAP_NET_ADMIN"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProcessAs(t, tc.as, tc.env, tc.args...)
			if code := p.ends(time.Minute); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			text := p.out.String()
			for _, want := range tc.want {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in:\n%s", want, text)
				}
			}
			if n := strings.Count(text, "ripstopd: "); n != 1 || strings.Count(text, "\n") != 1 {
				t.Errorf("not one line:\n%s", text)
			}
			if strings.Contains(text, "hunter2") {
				t.Errorf("the password is shown:\n%s", text)
			}
			t.Log(strings.TrimSpace(text))
		})
	}
}

// TestWaitsAndSaysSoOnce: what may pass is waited for; it is said once, and
// SIGTERM ends the waiting within a second.
func TestWaitsAndSaysSoOnce(t *testing.T) {
	authority, err := etcdserver.NewAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := authority.Issue("etcd", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	secure := etcdserver.ForTest(t, etcdserver.Options{ListenClientURL: "https://127.0.0.1:0", CertFile: cert, KeyFile: key, ClientCAFile: authority.CAFile})
	stranger, err := etcdserver.NewAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	empty := etcdserver.ForTest(t, etcdserver.Options{})
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"nobody listens":       {[]string{"--etcd-endpoints=http://127.0.0.1:1"}, "http://127.0.0.1:1: connection refused"},
		"unknown authority":    {[]string{"--etcd-endpoints=" + secure.URL(), "--etcd-cafile=" + stranger.CAFile}, "--etcd-cafile"},
		"certificate required": {[]string{"--etcd-endpoints=" + secure.URL(), "--etcd-cafile=" + authority.CAFile}, "--etcd-certfile"},
		"no config":            {[]string{"--etcd-endpoints=" + empty.URL()}, "in the store (etcd at " + empty.URL() + " under /coreos.com/network): write one with 'ripstop config set'"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProcess(t, nil, tc.args...)
			p.says(tc.want)
			time.Sleep(3 * time.Second)
			if n := strings.Count(p.out.String(), `"msg":"waiting"`); n != 1 {
				t.Errorf("said %d times:\n%s", n, p.out)
			}
			if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if code := p.ends(time.Second); code != 0 {
				t.Errorf("exit code %d", code)
			}
			t.Log(strings.TrimSpace(p.out.String()))
		})
	}
}

// TestMisspeltVariableIsNamed, and what Kubernetes puts in for a Service of the name is not.
func TestMisspeltVariableIsNamed(t *testing.T) {
	p := startProcess(t, []string{"RIPSTOPD_IP_MASK=true", "RIPSTOPD_PEER_GRACE=1m", "RIPSTOPD_PORT=tcp://10.96.0.7:8285", "RIPSTOPD_PORT_8285_TCP_PORT=8285", "RIPSTOPD_SERVICE_HOST=10.96.0.7", "RIPSTOPD_METRICS_SERVICE_PORT_HTTP=8285", "RIPSTOPD_METRICS_PORT=tcp://10.96.0.8:8285", "RIPSTOPD_METRICS_PORT_8285_TCP_ADDR=10.96.0.8"}, "--etcd-endpoints=http://127.0.0.1:1")
	p.says("waiting")
	if text := p.out.String(); strings.Count(text, "mean nothing") != 1 || !strings.Contains(text, `"variables":["RIPSTOPD_IP_MASK"]`) {
		t.Error(text)
	}
}

// TestWaitingEndsWhenTheConfigComes goes as far as the underlay, which is the
// next thing to be waited for.
func TestWaitingEndsWhenTheConfigComes(t *testing.T) {
	etcd := etcdserver.ForTest(t, etcdserver.Options{})
	p := startProcess(t, nil, "--etcd-endpoints="+etcd.URL())
	p.says("write one with")
	put(t, client(t, etcd), `{"Network":"10.5.0.0/16"}`)
	p.says("waiting is over")
	p.says("no interface called nosuch0")
}

func TestVersionAndHelp(t *testing.T) {
	for _, flag := range []string{"--version", "--help"} {
		p := startProcess(t, nil, flag)
		if code := p.ends(time.Minute); code != 0 || !strings.Contains(p.out.String(), "ripstopd ") {
			t.Errorf("%s: code %d:\n%s", flag, code, p.out)
		}
	}
}

func enableAuth(t *testing.T, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err1 := c.UserAdd(ctx, "root", "secret")
	_, err2 := c.UserGrantRole(ctx, "root", "root")
	_, err3 := c.AuthEnable(ctx)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
}
