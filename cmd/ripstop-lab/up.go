package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// upOptions are the flags of up.
type upOptions struct {
	nodes, pods int
	family      string
	daemon      string
	daemonArgs  []string
	config      string
	once        bool
}

// patience is how long the pods are given to reach each other.
const patience = 10 * time.Second

func newUp(at *place) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a lab up and keep it until Ctrl-C",
		Long: `up makes the hosts, starts etcd and a ripstopd on each host, makes the pods, lets
every pod call every other, and shows what it found. It stays in the foreground;
Ctrl-C or 'ripstop-lab down' takes everything away.`,
		Example: `  # three hosts, both families
  ripstop-lab up

  # five hosts with two pods each, IPv6 alone
  ripstop-lab up --nodes 5 --pods 2 --ip-family ipv6

  # does it work here? exit code 0 if every pair of pods talked
  ripstop-lab up --once

  # another network config, another log level
  ripstop-lab up --ip-family ipv4 --config '{"Network": "10.20.0.0/16", "Backend": {"Type": "vxlan", "VNI": 7}}' --ripstopd-arg=--log-level=debug`,
		Args: arguments(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return up(cmd.Context(), cmd.OutOrStdout(), at, o) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&o.nodes, "nodes", 3, fmt.Sprintf("`number` of hosts, at most %d", lab.MaxNodes))
	flags.IntVar(&o.pods, "pods", 1, "`number` of pods behind each host")
	flags.StringVar(&o.family, "ip-family", "dual", "`families` of underlay and pods: ipv4, ipv6 or dual")
	flags.StringVar(&o.config, "config", "", "network config as `JSON` (VXLAN with VNI 1 if empty)")
	flags.StringVar(&o.daemon, "ripstopd", "", "`path` of ripstopd (the one beside this program if empty)")
	flags.StringArrayVar(&o.daemonArgs, "ripstopd-arg", nil, "a further `flag` for every ripstopd; may be given several times")
	flags.BoolVar(&o.once, "once", false, "take everything away at once, with exit code 0 only if every pair of pods talked")
	return cmd
}

// checkFamilies sees that a config has the families that the lab has.
func checkFamilies(text string, mode lab.Mode) error {
	if text == "" {
		return nil
	}
	cfg, err := subnet.ParseConfig([]byte(text))
	if err != nil {
		return fmt.Errorf("--config: %w", err)
	}
	if !slices.Equal(cfg.Families(), mode.Families()) {
		return fmt.Errorf("--config has the families %v and --ip-family %s: they must be the same", cfg.Families(), mode)
	}
	return nil
}

// begin makes sure that a lab of that config can be brought up, and takes the place for
// it until release is called. daemon is the path of ripstopd, given the one asked for.
func begin(at *place, mode lab.Mode, config, given string) (daemon string, release func(), err error) {
	if err := checkFamilies(config, mode); err != nil {
		return "", nil, usageError{err}
	}
	if err := needRoot(); err != nil {
		return "", nil, err
	}
	if daemon, err = findDaemon(given); err != nil {
		return "", nil, err
	}
	coming, err := ownState(mode)
	if err != nil {
		return "", nil, err
	}
	if release, err = at.take(); err != nil {
		return "", nil, err
	}
	if err := at.writeState(coming); err != nil { // So that down finds it from now on.
		release()
		return "", nil, err
	}
	return daemon, release, nil
}

// up is one lab's whole life.
func up(ctx context.Context, out io.Writer, at *place, o upOptions) error {
	mode, err := lab.ParseMode(o.family)
	if err != nil {
		return usageError{fmt.Errorf("--ip-family: %w", err)}
	}
	if o.nodes < 1 || o.nodes > lab.MaxNodes {
		return usageError{fmt.Errorf("--nodes: %d is outside 1 to %d", o.nodes, lab.MaxNodes)}
	}
	if o.pods < 1 || o.pods > lab.MaxPods {
		return usageError{fmt.Errorf("--pods: %d is outside 1 to %d", o.pods, lab.MaxPods)}
	}
	daemon, release, err := begin(at, mode, o.config, o.daemon)
	if err != nil {
		return err
	}
	defer release()
	progress := newProgress(out)
	began := time.Now()
	l, err := lab.Start(ctx, lab.Options{
		Nodes: o.nodes, Mode: mode, PodsPerNode: o.pods, Dir: at.folder(),
		Daemon: daemon, DaemonArgs: o.daemonArgs, Config: o.config, Progress: progress.line,
	})
	progress.clear()
	if ctx.Err() != nil {
		err = errors.New("interrupted: everything was taken away")
		if l != nil {
			err = errors.Join(err, l.Close())
		}
		return errors.Join(err, os.RemoveAll(at.folder()))
	}
	if err != nil {
		return fmt.Errorf("%w\nThe logs stay in %s until the next up or down", err, at.folder())
	}
	err = show(ctx, out, at, l, o.once, began)
	if ctx.Err() != nil {
		err = nil // To be told to end is no failure.
	}
	if !o.once {
		say(out, "\nTaking everything away.\n")
	}
	return errors.Join(err, l.Close(), os.RemoveAll(at.folder()))
}

// show prints what there is and, unless once, waits for the end of ctx.
func show(ctx context.Context, out io.Writer, at *place, l *lab.Lab, once bool, began time.Time) error {
	s, err := describe(l)
	if err != nil {
		return err
	}
	if err := at.writeState(s); err != nil {
		return err
	}
	m, err := l.Matrix(ctx, patience)
	if err != nil {
		return err
	}
	talks := time.Since(l.DaemonsStarted)
	say(out, "Lab %q is up after %s.\n\n", at.name, seconds(time.Since(began)))
	if err := printNodes(out, l); err != nil {
		return err
	}
	printMatrix(out, l, m)
	verdict := m.Err()
	if verdict == nil && len(m.Pairs) > 0 {
		say(out, "Every pair of pods talks, %s after the daemons' start.\n", seconds(talks))
	}
	if once {
		return verdict
	}
	if verdict != nil {
		say(out, "%v\n", verdict)
	}
	printHints(out, at, l)
	<-ctx.Done()
	return nil
}

// findDaemon returns the path of ripstopd.
func findDaemon(given string) (string, error) {
	path, hint := given, "give another --ripstopd"
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find this program: %w", err)
		}
		path, hint = filepath.Join(filepath.Dir(self), "ripstopd"), "build it with 'make build', or give --ripstopd"
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("no ripstopd: %w: %s", err, hint)
	}
	if st.IsDir() || st.Mode()&0o111 == 0 {
		return "", fmt.Errorf("no ripstopd: %s is not a program: %s", path, hint)
	}
	return filepath.Abs(path)
}

// progress shows what is being done: on a terminal in one line that is written
// over and vanishes at the end, elsewhere line by line.
type progress struct {
	out      io.Writer
	terminal bool
}

func newProgress(out io.Writer) *progress {
	f, ok := out.(*os.File)
	return &progress{out: out, terminal: ok && term.IsTerminal(int(f.Fd()))}
}

func (p *progress) line(text string) {
	if !p.terminal {
		say(p.out, "%s\n", text)
		return
	}
	f := p.out.(*os.File)
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && len(text) >= width && width > 0 {
		text = text[:width-1] // A line that wraps could not be written over.
	}
	say(p.out, "\r\x1b[K%s", text)
}

func (p *progress) clear() {
	if p.terminal {
		say(p.out, "\r\x1b[K")
	}
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
