package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/backend/planners"
	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
)

func newConfig() *cobra.Command {
	var store settings.Etcd
	config := &cobra.Command{
		Use:   "config",
		Short: "Write, show and check the network config in etcd",
		Args:  cobra.NoArgs, // Else a misspelt subcommand prints help and succeeds.
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	store.Register(config.PersistentFlags())
	config.AddCommand(newConfigSet(&store), newConfigGet(&store), newConfigCheck(&store))
	return config
}

// source says how a config is given on the command line.
const source = `The config is given as JSON, as the name of a file that holds it, or as - for
standard input.`

// oneConfig is for commands that take a config, which may be left out where least is 0.
func oneConfig(least int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return fmt.Errorf("which config? Give JSON such as '{\"Network\": \"10.5.0.0/16\"}', a file that holds it, or - (see %s --help)", cmd.CommandPath())
		case len(args) > 1:
			return fmt.Errorf("%s takes one config, and there is %q too: put JSON in quotes (see %s --help)", cmd.Name(), args[1], cmd.CommandPath())
		}
		return nil
	}
}

func newConfigSet(store *settings.Etcd) *cobra.Command {
	var force bool
	set := &cobra.Command{
		Use:   "set JSON|FILE|-",
		Short: "Write the network config, if it is sound and strands no lease",
		Long: `Write the network config to etcd. A malformed one is refused, and so is one that
has no room for a lease that a node holds: its pods would be cut off. Daemons
that run go on with the config they started with; they read it when restarted.

` + source,
		Example: `  ripstop config set '{"Network": "10.5.0.0/16"}'
  ripstop config set '{"EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:10:5::/48"}'
  ripstop config set net.json --etcd-endpoints https://10.0.0.1:2379 --etcd-cafile ca.crt`,
		Args: oneConfig(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readConfig(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			cfg, err := checkConfig(text, cmd.ErrOrStderr())
			if err != nil {
				return fmt.Errorf("%w: nothing was written", err)
			}
			return withStore(cmd.Context(), store, func(s *etcd.Store) error { return setConfig(cmd, s, text, cfg, force) })
		},
	}
	set.Flags().BoolVar(&force, "force", false, "write it even if it strands leases")
	return set
}

// setConfig writes a sound config over the one that was looked at, so that two
// operators at once do not overwrite one another unseen.
func setConfig(cmd *cobra.Command, s *etcd.Store, text []byte, cfg subnet.Config, force bool) error {
	ctx := cmd.Context()
	old, at, err := s.Config(ctx)
	if err != nil {
		return err
	}
	if bytes.Equal(old, text) {
		fmt.Fprintln(cmd.OutOrStdout(), "unchanged: etcd has this config already")
		return nil
	}
	seen, err := s.List(ctx)
	if err != nil {
		return err
	}
	if stranded := cfg.Stranded(seen.Leases); len(stranded) > 0 {
		report(cmd.ErrOrStderr(), "strands", stranded)
		if !force {
			return fmt.Errorf("%d of %d leases have no room in this config: nothing was written; widen it, or write it all the same with --force",
				len(stranded), len(seen.Leases))
		}
	}
	if err := s.SetConfig(ctx, text, at); err != nil {
		if errors.Is(err, subnet.ErrConflict) {
			return errors.New("the config was changed by another at this moment: look at it with 'ripstop config get' and try again")
		}
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "written: %s\n", summary(cfg))
	switch {
	case old == nil:
	case differsOnWire(old, cfg):
		fmt.Fprintln(cmd.OutOrStdout(), "Daemons that run keep the config they started with. Backend differs: a node that has restarted and one that has not cannot reach one another. Restart them all at once.")
	default:
		fmt.Fprintln(cmd.OutOrStdout(), "Daemons that run keep the config they started with: restart them one by one to apply this one.")
	}
	return nil
}

// differsOnWire tells whether nodes of the old config cannot talk to those of
// the new.
func differsOnWire(old []byte, cfg subnet.Config) bool {
	was, err := subnet.ParseConfig(old)
	if err != nil {
		return false
	}
	return !planners.Compatible(was.Backend, cfg.Backend)
}

func newConfigGet(store *settings.Etcd) *cobra.Command {
	return &cobra.Command{
		Use:     "get",
		Short:   "Print the network config as it stands in etcd",
		Example: `  ripstop config get --etcd-endpoints http://10.0.0.1:2379 > net.json`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withStore(cmd.Context(), store, func(s *etcd.Store) error {
				text, _, err := s.Config(cmd.Context())
				if err != nil {
					return err
				}
				if text == nil {
					return noConfig(s)
				}
				fmt.Fprintln(cmd.OutOrStdout(), strings.TrimRight(string(text), "\n"))
				return nil
			})
		},
	}
}

