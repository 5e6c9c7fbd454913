package rundir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestLockIsTheOwnersAlone: flock(2) takes whoever can read the file.
func TestLockIsTheOwnersAlone(t *testing.T) {
	for name, existing := range map[string]bool{"new": false, "of old": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, lockFile)
			if existing {
				if err := os.WriteFile(path, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			unlock, err := Lock(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer unlock()
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			var held *HeldError
			if _, err := LockUnused(dir); !errors.As(err, &held) {
				t.Errorf("a second one: %v", err)
			}
		})
	}
}
