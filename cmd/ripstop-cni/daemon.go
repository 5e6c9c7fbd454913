package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Files of the daemon in its --run-dir.
const (
	lockName   = "ripstopd.lock"
	socketName = "ripstopd.sock"
)

// daemon is what is known of this node's ripstopd.
type daemon struct {
	running bool
	// failing has what the daemon itself says that it lacks.
	failing []string
}

// answerLimit bounds the wait for the daemon's answer: it is on this machine.
const answerLimit = 3 * time.Second

// maxAnswer and maxFailing bound what is taken from an answer.
const (
	maxAnswer  = 16 << 10 // Bytes.
	maxFailing = 8
)

// askDaemon finds out whether the daemon runs, and what it says of itself. A
// daemon that gives no answer is only known to run.
func askDaemon(ctx context.Context, runDir string) daemon {
	d := daemon{running: holdsLock(filepath.Join(runDir, lockName))}
	if !d.running {
		return d
	}
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	path := filepath.Join(runDir, socketName)
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", path)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://ripstopd/readyz", nil)
	if err != nil {
		return d
	}
	resp, err := client.Do(req)
	if err != nil {
		return d
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode == http.StatusServiceUnavailable {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
		d.failing = failingOf(string(text))
	}
	return d
}

// bearable are conditions whose failing leaves what pods need: one peer's entry
// that cannot be had, an interface of the host's that is down for a while, a store
// that does not answer.
var bearable = []string{"entries", "underlay", "store"}

// failingOf reads the daemon's answer: a line "[-]name failed: reason" for each
// condition that does not hold.
func failingOf(body string) []string {
	var out []string
	for line := range strings.Lines(body) {
		text, ok := strings.CutPrefix(strings.TrimSpace(line), "[-]")
		name, _, _ := strings.Cut(text, " ")
		if ok && !slices.Contains(bearable, name) && len(out) < maxFailing {
			out = append(out, text)
		}
	}
	return out
}

// holdsLock tells whether some process has the file locked. It looks at the
// kernel's list: trying the lock would take it for a moment, and a daemon that
// starts in that moment would give up.
func holdsLock(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	locks, err := os.ReadFile("/proc/locks")
	return err == nil && lists(locks, st)
}

// lists tells whether the file has a flock in the form of proc(5)'s /proc/locks:
// "1: FLOCK  ADVISORY  WRITE 1234 00:19:5678 0 EOF", device numbers in hex.
func lists(locks []byte, st *syscall.Stat_t) bool {
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), st.Ino)
	for lines := bufio.NewScanner(bytes.NewReader(locks)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 6 && fields[1] == "FLOCK" && fields[5] == file {
			return true
		}
	}
	return false
}
