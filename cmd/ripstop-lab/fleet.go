package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/network/fleet"
	"github.com/ripstop-net/ripstop/network/lab"
)

// fleetOptions are the flags of fleet.
type fleetOptions struct {
	nodes, joiners int
	idle           time.Duration
	family         string
	daemon         string
	daemonArgs     []string
	config         string
}

func newFleet(at *place) *cobra.Command {
	var o fleetOptions
	cmd := &cobra.Command{
		Use:   "fleet",
		Short: "Measure many daemons that start at once, and late joiners",
		Long: `fleet starts many real ripstopds at once, each on a host of its own, against one
etcd, and reports how long it takes until every node knows every other, what a
daemon and etcd take while nothing happens, and how soon late joiners are known
everywhere. A node knows another once its kernel has the route. The exit code is 0
only if no daemon ended and every kernel has just the routes that it should have.
etcd's data is written without waiting for the disk.`,
		Example: `  # 200 daemons, 20 late joiners; about two minutes
  ripstop-lab fleet

  # a look
  ripstop-lab fleet --nodes 20 --joiners 5 --idle 0 --ip-family dual`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return measureFleet(cmd.Context(), cmd.OutOrStdout(), at, o)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&o.nodes, "nodes", 200, fmt.Sprintf("`number` of hosts, with the joiners at most %d", fleet.MaxNodes))
	flags.IntVar(&o.joiners, "joiners", 20, "`number` of hosts that join late, one after another")
	flags.DurationVar(&o.idle, "idle", 35*time.Second, "`time` for which daemons that have nothing to do are measured (0 for not at all)")
	flags.StringVar(&o.family, "ip-family", "ipv4", "`families` of underlay and pods: ipv4, ipv6 or dual")
	flags.StringVar(&o.config, "config", "", "network config as `JSON` (VXLAN with VNI 1 if empty)")
	flags.StringVar(&o.daemon, "ripstopd", "", "`path` of ripstopd (the one beside this program if empty)")
	flags.StringArrayVar(&o.daemonArgs, "ripstopd-arg", nil, "a further `flag` for every ripstopd; may be given several times")
	return cmd
}

func measureFleet(ctx context.Context, out io.Writer, at *place, o fleetOptions) error {
	mode, err := lab.ParseMode(o.family)
	switch {
	case err != nil:
		return usageError{fmt.Errorf("--ip-family: %w", err)}
	case o.nodes < 2 || o.nodes > fleet.MaxNodes:
		return usageError{fmt.Errorf("--nodes: %d is outside 2 to %d", o.nodes, fleet.MaxNodes)}
	case o.joiners < 0 || o.nodes+o.joiners > fleet.MaxNodes:
		return usageError{fmt.Errorf("--joiners: %d beside %d nodes: there are at most %d hosts", o.joiners, o.nodes, fleet.MaxNodes)}
	case o.idle < 0:
		return usageError{fmt.Errorf("--idle: %s is negative", o.idle)}
	}
	daemon, release, err := begin(at, mode, o.config, o.daemon)
	if err != nil {
		return err
	}
	defer release()
	progress := newProgress(out)
	report, err := fleet.Run(ctx, fleet.Options{
		Nodes: o.nodes, Joiners: o.joiners, Idle: o.idle,
		Lab: lab.Options{Mode: mode, Dir: at.folder(), Daemon: daemon, DaemonArgs: o.daemonArgs, Config: o.config, Progress: progress.line},
	})
	progress.clear()
	if ctx.Err() != nil {
		return errors.Join(errors.New("interrupted: everything was taken away"), os.RemoveAll(at.folder()))
	}
	if err != nil {
		return fmt.Errorf("%w\nThe logs stay in %s until the next up or down", err, at.folder())
	}
	return errors.Join(report.Write(out), os.RemoveAll(at.folder()))
}
