// Command ripstop is the operator's tool: it writes and checks the network
// config in etcd.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	err := newRoot().ExecuteContext(ctx)
	stop()
	var said *exitError
	if errors.As(err, &said) {
		os.Exit(said.code)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "ripstop: %v\n", err)
		os.Exit(1)
	}
}
