package serve

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/status"
)

// manager is systemd's end of sd_notify.
type manager struct {
	mu    sync.Mutex
	lines []string
}

func listenAsManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	m := &manager{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.lines = append(m.lines, strings.Split(string(buf[:n]), "\n")...)
			m.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return m
}

func (m *manager) count(line string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lines {
		if strings.HasPrefix(l, line) {
			n++
		}
	}
	return n
}

// TestSystemdIsTold: READY once when the node serves and not before, how it is
// as that changes, that it stops, and signs of life while the loop gives them.
func TestSystemdIsTold(t *testing.T) {
	m := listenAsManager(t)
	t.Setenv("WATCHDOG_USEC", "40000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	f := well()
	f.set(func(s *status.Status) { s.Lease.Held, s.Lease.Problem = false, "taken\nby another" })
	r := run(t, f, "")
	eventually(t, "a status", func() bool { return m.count("STATUS=not ready: lease: taken by another") == 1 })
	eventually(t, "signs of life", func() bool { return m.count("WATCHDOG=1") >= 3 })
	if m.count("READY=1") != 0 {
		t.Error("ready is told of a node that is not")
	}
	// One entry that fails is no reason for systemd to end the daemon and begin anew.
	f.set(func(s *status.Status) { s.Lease.Held, s.Loop.Failing = true, 1 })
	eventually(t, "READY", func() bool {
		return m.count("READY=1") == 1 && m.count("STATUS=not ready: entries: 1 entry cannot be had") == 1
	})
	f.set(func(s *status.Status) { s.Lease.Held, s.Loop.Failing = false, 0 })
	eventually(t, "a status again", func() bool { return m.count("STATUS=not ready: lease: taken by another") == 2 })
	for n := 1; n <= 2; n++ {
		f.set(func(s *status.Status) { s.Lease.Held = true })
		eventually(t, "ready", func() bool { return m.count("READY=1") > 0 && m.count("STATUS=ready: 10.5.1.0/24, 3 peers") == n })
		f.set(func(s *status.Status) { s.Lease.Held = false })
		eventually(t, "not ready", func() bool { return m.count("STATUS=not ready: lease") == n+2 })
	}
	past := time.Now().Add(-beatMissed - time.Second)
	f.mu.Lock()
	f.stuck = true
	f.mu.Unlock()
	eventually(t, "no more signs of life", func() bool {
		r.server.beat.Store(&past)
		before := m.count("WATCHDOG=1")
		time.Sleep(100 * time.Millisecond)
		return m.count("WATCHDOG=1") == before
	})
	r.stop()
	eventually(t, "the end", func() bool { return m.count("STOPPING=1") == 1 })
	if m.count("READY=1") != 1 {
		t.Errorf("ready is told %d times", m.count("READY=1"))
	}
}
