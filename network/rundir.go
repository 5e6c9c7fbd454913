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

	"github.com/ripstop-net/ripstop/network/rundir"
)

// lockRunDir holds the run folder.
func lockRunDir(dir string) (unlock func(), err error) {
	unlock, err = rundir.Lock(dir)
	var held *rundir.HeldError
	if errors.As(err, &held) {
		err = fmt.Errorf("another ripstopd (process %s) runs with %s: stop it; a second one needs a network namespace, --run-dir, --state-dir and --subnet-file of its own",
			held.Process, held.Dir)
	}
	return unlock, err
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
