package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/network/rundir"
	"github.com/ripstop-net/ripstop/network/status"
)

// asTool makes the test binary run as ripstop.
const asTool = "RIPSTOP_TEST_AS_TOOL"

// ripstop runs the tool within this process.
func ripstop(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// TestHelpHasExamples of every command that does something.
func TestHelpHasExamples(t *testing.T) {
	for _, name := range []string{"status", "peers", "doctor", "log-level", "cleanup", "docker-opts"} {
		out, err := ripstop(t, name, "--help")
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "help-"+name, out)
	}
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Runnable() && !c.HasSubCommands() && c.Example == "" {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRoot())
}

// TestDaemonThatCannotBeAsked: each error says what to do.
func TestDaemonThatCannotBeAsked(t *testing.T) {
	dead := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dead, status.SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for _, command := range []string{"status", "peers", "log-level"} {
		for dir, want := range map[string]string{t.TempDir(): "start it, or give the --run-dir", dead: "start it again and look at its log"} {
			if out, err := ripstop(t, command, "--run-dir="+dir); err == nil || !strings.Contains(err.Error(), want) || out != "" {
				t.Errorf("%s: %v\n%s", command, err, out)
			}
		}
	}
	for _, tc := range [][]string{
		{"--output", "status", "-o", "yaml"}, {"--interval", "status", "--interval=1ms"}, {"--node", "peers", "--node=a b"},
		{"--subnet", "peers", "--subnet=10.5"}, {"--limit", "peers", "--limit=-1"}, {`takes no argument such as "now" (see ripstop status --help)`, "status", "now"},
		{"unknown flag: --run-dri (see ripstop peers --help)", "peers", "--run-dri=x"}, {"is no folder: give the --run-dir", "status", "--run-dir=/dev/null"},
		{`"loud" is none of debug, info, warn, error`, "log-level", "loud"}, {`"warn info" is none of`, "log-level", "warn", "info"},
		{"takes no argument such as", "cleanup", "now"}, {"unknown flag: --dryrun (see ripstop cleanup --help)", "cleanup", "--dryrun"},
	} {
		if _, err := ripstop(t, tc[1:]...); err == nil || !strings.Contains(err.Error(), tc[0]) {
			t.Errorf("%v: %v", tc[1:], err)
		}
	}
}

// TestWithoutRightsItSaysSo runs the tool as another user.
func TestWithoutRightsItSaysSo(t *testing.T) {
	dir, err := os.MkdirTemp("", "ripstop-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, status.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := os.Chmod(filepath.Join(dir, status.SocketName), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// A copy, for nobody may not go where this one is.
	program := filepath.Join(dir, "ripstop")
	if err := copyFile(program, must(os.Executable())); err != nil {
		t.Fatal(err)
	}
	unlock, err := rundir.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	for _, command := range []string{"status", "peers", "log-level", "cleanup"} {
		cmd := exec.CommandContext(t.Context(), program, command, "--run-dir="+dir)
		cmd.Env = []string{asTool + "=1"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "run this as root") {
			t.Errorf("%s: %v: %s", command, err, out)
		}
	}
}

// TestCompletionInBash asks a real bash what it would offer.
func TestCompletionInBash(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink(must(os.Executable()), filepath.Join(dir, "ripstop")); err != nil {
		t.Fatal(err)
	}
	script, err := ripstop(t, "completion", "bash")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "completion.bash")
	// The words, as the package bash-completion would cut them.
	script += `
_init_completion() { words=("${COMP_WORDS[@]}"); cword=$COMP_CWORD; cur="${words[cword]}"; prev="${words[cword-1]}"; }
complete_line() {
	read -ra COMP_WORDS <<< "$1"; [[ $1 == *" " ]] && COMP_WORDS+=("")
	COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMP_LINE="$1"; COMP_POINT=${#1}; COMP_TYPE=9; COMPREPLY=()
	__start_ripstop; printf '%s\n' "${COMPREPLY[@]}"
}
compopt() { :; }
complete_line "$LINE"
`
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string][]string{
		"ripstop sta":            {"status"},
		"ripstop log-level ":     {"debug", "error", "info", "warn"},
		"ripstop status -o ":     {"json", "wide"},
		"ripstop peers --output": {"--output"},
		"ripstop config s":       {"set"},
		"ripstop cleanup --dr":   {"--dry-run"},
	} {
		cmd := exec.CommandContext(t.Context(), "bash", "--norc", file)
		cmd.Env = append(os.Environ(), asTool+"=1", "LINE="+line, "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		var got []string
		for word := range strings.Lines(string(out)) {
			word, _, _ = strings.Cut(strings.TrimSpace(word), " ")
			if got = append(got, strings.TrimSuffix(word, "=")); word == "" {
				got = got[:len(got)-1]
			}
		}
		slices.Sort(got)
		if err != nil || !slices.Equal(slices.Compact(got), want) {
			t.Errorf("%q: %q, %v, want %v", line, out, err, want)
		}
	}
	for _, shell := range []string{"zsh", "fish", "powershell"} {
		if out, err := ripstop(t, "completion", shell); err != nil || !strings.Contains(out, "ripstop") {
			t.Errorf("%s: %v", shell, err)
		}
	}
}

// TestCleanupRefusesWhileADaemonRuns, also to look only.
func TestCleanupRefusesWhileADaemonRuns(t *testing.T) {
	dir := t.TempDir()
	unlock, err := rundir.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	for _, args := range [][]string{{}, {"--dry-run"}, {"--release-lease"}} {
		out, err := ripstop(t, append([]string{"cleanup", "--run-dir=" + dir, "--state-dir=" + dir, "--subnet-file=" + dir + "/none"}, args...)...)
		if err == nil || !strings.Contains(err.Error(), "stop it first") || out != "" {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
}

// TestWatchEndsWithItsContext, and shows meanwhile that no daemon runs.
func TestWatchEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, must(os.Executable()), "status", "--watch", "--interval=100ms", "--run-dir="+t.TempDir())
	cmd.Env = append(os.Environ(), asTool+"=1")
	shown, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Before its first words it may not heed signals yet.
	screens, lines := 0, bufio.NewScanner(shown)
	for screens < 2 && lines.Scan() {
		if strings.Contains(lines.Text(), "no ripstopd runs here") {
			screens++
		}
	}
	if screens < 2 {
		t.Errorf("it showed that %d times: %v", screens, lines.Err())
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, shown); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
