package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"

	"github.com/spf13/cobra"
)

// place says which lab is meant.
type place struct {
	dir, name string
}

// Where labs are kept unless told otherwise.
const (
	usualDir  = "/run/ripstop-lab"
	usualName = "lab"
)

var goodName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

func (p *place) check() error {
	if !goodName.MatchString(p.name) {
		return usageError{fmt.Errorf("--name: %q is not made of letters, digits, - and _", p.name)}
	}
	if p.dir == "" {
		return usageError{errors.New("--dir must not be empty")}
	}
	return nil
}

// flags are what another command needs to mean the same lab.
func (p *place) flags() string {
	s := ""
	if p.dir != usualDir {
		s += " --dir " + p.dir
	}
	if p.name != usualName {
		s += " --name " + p.name
	}
	return s
}

func newRoot() *cobra.Command {
	var at place
	root := &cobra.Command{
		Use:   "ripstop-lab",
		Short: "Hosts in network namespaces with etcd and ripstopd, to try Ripstop out",
		Long: `ripstop-lab brings up a small Ripstop network on this machine: hosts in network
namespaces on one underlay, a real etcd, a real ripstopd on each host, a pod
behind each. It changes nothing outside the namespaces that it makes.`,
		Example: `  ripstop-lab up --nodes 3 --ip-family dual
  ripstop-lab ping pod1 pod2
  ripstop-lab exec node1 -- ip route
  ripstop-lab down`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return nil
		},
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		PersistentPreRunE: func(*cobra.Command, []string) error { return at.check() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentFlags().StringVar(&at.dir, "dir", usualDir, "`folder` of all labs")
	root.PersistentFlags().StringVar(&at.name, "name", usualName, "`name` of the lab; several may be up at once")
	root.AddCommand(newUp(&at), newExec(&at), newPing(&at), newList(&at), newDown(&at), newFleet(&at), newBench())
	return root
}

// needRoot says in one line why the command cannot work without rights.
func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root, for network namespaces are made and entered: run it with sudo")
	}
	return nil
}

// arguments makes a check of positional arguments a usage error.
func arguments(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%s: %w", cmd.Name(), err)}
		}
		return nil
	}
}
