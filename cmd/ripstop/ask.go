package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/network/status"
)

// defaultRunDir is ripstopd's own default.
const defaultRunDir = "/run/ripstop"

// ask are the flags of the commands that ask the daemon of this host.
type ask struct {
	runDir, output string
	watch          bool
	interval       time.Duration
}

// shortestInterval keeps --watch from being a load.
const shortestInterval = 100 * time.Millisecond

func (a *ask) register(cmd *cobra.Command) {
	runDirFlag(cmd, &a.runDir)
	cmd.Flags().StringVarP(&a.output, "output", "o", "", "`form`: json, or wide for all that there is, in lines as long as they are")
	cmd.Flags().BoolVarP(&a.watch, "watch", "w", false, "ask again and again until Ctrl-C; with -o json a line each time")
	cmd.Flags().DurationVar(&a.interval, "interval", 2*time.Second, "`time` between the questions of --watch")
	complete(cmd, "output", "json", "wide")
	cmd.Args = noArguments
	cmd.ValidArgsFunction = cobra.NoFileCompletions
}

// noArguments is for commands that have flags only.
func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s takes no argument such as %q (see %s --help)", cmd.Name(), args[0], cmd.CommandPath())
}

func runDirFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "run-dir", defaultRunDir, "the daemon's `folder` of that name")
	_ = cmd.MarkFlagDirname("run-dir") // The flag is there.
}

// complete says what a shell offers for a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// run asks once, or again and again. Under --watch a daemon that is away is told
// of in its place on the screen: it may be about to be restarted.
func (a *ask) run(cmd *cobra.Command, once func(context.Context, *status.Client, screen) error) error {
	switch {
	case a.output != "" && a.output != "json" && a.output != "wide":
		return fmt.Errorf("--output: %q is none of json, wide", a.output)
	case a.interval < shortestInterval:
		return fmt.Errorf("--interval: %s is less than %s", a.interval, shortestInterval)
	}
	client := status.NewClient(a.runDir)
	defer client.Close()
	ctx, s := cmd.Context(), newScreen(cmd.OutOrStdout())
	switch a.output {
	case "wide":
		s.width = 0
	case "json": // For a program, on a terminal too.
		s.terminal = false
	}
	if !a.watch {
		return once(ctx, client, s)
	}
	tick := time.NewTicker(a.interval)
	defer tick.Stop()
	for {
		s.clear()
		if err := once(ctx, client, s); err != nil && ctx.Err() == nil {
			if !errors.Is(err, status.ErrNotRunning) {
				return err
			}
			if err := a.away(s, err); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !s.terminal && a.output != "json" {
			fmt.Fprintln(s.to)
		}
	}
}

// away tells of a daemon that is away, in the place of its answer.
func (a *ask) away(s screen, why error) error {
	if a.output == "json" {
		return a.writeJSON(s.to, status.Error{Error: why.Error()})
	}
	for _, line := range wrap(why.Error(), s.width) {
		fmt.Fprintln(s.to, line)
	}
	return nil
}

// writeJSON writes a value for programs, under --watch in one line, so that a reader
// knows where each ends.
func (a *ask) writeJSON(to io.Writer, value any) error {
	e := json.NewEncoder(to)
	if !a.watch {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(value); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}
