// Command ripstopd is the daemon: it leases a pod subnet from etcd and keeps
// the kernel's VXLAN forwarding state as the leases of all nodes want it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/cmd/internal/ripstopd"
	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/network"
	"github.com/ripstop-net/ripstop/network/firewall"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/rundir"
	"github.com/ripstop-net/ripstop/subnet/etcd"
)

// Exit codes. That of a wrong flag is EX_USAGE of sysexits.h and not the usual 2, with
// which Go ends a program that panics or that the watchdog aborts: systemd, which does not
// start a daemon with a wrong flag again, would leave those dead too.
const (
	exitFailed = 1
	exitUsage  = 64
)

func main() {
	c, err := ripstopd.Parse(os.Args[1:])
	switch {
	case ripstopd.IsHelp(err):
		return
	case err != nil:
		fmt.Fprintf(os.Stderr, "ripstopd: %v (see ripstopd --help)\n", err)
		os.Exit(exitOf(err))
	case c.Version:
		fmt.Println("ripstopd", settings.Version())
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err = run(ctx, c)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "ripstopd: %v\n", err)
		os.Exit(exitFailed)
	}
}

// exitOf is the exit code for an error of the flags. A file that is not there may come, as
// a secret that is mounted does, so that it is worth another start.
func exitOf(err error) int {
	var file *fs.PathError
	if errors.As(err, &file) {
		return exitFailed
	}
	return exitUsage
}

// run wires the parts and lets the node live until ctx ends.
func run(ctx context.Context, c ripstopd.Config) error {
	log, level, err := settings.Logger(c.LogLevel, term.IsTerminal(int(os.Stderr.Fd())))
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	if len(c.Unknown) > 0 {
		log.Warn("environment has variables that are no flag's and mean nothing: 'ripstopd --help' has the flags", zap.Strings("variables", c.Unknown))
	}
	c.Etcd.Log = log
	c.Node.StoreAddresses, c.Node.Serve = c.Etcd.Addresses, rundir.Serve
	c.Node.Level, c.Node.Version = level, settings.Release()

	store, err := etcd.Open(ctx, c.Etcd)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	k, err := kernel.Open(vxlan.OwnsDevice)
	if err != nil {
		return err
	}
	defer func() { _ = k.Close() }()
	k.TellSettings(func(device, settings string) {
		log.Info("device has settings of its own", zap.String("device", device), zap.String("settings", settings))
	})
	filter, err := firewall.Open(c.Firewall, log)
	if err != nil {
		return err
	}
	defer func() { _ = filter.Close() }()
	node := network.New(c.Node, store, store, k, k, log)
	node.UseFirewall(filter)
	node.UseSettings(host.NewKeeper(host.Proc{}, k, host.Mark(filepath.Join(c.Node.RunDir, "forwards-ipv6")), log))
	group, ctx := errgroup.WithContext(ctx)
	settled, ended := context.WithCancel(ctx)
	group.Go(func() error {
		defer ended()
		return node.Run(ctx)
	})
	group.Go(func() error { return settleMemory(settled, node.Ready()) })
	group.Go(func() error { return c.CNI.Run(settled, node.Ready(), log) })
	if err = group.Wait(); err == nil {
		log.Info("told to stop: lease, device, entries and rules stay as they are")
	}
	return err
}
