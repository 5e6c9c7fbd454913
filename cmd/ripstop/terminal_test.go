package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// onTerminal runs the tool on a terminal of so many columns until it ends, or has
// written what enough waits for, upon which it is interrupted.
func onTerminal(t *testing.T, columns uint16, env []string, enough func(string) bool, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), must(os.Executable()), args...)
	cmd.Env = append(append(withoutTerminal(os.Environ()), asTool+"=1", "TERM=xterm"), env...)
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: columns, Rows: 50})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	var out bytes.Buffer
	for buffer := make([]byte, 1<<16); ; {
		n, err := tty.Read(buffer)
		out.Write(buffer[:n])
		if enough != nil && enough(out.String()) {
			_, _ = tty.Write([]byte{3}) // Ctrl-C
			enough = nil
		}
		if err != nil { // EIO, when the program has ended.
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %v\n%s", args, err, out.String())
	}
	return strings.ReplaceAll(out.String(), "\r\n", "\n")
}

// withoutTerminal leaves out what says how a terminal is.
func withoutTerminal(env []string) (out []string) {
	for _, v := range env {
		name, _, _ := strings.Cut(v, "=")
		if name != "NO_COLOR" && name != "COLUMNS" && name != "TERM" {
			out = append(out, v)
		}
	}
	return out
}

// TestTerminalsHaveColours, unless NO_COLOR is set to something or they are dumb; and
// lines are as wide as the terminal.
func TestTerminalsHaveColours(t *testing.T) {
	dir, _ := daemon(t, answers{nodes()["in-trouble"], page()})
	const escape = "\x1b["
	for what, c := range map[string]struct {
		columns uint16
		env     []string
		args    []string
		colours bool
	}{
		"80 columns":       {80, nil, nil, true},
		"200 columns":      {200, nil, nil, true},
		"NO_COLOR":         {80, []string{"NO_COLOR=1"}, nil, false},
		"NO_COLOR=0":       {80, []string{"NO_COLOR=0"}, nil, false},
		"NO_COLOR, empty":  {80, []string{"NO_COLOR="}, nil, true},
		"a dumb terminal":  {80, []string{"TERM=dumb"}, nil, false},
		"JSON on a screen": {80, nil, []string{"-o", "json"}, false},
	} {
		for _, command := range []string{"status", "peers"} {
			out := onTerminal(t, c.columns, c.env, nil, append([]string{command, "--run-dir=" + dir}, c.args...)...)
			if strings.Contains(out, escape) != c.colours || len(out) < 100 {
				t.Errorf("%s on %s:\n%q", command, what, out)
			}
			if !c.colours && c.args == nil {
				fits(t, what, out, int(c.columns))
			}
		}
	}
	cmd := exec.CommandContext(t.Context(), must(os.Executable()), "status", "--run-dir="+dir)
	cmd.Env = append(os.Environ(), asTool+"=1")
	if out, err := cmd.Output(); err != nil || strings.Contains(string(out), escape) || len(out) < 100 {
		t.Errorf("to a pipe: %v\n%q", err, out)
	}
}

// TestHelpOfFlagsFits the terminal that it is on.
func TestHelpOfFlagsFits(t *testing.T) {
	for _, command := range []string{"status", "doctor", "cleanup"} {
		_, flags, there := strings.Cut(onTerminal(t, 80, nil, nil, command, "--help"), "\nFlags:\n")
		if !there {
			t.Errorf("%s has no flags", command)
		}
		fits(t, command, flags, 80)
	}
}

// TestWatchOnATerminal clears it each time; Ctrl-C ends it well.
func TestWatchOnATerminal(t *testing.T) {
	dir, _ := daemon(t, answers{nodes()["well"], page()})
	const clear = "\x1b[H\x1b[2J"
	twice := func(out string) bool { return strings.Count(out, clear) > 1 && strings.HasSuffix(out, "\n") }
	for _, command := range []string{"status", "peers"} {
		if out := onTerminal(t, 80, nil, twice, command, "--watch", "--interval=100ms", "--run-dir="+dir); !strings.HasPrefix(out, clear) {
			t.Errorf("%s: %q", command, out)
		}
	}
}

// TestWatchOfJSONIsALineEach, also while no daemon runs.
func TestWatchOfJSONIsALineEach(t *testing.T) {
	last := documentedPage()
	last.Continue = ""
	dir, _ := daemon(t, answers{documented(), last})
	for _, c := range []struct {
		command, dir, key string
	}{{"status", dir, "node"}, {"peers", dir, "peers"}, {"status", t.TempDir(), "error"}} {
		cmd := exec.CommandContext(t.Context(), must(os.Executable()), c.command, "--watch", "-o", "json", "--interval=100ms", "--run-dir="+c.dir)
		cmd.Env = append(os.Environ(), asTool+"=1")
		out, in := io.Pipe()
		cmd.Stdout = in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		late := time.AfterFunc(time.Minute, func() { _ = out.CloseWithError(errors.New("it says too little")) })
		text := make([]byte, 0, 1<<16)
		for buffer := make([]byte, 1<<16); bytes.Count(text, []byte("\n")) < 3; {
			n, err := out.Read(buffer)
			if text = append(text, buffer[:n]...); err != nil {
				t.Fatal(err)
			}
		}
		_ = cmd.Process.Signal(os.Interrupt)
		go func() { _, _ = io.Copy(io.Discard, out) }()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
		late.Stop()
		_ = in.Close()
		for line := range bytes.Lines(text) {
			var value map[string]any
			if err := json.Unmarshal(line, &value); err != nil || value[c.key] == nil {
				t.Errorf("%s: %v: %s", c.command, err, line)
			}
		}
	}
}
