package network

import (
	"errors"
	"fmt"
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

const configFile = "config.json"

// saveConfig keeps the text of the config that the node works with.
func saveConfig(dir string, text []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the state folder (--state-dir): %w", err)
	}
	path := filepath.Join(dir, configFile)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(text) {
		return nil
	}
	return renameio.WriteFile(path, text, 0o600)
}

// savedConfig reads what saveConfig kept.
func savedConfig(dir string) (chosenConfig, error) {
	text, err := os.ReadFile(filepath.Join(dir, configFile))
	if err != nil {
		return chosenConfig{}, err
	}
	return parseConfig(text)
}
