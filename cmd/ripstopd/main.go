// Command ripstopd is the daemon: it leases a pod subnet from etcd and keeps
// the kernel's VXLAN forwarding state as the leases of all nodes want it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/network"
	"github.com/ripstop-net/ripstop/network/firewall"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/subnet/etcd"
)

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	c, err := parse(os.Args[1:])
	switch {
	case isHelp(err):
		return
	case err != nil:
		fmt.Fprintf(os.Stderr, "ripstopd: %v (see ripstopd --help)\n", err)
		os.Exit(exitUsage)
	case c.version:
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

// run wires the parts and lets the node live until ctx ends.
func run(ctx context.Context, c config) error {
	log, level, err := settings.Logger(c.logLevel, term.IsTerminal(int(os.Stderr.Fd())))
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }()
	c.etcd.Log = log
	c.node.StoreAddresses = c.etcd.Addresses
	c.node.Level, c.node.Version = level, settings.Release()

	store, err := etcd.Open(ctx, c.etcd)
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
	filter, err := firewall.Open(c.firewall, log)
	if err != nil {
		return err
	}
	defer func() { _ = filter.Close() }()
	node := network.New(c.node, store, store, k, k, log)
	node.UseFirewall(filter)
	node.UseSettings(host.NewKeeper(host.Proc{}, k, log))
	group, ctx := errgroup.WithContext(ctx)
	settled, ended := context.WithCancel(ctx)
	group.Go(func() error {
		defer ended()
		return node.Run(ctx)
	})
	group.Go(func() error { return settleMemory(settled, node.Ready()) })
	group.Go(func() error { return c.cni.Run(settled, node.Ready(), log) })
	if err = group.Wait(); err == nil {
		log.Info("told to stop: lease, device, entries and rules stay as they are")
	}
	return err
}
