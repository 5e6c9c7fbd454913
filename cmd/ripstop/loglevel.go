package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/network/status"
)

func newLogLevel() *cobra.Command {
	var runDir string
	levels := []string{"debug", "info", "warn", "error"}
	cmd := &cobra.Command{
		Use:   "log-level [debug|info|warn|error]",
		Short: "Show or change what the daemon logs, while it runs",
		Long: `Show the least level that the daemon of this host logs, or change it. The change
lasts until the daemon is restarted, which goes by its --log-level.`,
		Example: `  ripstop log-level
  ripstop log-level debug   # every single change to the kernel's state
  ripstop log-level info`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || len(args) == 1 && !slices.Contains(levels, args[0]) {
				return fmt.Errorf("%q is none of %s", strings.Join(args, " "), strings.Join(levels, ", "))
			}
			return nil
		},
		ValidArgsFunction: cobra.FixedCompletions(levels, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			client := status.NewClient(runDir)
			defer client.Close()
			if len(args) == 0 {
				level, err := client.Level(cmd.Context())
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), level)
				}
				return err
			}
			level, err := client.SetLevel(cmd.Context(), args[0])
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "log level is %s\n", level)
			}
			return err
		},
	}
	runDirFlag(cmd, &runDir)
	return cmd
}