// noConfig names the key that was looked at: with another --etcd-prefix it is elsewhere.
func noConfig(s *etcd.Store) error {
	return fmt.Errorf("there is no network config in etcd (%s): write one with 'ripstop config set'", s.ConfigKey())
}

func newConfigCheck(store *settings.Etcd) *cobra.Command {
	return &cobra.Command{
		Use:   "check [JSON|FILE|-]",
		Short: "Check a network config, or that in etcd, against the leases there",
		Long: `Check a network config and every record in etcd against it, and write nothing.
Without an argument the config in etcd is checked. It fails if the config is
malformed or a lease has no room in it; records that daemons pass over are named.

` + source,
		Example: `  ripstop config check
  ripstop config check new.json --etcd-endpoints http://10.0.0.1:2379`,
		Args: oneConfig(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withStore(cmd.Context(), store, func(s *etcd.Store) error { return check(cmd, s, args) })
		},
	}
}

func check(cmd *cobra.Command, s *etcd.Store, args []string) error {
	seen, err := s.List(cmd.Context())
	if err != nil {
		return err
	}
	text := seen.Config
	if len(args) == 1 {
		if text, err = readConfig(args[0], cmd.InOrStdin()); err != nil {
			return err
		}
	}
	if text == nil {
		return noConfig(s)
	}
	cfg, err := checkConfig(text, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "sound: %s\n", summary(cfg))
	report(cmd.OutOrStdout(), "unreadable", seen.Bad)
	stranded := cfg.Stranded(seen.Leases)
	report(cmd.OutOrStdout(), "strands", stranded)
	if len(stranded) > 0 {
		return fmt.Errorf("%d of %d leases have no room in this config", len(stranded), len(seen.Leases))
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%d leases, all within it\n", len(seen.Leases))
	return nil
}

// checkConfig reads a config as a daemon will, and warns of keys that mean nothing.
func checkConfig(text []byte, warn io.Writer) (subnet.Config, error) {
	cfg, err := subnet.ParseConfig(text)
	if err != nil {
		return cfg, err
	}
	opts, err := planners.Parse(cfg.Backend)
	if err != nil {
		return cfg, err
	}
	unknown := subnet.UnknownConfigKeys(text)
	for _, key := range planners.UnknownKeys(cfg.Backend) {
		unknown = append(unknown, "Backend."+key)
	}
	for _, key := range unknown {
		fmt.Fprintf(warn, "warning: the key %q means nothing and is passed over\n", key)
	}
	for _, what := range subnet.UnusedConfigKeys(text) {
		fmt.Fprintf(warn, "warning: %s\n", what)
	}
	for _, what := range opts.Unheeded() {
		fmt.Fprintf(warn, "warning: an option of Backend has no effect: %s\n", what)
	}
	return cfg, nil
}

func readConfig(arg string, in io.Reader) ([]byte, error) {
	var text []byte
	var err error
	switch {
	case strings.HasPrefix(strings.TrimSpace(arg), "{"):
		text = []byte(arg)
	case arg == "-":
		text, err = io.ReadAll(in)
	default:
		text, err = os.ReadFile(arg)
	}
	if err != nil {
		return nil, fmt.Errorf("read the config: %w: give JSON such as '{\"Network\": \"10.5.0.0/16\"}', a file that holds it, or -", err)
	}
	return bytes.TrimSpace(text), nil
}

// withStore opens the store for one command.
func withStore(ctx context.Context, flags *settings.Etcd, do func(*etcd.Store) error) (err error) {
	opts, err := flags.Options()
	if err != nil {
		return err
	}
	s, err := etcd.Open(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err = do(s); etcd.IsAway(err) && !flags.Elsewhere() {
		return fmt.Errorf("%w: if etcd is elsewhere, give --etcd-endpoints", err)
	}
	return err
}

// summary says in a line what a config gives.
func summary(c subnet.Config) string {
	var parts []string
	for _, f := range c.Families() {
		r := c.Ranges[f]
		parts = append(parts, fmt.Sprintf("%s with %d subnets of /%d from %s to %s", r.Network, r.Size(), r.SubnetLen, r.Min, r.Max))
	}
	return strings.Join(parts, "; ") + "; backend " + c.Backend.Type
}

func report(to io.Writer, what string, records []subnet.BadRecord) {
	for _, r := range records {
		fmt.Fprintf(to, "%s %s\n", what, r)
	}
}
