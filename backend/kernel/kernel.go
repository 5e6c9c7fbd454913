// Package kernel is the [backend.Kernel] of Linux, over netlink.
//
// It needs Linux 5.3 or later (nexthop objects) with VXLAN, and CAP_NET_ADMIN;
// [Kernel.Preflight] and [Kernel.CanTunnel] tell what is missing.
package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// Protocol is the number that our routes and nexthops carry (RTPROT).
const Protocol = 82

// Kernel reads and changes the forwarding state of one network namespace. It is
// safe for concurrent use; calls other than Watch take turns.
type Kernel struct {
	owns func(string) bool
	ns   *os.File // nil: the process's own.

	// turn holds a token for whoever uses the fields below. It is a channel so
	// that waiting for it heeds a ctx.
	turn   chan struct{}
	closed bool
	sock   *socket
	out    builder
	// batchOps is the most ops in one batch.
	batchOps int
	// index has the devices that the last Dump or a later Apply met.
	index map[string]int
	hops  nexthopIDs
	// carriers are the links of others that plain routes need.
	carriers carriers
	// byNexthop has the FDB entries that lead through a nexthop object.
	byNexthop  map[fdbKey]struct{}
	obstructed obstructed
	// direct are the routes of another's over the host's links that are ours to
	// replace, see TakeRoutes.
	direct map[backend.Route]struct{}
	// events is what Watch has subscribed to, nil if nothing.
	events *events
	// listen is the receive buffer of watchers in bytes.
	listen int
	// tellSettings hears of new devices' settings, nil if nobody does.
	tellSettings func(device, settings string)
}

type fdbKey struct {
	dev string
	mac backend.MAC
}

var _ backend.Kernel = (*Kernel)(nil)

// errClosed is the answer to a use after Close.
var errClosed = errors.New("kernel is closed")

// Open opens the network namespace of the calling thread, which must be that of
// the whole process. owns tells by name which devices are ours; those that were
// adopted are so besides. Any error that
// comes of an old kernel wraps [backend.ErrUnsupported].
func Open(owns func(device string) bool) (*Kernel, error) { return open(nil, owns) }

// OpenAt opens the given network namespace, such as /proc/PID/ns/net. It
// duplicates the file, so the caller keeps its own. It takes CAP_SYS_ADMIN.
func OpenAt(ns *os.File, owns func(device string) bool) (*Kernel, error) {
	dup, err := duplicate(ns)
	if err != nil {
		return nil, fmt.Errorf("keep network namespace: %w", err)
	}
	k, err := open(dup, owns)
	if err != nil {
		return nil, errors.Join(err, dup.Close())
	}
	return k, nil
}

func open(ns *os.File, owns func(string) bool) (*Kernel, error) {
	k := &Kernel{
		owns: owns, ns: ns, turn: make(chan struct{}, 1), listen: listenerBuffer, batchOps: batchOps,
		index: map[string]int{}, byNexthop: map[fdbKey]struct{}{}, obstructed: obstructed{},
	}
	var err error
	if k.sock, err = dial(ns, requestBuffer); err != nil {
		return nil, err
	}
	k.turn <- struct{}{}
	return k, nil
}

// Close frees what Open took, after the call in progress. A Watch goes on until
// its own ctx ends and is to be ended before.
func (k *Kernel) Close() error {
	<-k.turn
	defer func() { k.turn <- struct{}{} }()
	if k.closed {
		return nil
	}
	k.closed = true
	var err error
	if k.sock != nil {
		err = k.sock.close()
	}
	if k.ns != nil {
		err = errors.Join(err, k.ns.Close())
	}
	return err
}

// take waits for the turn and sees that there is a socket.
func (k *Kernel) take(ctx context.Context) (release func(), err error) {
	select {
	case <-k.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	release = func() { k.turn <- struct{}{} }
	switch {
	case k.closed:
		err = errClosed
	case ctx.Err() != nil:
		err = ctx.Err()
	case k.sock == nil:
		k.sock, err = dial(k.ns, requestBuffer)
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// discard closes a socket on which an exchange did not come to its end: what is
// left of it would be in the way (a dump in progress refuses the next, with
// EBUSY, in __netlink_dump_start).
func (k *Kernel) discard() {
	if k.sock != nil {
		_ = k.sock.close()
		k.sock = nil
	}
}

// request sends the one message that write makes and hands the answers to each.
func (k *Kernel) request(ctx context.Context, write func(w *builder, seq uint32), each func(message)) error {
	if k.sock == nil {
		var err error
		if k.sock, err = dial(k.ns, requestBuffer); err != nil {
			return err
		}
	}
	seq := k.sock.next(1)
	k.out.reset()
	write(&k.out, seq)
	k.out.end()
	err := k.sock.ask(ctx, &k.out, seq, each)
	if k.sock.broken {
		k.discard()
	}
	return err
}

// duplicate returns a descriptor of its own for a file that is open.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
