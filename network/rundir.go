package network

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/network/rundir"
)

// lockRunDir holds the run folder.
func lockRunDir(dir string) (unlock func(), err error) {
	unlock, err = rundir.Lock(dir)
	return unlock, stopIt(err)
}

// stopIt says what to do about another daemon.
func stopIt(err error) error {
	var held *rundir.HeldError
	if !errors.As(err, &held) {
		return err
	}
	return fmt.Errorf("another ripstopd (process %s) runs with %s: stop it; a second one needs a network namespace, --run-dir, --state-dir and --subnet-file of its own",
		held.Process, held.Dir)
}

// alone makes the node known as the one that serves in the network namespace until stop is
// called. It returns an error where a daemon of another run folder does: the two would fight
// over the same device, routes and rules. One that only waits fights with nobody.
func (n *Node) alone(ctx context.Context) (stop func(), err error) {
	if n.opts.Serve == nil {
		return func() {}, nil
	}
	stop, err = n.opts.Serve(ctx, n.opts.RunDir)
	var held *rundir.HeldError
	if err == nil || errors.As(err, &held) {
		return stop, stopIt(err)
	}
	n.log.Warn("whether another daemon has this network namespace is not known", zap.Error(err))
	return stop, nil
}

// FlannelsPath is the file in a run folder that says that flannel's routes were taken
// over since the host's boot, which both end with, as do flannel's rules.
func FlannelsPath(runDir string) string { return filepath.Join(runDir, "was-flannels") }

func wasFlannels(runDir string) (bool, error) {
	_, err := os.Stat(FlannelsPath(runDir))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return err == nil, nil
	}
	return false, fmt.Errorf("read whether this node was flannel's: %w", err)
}

func noteFlannels(runDir string) error {
	if err := renameio.WriteFile(FlannelsPath(runDir), nil, 0o600); err != nil {
		return fmt.Errorf("note that this node was flannel's: %w", err)
	}
	return nil
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
