package network

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// lockRunDir makes the run folder and holds it against a second daemon, which
// would fight this one over the same device. The kernel lets go of the lock
// when the process ends, however it ends.
func lockRunDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the run folder (--run-dir): %w", err)
	}
	path := filepath.Join(dir, "ripstopd.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the run folder (--run-dir): %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another ripstopd (process %s) runs with %s: stop it; a second one needs a network namespace, --run-dir, --state-dir and --subnet-file of its own",
				strings.TrimSpace(string(holder)), dir)
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// Only for the message above: the lock itself is the kernel's.
	_ = f.Truncate(0)
	_, _ = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return func() { _ = f.Close() }, nil
}

// token reads what tells this machine from another of the same name, and makes
// it where there is none, which is the first start of a boot. It ends with the
// boot, so no image carries it along.
func token(dir string) (text string, booted bool, err error) {
	path := filepath.Join(dir, "token")
	old, err := os.ReadFile(path)
	if text := strings.TrimSpace(string(old)); err == nil && text != "" {
		return text, false, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, fmt.Errorf("read this machine's token: %w", err)
	}
	text = rand.Text()
	if err := renameio.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		return "", false, fmt.Errorf("write this machine's token: %w", err)
	}
	return text, true, nil
}
