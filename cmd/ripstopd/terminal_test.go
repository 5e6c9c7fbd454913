package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// TestLogsAreForWhoReadsThem: lines for people on a terminal, JSON for whatever else
// standard error is.
func TestLogsAreForWhoReadsThem(t *testing.T) {
	logged := func(terminal bool) (lines []string) {
		t.Helper()
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "--iface=nosuch0", "--node-name=test", "--run-dir="+dir, "--state-dir="+dir, "--subnet-file="+dir+"/subnet.env", "--etcd-endpoints=http://127.0.0.1:1")
		cmd.Env = append(os.Environ(), asDaemon+"=1", "GORACE=atexit_sleep_ms=0")
		out, in, err := os.Pipe()
		if terminal {
			out, in, err = pty.Open()
		}
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = out.Close() }()
		cmd.Stderr = in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = in.Close()
		told := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		defer told.Stop()
		for text := bufio.NewReader(out); ; {
			line, err := text.ReadString('\n')
			if line = strings.TrimSpace(line); line != "" {
				lines = append(lines, line)
			}
			if strings.Contains(line, "waiting") {
				_ = cmd.Process.Signal(os.Interrupt)
			}
			if err != nil { // A terminal whose last writer has gone gives EIO.
				break
			}
		}
		if err := cmd.Wait(); err != nil || len(lines) < 2 {
			t.Fatalf("%v: %q", err, lines)
		}
		_, _ = io.Copy(io.Discard, out)
		return lines
	}
	forPeople := regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3}\t(INFO|WARN|ERROR)\t\w.*$`)
	for _, line := range logged(true) {
		if !forPeople.MatchString(line) {
			t.Errorf("on a terminal: %q", line)
		}
	}
	for _, line := range logged(false) {
		var parsed struct {
			Level, Msg string
			Time       time.Time
		}
		if err := json.Unmarshal([]byte(line), &parsed); err != nil || parsed.Level == "" || parsed.Msg == "" || time.Since(parsed.Time) > time.Minute {
			t.Errorf("to a pipe: %q: %v", line, err)
		}
	}
}
