package cnifiles

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func options(t *testing.T) Options {
	t.Helper()
	dir := t.TempDir()
	o := Options{
		ConfDir: filepath.Join(dir, "etc/cni/net.d"), BinDir: filepath.Join(dir, "opt/cni/bin"), Plugin: filepath.Join(dir, "ripstop-cni"),
		SubnetFile: "/run/flannel/subnet.env", RunDir: "/run/ripstop",
	}
	write(t, o.Plugin, "program")
	return o
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const alone = `{
  "cniVersion": "1.0.0",
  "name": "pods",
  "writtenBy": "ripstopd",
  "plugins": [
    {
      "type": "ripstop-cni",
      "subnetFile": "/run/flannel/subnet.env",
      "runDir": "/run/ripstop"
    }
  ]
}
`

// TestInstall puts both in place, once, and follows a new plugin.
func TestInstall(t *testing.T) {
	o := options(t)
	program, list := filepath.Join(o.BinDir, PluginName), filepath.Join(o.ConfDir, ListName)
	if err := o.Install(); err != nil {
		t.Fatal(err)
	}
	if read(t, program) != "program" || read(t, list) != alone {
		t.Errorf("plugin %s, list %s", read(t, program), read(t, list))
	}
	for path, mode := range map[string]os.FileMode{program: 0o755, list: 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, info.Mode(), err)
		}
	}
	before, _ := os.Stat(program)
	listed, _ := os.Stat(list)
	if err := o.Install(); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Stat(program); !os.SameFile(before, after) {
		t.Error("a plugin that is the same was written again")
	}
	if after, _ := os.Stat(list); !os.SameFile(listed, after) {
		t.Error("a list that is the same was written again")
	}
	write(t, o.Plugin, "newer!!")
	write(t, filepath.Join(o.BinDir, "portmap"), "")
	if err := o.Install(); err != nil {
		t.Fatal(err)
	}
	if read(t, program) != "newer!!" || !strings.Contains(read(t, list), `"type": "portmap"`) {
		t.Errorf("plugin %s, list %s", read(t, program), read(t, list))
	}
	for _, dir := range []string{o.BinDir, o.ConfDir} {
		left, err := filepath.Glob(filepath.Join(dir, ".*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v %v", left, err)
		}
	}
}

// TestForeignListStays, whatever is in it.
func TestForeignListStays(t *testing.T) {
	o := options(t)
	path := filepath.Join(o.ConfDir, ListName)
	for _, text := range []string{"", "{", strings.Replace(alone, "ripstopd", "me", 1), strings.Replace(alone, "writtenBy", "by", 1)} {
		write(t, path, text)
		if err := o.Install(); !errors.Is(err, ErrForeign) || read(t, path) != text {
			t.Errorf("%q: %v, now %s", text, err, read(t, path))
		}
		if ours, err := Ours(path); err != nil || ours {
			t.Errorf("%q is ours: %v", text, err)
		}
	}
	if _, err := Ours(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestRunWaitsUntilReady, tries again what fails, tells of it once, and ends.
func TestRunWaitsUntilReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(t)
		core, lines := observer.New(zap.InfoLevel)
		ready, done := make(chan struct{}), make(chan error, 1)
		write(t, o.ConfDir, "a file in the folder's place")
		go func() { done <- o.Run(t.Context(), ready, zap.New(core)) }()
		synctest.Wait()
		if _, err := os.Stat(o.BinDir); err == nil {
			t.Error("installed before the node is ready")
		}
		close(ready)
		time.Sleep(time.Hour)
		if n := lines.FilterLevelExact(zap.ErrorLevel).Len(); n != 1 || len(done) > 0 {
			t.Errorf("%d lines tell of the failure", n)
		}
		if err := os.Remove(o.ConfDir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * longestPause)
		synctest.Wait()
		if len(done) != 1 || <-done != nil || read(t, filepath.Join(o.ConfDir, ListName)) != alone {
			t.Error("not tried again")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := o.Run(ctx, make(chan struct{}), zap.NewNop()); err != nil {
			t.Error(err)
		}
	})
}

func TestCheck(t *testing.T) {
	good := options(t)
	for want, change := range map[string]func(*Options){
		"":               func(*Options) {},
		"--cni-conf-dir": func(o *Options) { o.ConfDir = "etc" },
		"--cni-bin-dir":  func(o *Options) { o.BinDir = "./bin" },
		"beside":         func(o *Options) { o.Plugin += "x" },
		"no file":        func(o *Options) { o.Plugin = filepath.Dir(o.Plugin) },
	} {
		o := good
		change(&o)
		if err := o.Check(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestRuntimesNoticeTheList: containerd looks again when a name in the folder is renamed
// away, and not when one comes.
func TestRuntimesNoticeTheList(t *testing.T) {
	o := options(t)
	if err := os.MkdirAll(o.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir()) // On the same filesystem, so that a file from there would do.
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.InotifyAddWatch(fd, o.ConfDir, unix.IN_MOVED_FROM); err != nil {
		t.Fatal(err)
	}
	if err := o.Install(); err != nil {
		t.Fatal(err)
	}
	// The kernel queues the event within the rename.
	if n, err := unix.Read(fd, make([]byte, 4096)); n <= 0 {
		t.Errorf("nothing was renamed within the folder: %v", err)
	}
}
