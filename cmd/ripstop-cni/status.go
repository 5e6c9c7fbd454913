package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// awayFile notes, in a network's folder, since when the daemon is away or not
// ready.
const awayFile = "daemon_away"

// patience is how long a daemon may be away or not ready before STATUS says so.
// Pods need no daemon for what is in the kernel, and a node that a cluster takes
// for broken at each restart of it would lose the traffic that they do not.
const patience = time.Minute

// status is the verb STATUS: can pods be added, and are those that are there
// looked after?
func status(ctx context.Context, args *skel.CmdArgs) error {
	c, err := load(args.StdinData)
	if err != nil {
		return err
	}
	n, err := readNode(ctx, c)
	if err != nil {
		return err
	}
	if err := mayAdd(ctx, c, n); err != nil {
		return err
	}
	d := askDaemon(ctx, c.RunDir)
	if d.running && len(d.failing) == 0 {
		return settled(c)
	}
	away, err := awayFor(c)
	if err != nil || away < patience {
		return err
	}
	what, todo := "ripstopd is not running", "start ripstopd, and look at its log if it ends again"
	if d.running {
		what, todo = "ripstopd runs, but "+strings.Join(d.failing, "; "), "see its log"
	}
	return fail(codeLimited, todo, "pods talk by what is in the kernel, and nothing follows the other nodes' changes: for %s %s", away.Round(time.Second), what)
}

// mayAdd asks what ADD would.
func mayAdd(ctx context.Context, c config, n node) error {
	h, err := openHost()
	if err != nil {
		return err
	}
	defer h.Close()
	seen, err := survey(h, c, n)
	if err != nil {
		return err
	}
	if err := inTheWay(seen, c, n); err != nil {
		return asNotReady(err)
	}
	a, err := openAllocations(c)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	return asNotReady(a.hold(ctx, func() error {
		held, err := a.list()
		if err != nil {
			return err
		}
		return mayAllocate(held, holder{}, n, wishes{}, a.dir)
	}))
}

// settled forgets that the daemon was away.
func settled(c config) error {
	if err := os.Remove(filepath.Join(c.DataDir, c.Name, awayFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("note that ripstopd is back: %w", err)
	}
	return nil
}

// awayFor tells since when, and begins to count where nothing is noted. The
// count is by the clock that runs from boot to boot and that nobody sets.
func awayFor(c config) (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0, fmt.Errorf("read the clock: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, fmt.Errorf("find out which boot this is: %w", err)
	}
	dir := filepath.Join(c.DataDir, c.Name)
	path := filepath.Join(dir, awayFile)
	var since int64
	text, err := os.ReadFile(path)
	if err == nil {
		var of string
		if _, err := fmt.Sscan(string(text), &of, &since); err == nil && of == strings.TrimSpace(string(boot)) && since <= now.Nano() {
			return time.Duration(now.Nano() - since), nil
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, fmt.Errorf("note since when ripstopd is away: %w", err)
	}
	if err := renameio.WriteFile(path, fmt.Appendf(nil, "%s %d\n", strings.TrimSpace(string(boot)), now.Nano()), 0o644); err != nil {
		return 0, fmt.Errorf("note since when ripstopd is away: %w", err)
	}
	return 0, nil
}
