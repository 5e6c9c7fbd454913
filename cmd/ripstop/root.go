package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/cmd/internal/settings"
)

// envPrefix begins the environment variables: --etcd-cafile is
// RIPSTOP_ETCD_CAFILE.
const envPrefix = "RIPSTOP"

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "ripstop",
		Short: "Operate a Ripstop network",
		Long: `ripstop operates a Ripstop network: it shows how the node of this host is and whom
it reaches, writes and checks the network's config in etcd, which every node's
ripstopd reads, and takes away what ripstopd has made on a host.

Each flag is also an environment variable: --etcd-cafile is ` + settings.EnvironmentName(envPrefix, "etcd-cafile") + `.`,
		Version:       settings.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return settings.FromEnvironment(cmd.Flags(), envPrefix)
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w (see %s --help)", err, cmd.CommandPath())
	})
	cobra.AddTemplateFunc("columns", settings.Columns)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped columns"))
	root.AddCommand(newStatus(), newPeers(), newDoctor(), newLogLevel(), newConfig(), newCleanup(), newDockerOpts())
	return root
}
