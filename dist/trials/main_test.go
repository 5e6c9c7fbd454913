//go:build runtime

package trials

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

// programs is the folder of the programs that are shipped, as "make build" writes them.
var programs string

func TestMain(m *testing.M) {
	lab.RunIfChild()
	if unix.Geteuid() != 0 {
		fmt.Println("the tests of dist/trials make network namespaces: run them as root")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "ripstop-trials-")
	if err == nil {
		programs, err = dir, build(dir)
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

// build builds the programs as they are shipped: static.
func build(dir string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "../../cmd/ripstopd", "../../cmd/ripstop", "../../cmd/ripstop-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// startLab starts a lab that ends with the test. Its daemons are for the test to start.
func startLab(t *testing.T, opts lab.Options) *lab.Lab {
	t.Helper()
	opts.Dir, opts.Daemon, opts.NoDaemons = t.TempDir(), filepath.Join(programs, "ripstopd"), true
	l, err := lab.Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		for _, h := range l.Hosts {
			if t.Failed() {
				text, err := os.ReadFile(h.LogFile())
				t.Logf("log of %s: %v\n%s", h.Name, err, text)
			}
		}
	})
	return l
}

// run runs a program on this machine and returns what it said.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// eventually waits until something holds.
func eventually(t *testing.T, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// httpGet asks a server from a host of the lab. Without an answer body is the reason.
func httpGet(h *lab.Host, at netip.AddrPort, path string) (status, body string) {
	const patience = 3 * time.Second
	var said []byte
	err := h.Namespace.Do(func() error {
		conn, err := net.DialTimeout("tcp", at.String(), patience)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.0\r\n\r\n", path); err != nil {
			return err
		}
		said, err = io.ReadAll(conn)
		return err
	})
	if err != nil {
		return "", err.Error()
	}
	head, body, _ := strings.Cut(string(said), "\r\n\r\n")
	status, _, _ = strings.Cut(head, "\r\n")
	return status, strings.TrimSpace(body)
}
