package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// node is the host whose daemon is measured.
type node struct {
	host   *lab.Host
	kernel *kernel.Kernel // The host's, beside the daemon's own use of it.
}

// readyLimit bounds one start of the daemon.
const readyLimit = 5 * time.Minute

func openNode(h *lab.Host) (*node, error) {
	k, err := openKernel(h.Namespace)
	if err != nil {
		return nil, err
	}
	return &node{host: h, kernel: k}, nil
}

// start starts the daemon and returns how long it took until it was ready, by
// the time that its own log gives for that, and what processor time until then.
func (n *node) start(ctx context.Context) (ready, cpu time.Duration, err error) {
	began := time.Now()
	if err := n.host.StartDaemon(); err != nil {
		return 0, 0, err
	}
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for time.Since(began) < readyLimit {
		select {
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		case <-poll.C:
		}
		if !n.host.Running() {
			return 0, 0, fmt.Errorf("the daemon ended before it was ready: %s", n.host.DaemonLog())
		}
		at, ok := readyAt(n.host.DaemonLog())
		if !ok {
			continue
		}
		cpu, err := lab.ProcessorTime(n.host.DaemonPID())
		return at.Sub(began), cpu, err
	}
	return 0, 0, fmt.Errorf("the daemon was not ready after %s: %s", readyLimit, n.host.DaemonLog())
}

// readyAt is when a log says that the node is ready.
func readyAt(log string) (at time.Time, ok bool) {
	for line := range bytes.Lines([]byte(log)) {
		var entry struct {
			Msg  string
			Time time.Time
		}
		if json.Unmarshal(line, &entry) == nil && entry.Msg == "ready" {
			return entry.Time, true
		}
	}
	return time.Time{}, false
}

func (n *node) stop(ctx context.Context) error {
	if !n.host.Running() {
		return nil
	}
	_, _, err := n.host.StopDaemon(ctx, unix.SIGTERM)
	return err
}

// subnets are what the node leased.
func (n *node) subnets() (subnet.Subnets, error) {
	env, err := n.host.Env()
	return env.Subnets, err
}

// forget removes all that the daemon knows from an earlier run.
func (n *node) forget() error {
	var errs []error
	for _, name := range []string{"run", "state", filepath.Base(n.host.SubnetFile())} {
		errs = append(errs, os.RemoveAll(filepath.Join(n.host.Dir, name)))
	}
	return errors.Join(errs...)
}

// empty takes all that the daemon made from the kernel, as a daemon that wants
// nothing would, and returns what was there and how long that took without the
// reading.
func (n *node) empty(ctx context.Context) (had *backend.State, took time.Duration, err error) {
	had, err = n.kernel.Dump(ctx)
	if err != nil {
		return nil, 0, err
	}
	took, err = n.bring(ctx, had.Clone(), &backend.State{})
	return had, took, err
}

// bring makes want of have in the way of the loop.
func (n *node) bring(ctx context.Context, have, want *backend.State) (time.Duration, error) {
	began := time.Now()
	failures := backend.Execute(ctx, n.kernel, have, backend.Diff(have, want))
	took := time.Since(began)
	if len(failures) > 0 {
		return took, fmt.Errorf("%d changes failed: %w", len(failures), failures[0])
	}
	return took, nil
}

// holds sees that the kernel holds the entries of all peers and no others.
func (n *node) holds(ctx context.Context, want *backend.State) error {
	have, err := n.kernel.Dump(ctx)
	if err != nil {
		return err
	}
	const own = 2 // The device and its address.
	if have.Len() != want.Len()+own {
		return fmt.Errorf("the kernel holds %d entries instead of %d", have.Len(), want.Len()+own)
	}
	for e := range want.All() {
		if !have.Has(e) {
			return fmt.Errorf("the kernel lacks %s", e)
		}
	}
	return nil
}

func (n *node) memory() (Memory, error) { return readMemory(n.host.DaemonPID()) }

func (n *node) cpu() (time.Duration, error) { return lab.ProcessorTime(n.host.DaemonPID()) }
