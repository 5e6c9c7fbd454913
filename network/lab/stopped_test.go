package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stillLimit is more than a process takes to stand still, however busy the machine is.
const stillLimit = 30 * time.Second

// standStill stops a process (SIGSTOP), and returns once it does nothing more. The signal
// alone stops nothing: each thread runs on until it sees it, and what a daemon hears of
// meanwhile it heals.
func standStill(pid int) error {
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		return fmt.Errorf("stop process %d: %w", pid, err)
	}
	var still bool
	_, in := timeUntil(stillLimit, func() bool { still = standsStill(pid); return still })
	if !in {
		return errors.Join(fmt.Errorf("process %d does not stand still after %s", pid, stillLimit), goOn(pid))
	}
	return nil
}

// goOn undoes standStill.
func goOn(pid int) error { return unix.Kill(pid, unix.SIGCONT) }

// standsStill tells whether all threads of a process are stopped. /proc/PID/stat would
// tell it of the first one only. It is read twice: until all are, one may make another.
func standsStill(pid int) bool {
	for range 2 {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/stat", pid)) // The pattern is well formed.
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			// The name before the state may have anything in it, even a bracket.
			at := bytes.LastIndex(stat, []byte(") "))
			if err != nil || at < 0 || !bytes.HasPrefix(stat[at+2:], []byte("T")) {
				return false
			}
		}
		if len(threads) == 0 {
			return false
		}
	}
	return true
}

// busyEnv makes the test binary a process with many busy threads.
const busyEnv = "RIPSTOP_TEST_BUSY"

// runIfBusy is the main of such a process. It says when all threads are at work.
func runIfBusy() {
	if os.Getenv(busyEnv) == "" {
		return
	}
	const threads = 8
	runtime.GOMAXPROCS(threads + 1)
	started := make(chan struct{}, threads)
	for range threads {
		go func() {
			runtime.LockOSThread()
			for started <- struct{}{}; ; {
			}
		}()
	}
	for range threads {
		<-started
	}
	fmt.Println("busy")
	select {}
}

// TestWhoStandsStillDoesNothingMore: of a process with many threads that are all busy,
// none takes processor time any more.
func TestWhoStandsStillDoesNothingMore(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), busyEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	spent := func() time.Duration {
		took, err := ProcessorTime(pid)
		if err != nil {
			t.Fatal(err)
		}
		return took
	}
	for range 10 {
		if err := standStill(pid); err != nil {
			t.Fatal(err)
		}
		before := spent()
		time.Sleep(20 * time.Millisecond)
		if after := spent(); after != before {
			t.Fatalf("it took %s before it stood still, and %s more after", before, after-before)
		}
		if err := goOn(pid); err != nil {
			t.Fatal(err)
		}
		eventually(t, stillLimit, "it goes on", func() bool { return spent() > before })
	}
}
