package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/network/bench"
)

// benchOptions are the flags of bench.
type benchOptions struct {
	peers   []int
	short   bool
	traffic bool
	daemon  string
	write   string
	parts   string
}

func newBench() *cobra.Command {
	o := benchOptions{}
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a daemon among many peers beside what the kernel takes alone",
		Long: `bench runs a real ripstopd on one host against a real etcd that holds the records
of many peers, and measures cold start, warm restart, single changes, bursts,
memory and processor time for each number of peers; and in the same run what the
kernel takes when the same entries are simply put into it. It takes some minutes.`,
		Example: `  # print the table
  ripstop-lab bench

  # only these numbers of peers, each thing once
  ripstop-lab bench --peers 100,1000 --short

  # throughput between pods and hosts, and the guard's set, alone: half a minute
  ripstop-lab bench --traffic

  # as make bench does
  ripstop-lab bench --write Documentation`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return measure(cmd.Context(), cmd.OutOrStdout(), o) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntSliceVar(&o.peers, "peers", bench.UsualPeers, "`numbers` of peers")
	flags.BoolVar(&o.short, "short", false, "measure each thing once and smaller bursts")
	flags.BoolVar(&o.traffic, "traffic", false, "measure traffic between pods alone; --write puts it into a performance.md that is there")
	flags.StringVar(&o.write, "write", "", "`folder` into which performance.md and its picture are written")
	flags.StringVar(&o.parts, "parts", "", "`file` with benchstat's table of the Go benchmarks, to be shown in performance.md")
	flags.StringVar(&o.daemon, "ripstopd", "", "`path` of ripstopd (the one beside this program if empty)")
	return cmd
}

func measure(ctx context.Context, out io.Writer, o benchOptions) error {
	for _, n := range o.peers {
		if n < 1 || n > bench.MaxPeers {
			return usageError{fmt.Errorf("--peers: %d is outside 1 to %d", n, bench.MaxPeers)}
		}
	}
	if len(o.peers) == 0 {
		return usageError{fmt.Errorf("--peers must name a number")}
	}
	if err := needRoot(); err != nil {
		return err
	}
	daemon, err := findDaemon(o.daemon)
	if err != nil {
		return err
	}
	if o.traffic {
		return measureTraffic(ctx, out, daemon, o)
	}
	progress := newProgress(out)
	r, err := bench.Run(ctx, bench.Options{Peers: slices.Compact(slices.Sorted(slices.Values(o.peers))), Short: o.short, Daemon: daemon, Progress: progress.line})
	progress.clear()
	if err != nil {
		return err
	}
	parts := ""
	if o.parts != "" {
		text, err := os.ReadFile(o.parts)
		if err != nil {
			return fmt.Errorf("--parts: %w", err)
		}
		parts = string(text)
	}
	if o.write != "" {
		return r.Write(o.write, "ripstopd "+settings.Version(), parts)
	}
	return r.Page(out, "ripstopd "+settings.Version(), parts)
}

func measureTraffic(ctx context.Context, out io.Writer, daemon string, o benchOptions) error {
	progress := newProgress(out)
	t, err := bench.RunTraffic(ctx, bench.Options{Short: o.short, Daemon: daemon, Progress: progress.line})
	progress.clear()
	if err != nil {
		return err
	}
	version := "ripstopd " + settings.Version()
	if o.write != "" {
		return t.Write(o.write, version)
	}
	text, err := t.Text(version)
	if err != nil {
		return err
	}
	_, err = io.WriteString(out, text)
	return err
}
