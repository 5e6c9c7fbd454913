package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

// lockAs holds the lock that a running daemon holds.
func lockAs(t *testing.T, m *machine) *os.File {
	t.Helper()
	dir := m.keys["runDir"].(string)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o644)
	if err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// answer serves a daemon's readiness: an empty text is ready.
func answer(t *testing.T, m *machine) *atomic.Pointer[string] {
	t.Helper()
	var text atomic.Pointer[string]
	listener, err := net.Listen("unix", filepath.Join(m.keys["runDir"].(string), socketName))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if said := text.Load(); r.URL.Path == "/readyz" && said != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = fmt.Fprint(w, *said)
		}
	})}
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		if err := server.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return &text
}

// Before the node has a subnet, ADD and STATUS say what it lacks, and nothing
// is changed.
func TestNotReady(t *testing.T) {
	m := newMachine(t, ptp, nil)
	before := picture(t, m.ns)
	p := m.newPod(t)
	refused := func(say ...string) {
		t.Helper()
		wantCode(t, m.add(t, p), codeNotReady, say...)
		wantCode(t, m.status(t), codeNotReady, say...)
	}
	refused("ripstopd is not running", "subnet.env", "start ripstopd")
	lockAs(t, m)
	refused("ripstopd runs, and has not written")
	text := answer(t, m)
	said := "[-]started failed: waits for the network config: etcd does not answer since 10:04\n[-]lease failed: no lease is held yet\n[+]entries ok\n"
	text.Store(&said)
	refused("waits for the network config: etcd does not answer since 10:04", "no lease is held yet")
	for what, content := range map[string]string{"FLANNEL_SUBNET": "FLANNEL_SUBNET=10.5.7\n", "MTU of 0": "FLANNEL_SUBNET=10.5.7.1/24\n", "no room": "FLANNEL_SUBNET=10.5.7.1/31\nFLANNEL_MTU=1450\n"} {
		if err := os.WriteFile(m.keys["subnetFile"].(string), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		refused(what)
	}
	if after := picture(t, m.ns); after != before {
		t.Errorf("refused ADDs changed the node:\n%s\n\nbefore:\n%s", after, before)
	}
	if got := m.allocated(t); len(got) > 0 {
		t.Errorf("refused ADDs have allocated %v", got)
	}
	m.del(t, p)
}

// STATUS bears with a daemon that is away or unready for less than a minute, as
// at a restart, and says so afterwards. Pods are added all the while.
func TestStatus(t *testing.T) {
	env := envOf(lab.Dual, 7)
	m := newMachine(t, ptp, &env)
	// later makes what has begun begin two minutes earlier.
	later := func() {
		t.Helper()
		path := filepath.Join(m.dataDir(), awayFile)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var boot string
		var since int64
		if _, err := fmt.Sscan(string(text), &boot, &since); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, fmt.Appendf(nil, "%s %d\n", boot, since-(2*time.Minute).Nanoseconds()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fine := func() {
		t.Helper()
		if err := m.status(t); err != nil {
			t.Errorf("STATUS: %s", describe(err))
		}
	}
	began := time.Now()
	fine()
	m.mustAdd(t)
	later()
	limited := m.status(t)
	wantCode(t, limited, codeLimited, "ripstopd is not running", "start ripstopd")
	told := regexp.MustCompile(`for (\S+) ripstopd is not running`).FindStringSubmatch(fmt.Sprint(limited))
	if told == nil {
		t.Fatalf("it does not say for how long: %v", limited)
	}
	most := 2*time.Minute + time.Since(began).Round(time.Second)
	if away, err := time.ParseDuration(told[1]); err != nil || away < 2*time.Minute || away > most {
		t.Errorf("it is away for %s, want two minutes to %s", told[1], most)
	}
	m.mustAdd(t)

	lock := lockAs(t, m)
	fine() // And forgets.
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	fine()
	later()
	wantCode(t, m.status(t), codeLimited)

	lockAs(t, m)
	text := answer(t, m)
	fine()
	said := "[-]entries failed: 1 entry cannot be had\n"
	text.Store(&said)
	fine()
	if _, err := os.Stat(filepath.Join(m.dataDir(), awayFile)); err == nil {
		t.Error("one entry that cannot be had counts as an outage")
	}
	said2 := said + "[-]device failed: ripstop.1 is gone\n"
	text.Store(&said2)
	fine()
	later()
	wantCode(t, m.status(t), codeLimited, "device failed: ripstop.1 is gone")
	text.Store(nil)
	fine()
}

func TestFailingOf(t *testing.T) {
	many := strings.Repeat("[-]lease failed: a\n", 100)
	for _, c := range []struct {
		body string
		want int
	}{{"", 0}, {"no\nsuch\nthing", 0}, {"[+]lease ok\n[-]device failed: gone", 1}, {"[-]entries failed\n[-]store failed", 0}, {many, maxFailing}} {
		if got := failingOf(c.body); len(got) != c.want {
			t.Errorf("%.40q fails by %q, want %d", c.body, got, c.want)
		}
	}
}
