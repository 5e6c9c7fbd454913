// Command ripstop-lab brings up hosts in network namespaces with a real etcd
// and a real ripstopd on each, to try Ripstop out on one machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

func main() {
	lab.RunIfChild()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	// A second signal ends the process at once; the lab dies with it all the same.
	context.AfterFunc(ctx, stop)
	err := newRoot().ExecuteContext(ctx)
	stop()
	os.Exit(report(err))
}

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError is an error of the command line, not of what it asked for.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// quietError ends the process with a code and says nothing: all was said.
type quietError struct{ code int }

func (e quietError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// report prints an error and returns the exit code for it.
func report(err error) int {
	var quiet quietError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &quiet):
		return quiet.code
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "ripstop-lab: %v (see ripstop-lab --help)\n", err)
		return exitUsage
	default:
		fmt.Fprintf(os.Stderr, "ripstop-lab: %v\n", err)
		return exitFailed
	}
}
