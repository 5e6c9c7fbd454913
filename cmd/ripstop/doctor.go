package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ripstop-net/ripstop/cmd/internal/ripstopd"
	"github.com/ripstop-net/ripstop/cmd/internal/settings"
	"github.com/ripstop-net/ripstop/network/cnifiles"
	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/network/doctor/path"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/status"
)

// daemonEnvFile is where the unit of ripstopd reads its variables.
const daemonEnvFile = "/etc/ripstop/ripstopd.env"

// patient has the flags of ripstop doctor.
type patient struct {
	runDir, stateDir, subnetFile, confDir, binDir, node, envFile string
	guard, checksum, output                                      string
	checks                                                       []string
	paths                                                        path.Choice
	store                                                        settings.Etcd
}

func newDoctor() *cobra.Command {
	var p patient
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find what is wrong with this node and its paths, and say what to do",
		Long: `Look at this node from all sides, and at the paths to the peers that are named and
to some others, and say for each thing that is wrong what was seen and what is to be
done, the worst first. It asks the daemon, but does without it: it reads the kernel, the
firewall, the files and the store by itself. It changes nothing. Run it as root, where
the daemon runs.

A path is tried out by the underlay and by the overlay, each way apart, with pings and
with requests to the peer's daemon, and by packets of the size that pods may send.

What the daemon was told it takes from its command line while it runs, from its
variables RIPSTOPD_… in the environment, and from its settings in --env-file.

It ends with 0 if all is well, 2 if there are warnings, 3 if there are failures, and 1
if it could not look. Documentation/troubleshooting.md has the checks by symptom.`,
		Example: `  ripstop doctor
  ripstop doctor -o wide                     # what was seen also where all is well
  ripstop doctor --check device,entries
  ripstop doctor --peer worker-7             # or an address of its own, or a pod's
  ripstop doctor --check path --peers 20
  ripstop doctor -o json | jq -r '.[] | select(.severity == "failure") | .summary'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return p.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVarP(&p.output, "output", "o", "", "`form`: json, or wide for all that was seen")
	complete(cmd, "output", "json", "wide")
	flags.StringSliceVar(&p.checks, "check", nil, "only the checks of these `ids`")
	flags.StringSliceVar(&p.paths.Peers, "peer", nil, "look at the paths to these `peers`: a node's name, its public address, or an address of its pods")
	flags.IntVar(&p.paths.Some, "peers", somePeers, "look at the paths to so `many` more: to those that do not answer the daemon's probing, and then to any")
	flags.StringVar(&p.envFile, "env-file", daemonEnvFile, "`file` with the daemon's variables")
	runDirFlag(cmd, &p.runDir)
	flags.StringVar(&p.stateDir, "state-dir", "/var/lib/ripstop", "the daemon's `folder` of that name")
	_ = cmd.MarkFlagDirname("state-dir") // The flag is there.
	flags.StringVar(&p.subnetFile, "subnet-file", "/run/flannel/subnet.env", "the daemon's `file` of that name")
	flags.StringVar(&p.node, "node-name", "", "`name` of this node (the daemon says it, or what is saved, else the host's name)")
	flags.StringVar(&p.confDir, "cni-conf-dir", cnifiles.DefaultConfDir, "`folder` in which runtimes look for CNI lists")
	flags.StringVar(&p.binDir, "cni-bin-dir", "/opt/cni/bin", "`folder` in which runtimes look for CNI plugins")
	flags.StringVar(&p.guard, "guard", "on", "`on|off`, as the daemon was told by that flag")
	flags.StringVar(&p.checksum, "tx-checksum", string(host.TxChecksumAuto), "`auto|on|off`, as the daemon was told by that flag")
	p.store.Register(flags)
	_ = cmd.RegisterFlagCompletionFunc("check", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return checkIDs(), cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// somePeers are as many as are usually looked at: of a trouble that all have, some are
// enough.
const somePeers = 3

// checkIDs are those of all checks.
func checkIDs() (out []string) {
	for _, c := range doctor.Node(doctor.Sources{}, path.Check(path.Choice{})) {
		out = append(out, c.ID)
	}
	return out
}

func (p *patient) run(cmd *cobra.Command) error {
	ctx := cmd.Context()
	if p.output != "" && p.output != "json" && p.output != "wide" {
		return fmt.Errorf("--output: %q is none of json, wide", p.output)
	}
	if p.paths.Some < 0 {
		return fmt.Errorf("--peers: %d is negative", p.paths.Some)
	}
	for _, id := range p.checks {
		if !slices.Contains(checkIDs(), id) {
			return fmt.Errorf("--check: there is no %q; there are %s", id, strings.Join(checkIDs(), ", "))
		}
	}
	if err := p.learn(ctx, cmd.Flags()); err != nil {
		return err
	}
	sources, closeAll, err := p.sources(ctx)
	if err != nil {
		return err
	}
	defer closeAll()
	checks := doctor.Node(sources, path.Check(p.paths))
	if len(p.checks) > 0 {
		checks = slices.DeleteFunc(checks, func(c doctor.Check) bool { return !slices.Contains(p.checks, c.ID) })
	}
	said := newProgress(cmd.ErrOrStderr())
	verdicts := doctor.Run(ctx, checks, said.began)
	said.done()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	doctor.Sort(verdicts)
	if p.output == "json" {
		if verdicts == nil {
			verdicts = []doctor.Verdict{}
		}
		if err := (&ask{}).writeJSON(cmd.OutOrStdout(), verdicts); err != nil {
			return err
		}
	} else {
		s := newScreen(cmd.OutOrStdout())
		showVerdicts(s, verdicts, p.output == "wide")
	}
	if code := doctor.Worst(verdicts).ExitCode(); code != 0 {
		return &exitError{code}
	}
	return nil
}

// exitError ends the program with a code and without a word: all has been said.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// learn finds out what the daemon was told, for the flags that were not given here.
func (p *patient) learn(ctx context.Context, flags *pflag.FlagSet) error {
	if err := settings.FromEnvironment(flags, ripstopd.EnvPrefix); err != nil {
		return err
	}
	// Its command line wins over its file, but it takes the folder from that to find it.
	dir := p.runDir
	if !flags.Changed("run-dir") {
		probe := pflag.NewFlagSet("", pflag.ContinueOnError)
		probe.StringVar(&dir, "run-dir", dir, "")
		if err := settings.FromFile(probe, ripstopd.EnvPrefix, p.envFile); err != nil {
			return fmt.Errorf("--env-file: %w", err)
		}
	}
	if err := fromCommandLine(ctx, flags, dir); err != nil {
		return err
	}
	if err := settings.FromFile(flags, ripstopd.EnvPrefix, p.envFile); err != nil {
		return fmt.Errorf("--env-file: %w", err)
	}
	return nil
}

// fromCommandLine reads the command line of the daemon of a run folder.
func fromCommandLine(ctx context.Context, flags *pflag.FlagSet, runDir string) error {
	client := status.NewClient(runDir)
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	process, err := client.Process(ctx)
	if err != nil || process == 0 {
		return nil // That there is none is for a check to say; it may be in another PID namespace.
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", process))
	if err != nil {
		return nil // It has ended.
	}
	words := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
	if filepath.Base(words[0]) != "ripstopd" {
		return nil
	}
	return fromWords(flags, words[1:])
}

// fromWords sets the flags that were left alone, and that the daemon has too, as it
// reads a command line of its own. What a daemon of another version knows beside is
// passed over.
func fromWords(flags *pflag.FlagSet, words []string) error {
	left := map[string]bool{}
	flags.VisitAll(func(f *pflag.Flag) { left[f.Name] = !f.Changed })
	theirs, _ := ripstopd.Flags()
	theirs.ParseErrorsAllowlist.UnknownFlags = true
	theirs.Usage = func() {}
	err := theirs.ParseAll(words, func(f *pflag.Flag, value string) error {
		if !left[f.Name] {
			return nil
		}
		return flags.Set(f.Name, value)
	})
	if err != nil {
		return fmt.Errorf("the daemon's command line: %w", err)
	}
	return nil
}
