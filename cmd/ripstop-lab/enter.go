package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
)

// exitNotFound is the shell's code for a command that is not there.
const exitNotFound = 127

func newExec(at *place) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec NODE|POD -- COMMAND [ARGUMENT...]",
		Short: "Run a command in the network of a node or a pod",
		Long: `exec runs a command in the network namespace of a node, of a pod or of the
underlay. All else, files and processes, is this machine's. Its exit code is the
command's.`,
		Example: `  ripstop-lab exec node1 -- ip route
  ripstop-lab exec pod1 -- ping -c 3 10.5.126.2
  ripstop-lab exec pod1 -- sh
  ripstop-lab exec underlay -- tcpdump -ni node1 udp port 8472`,
		Args: arguments(cobra.MinimumNArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			command := args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return usageError{errors.New("exec: a command is missing")}
			}
			return execIn(at, args[0], command)
		},
	}
	cmd.Flags().SetInterspersed(false) // What follows the machine is the command's.
	return cmd
}

// execIn becomes the command; it returns only on an error.
func execIn(at *place, name string, command []string) error {
	if err := needRoot(); err != nil {
		return err
	}
	s, err := at.running()
	if err != nil {
		return err
	}
	m, err := s.find(name)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(command[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "ripstop-lab: exec: %v\n", err)
		return quietError{exitNotFound}
	}
	ns, err := s.open(m)
	if err != nil {
		return err
	}
	// execve keeps the namespaces of the thread that calls it.
	runtime.LockOSThread()
	if err := ns.Enter(); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", path, syscall.Exec(path, command, os.Environ()))
}
