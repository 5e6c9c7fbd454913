// Package rundir is the folder for what ends with the boot: one daemon has it at
// a time.
package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockFile is held by the daemon to which the folder belongs.
const lockFile = "ripstopd.lock"

// HeldError says that a daemon has the folder, or another one in the same network
// namespace.
type HeldError struct {
	Dir string
	// Process is its number, as far as that is known.
	Process string
}

// Error implements error.
func (e *HeldError) Error() string {
	return fmt.Sprintf("a ripstopd (process %s) runs with --run-dir %s", e.Process, e.Dir)
}

// Lock makes the folder and holds it, against a second daemon, which would fight
// the first over the same device. The kernel lets go of the lock when the process
// ends, however it ends. Where a daemon has it, the error is a [*HeldError].
func Lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the run folder (--run-dir): %w", err)
	}
	f, err := lock(dir, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return nil, err
	}
	// Only for the message of others: the lock itself is the kernel's.
	_ = f.Truncate(0)
	_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return func() { _ = f.Close() }, nil
}

// LockUnused is Lock for who is no daemon: it makes nothing and leaves no trace.
// Where there is no folder or no lock in it, there is nothing to hold.
func LockUnused(dir string) (unlock func(), err error) {
	f, err := lock(dir, os.O_RDWR)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

func lock(dir string, flags int) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the run folder (--run-dir): %w", err)
	}
	// flock(2) asks for no more than a file that can be read: with any other mode
	// whoever is on the host could keep the daemon from starting.
	if err := f.Chmod(0o600); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock the run folder (--run-dir): %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, &HeldError{Dir: dir, Process: strings.TrimSpace(string(holder))}
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
