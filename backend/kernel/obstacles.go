package kernel

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// maxObstructed bounds the entries of which it is remembered that something is
// in their way. The rest is tried again in its own time.
const maxObstructed = 1 << 14

// obstructed has the identities of the entries that others' things were in the
// way of, until one of those may have gone.
type obstructed map[backend.Entry]struct{}

// note takes in how an op ended. It must be told before events are read that
// came after the op, or it misses that the obstacle went.
func (o obstructed) note(op backend.Op, err error) {
	if err == nil && len(o) == 0 {
		return
	}
	id := backend.Identity(op.Entry)
	switch {
	case err == nil:
		delete(o, id)
	case len(o) < maxObstructed && inTheWay(op, err):
		o[id] = struct{}{}
	}
}

// inTheWay tells whether an op failed because of what is another's. Of an IPv6
// nexthop not every such failure is explained.
func inTheWay(op backend.Op, err error) bool {
	hop, ok := op.Entry.(backend.Nexthop)
	return errors.Is(err, backend.ErrInTheWay) || ok && op.Verb != backend.Delete && hop.Gateway.Is6() && errors.Is(err, unix.EINVAL)
}

// freed tells that nothing is in the way of an entry any more, if anything was.
func (e *events) freed(k *Kernel, id backend.Entry, by uint32) {
	if _, ok := k.obstructed[id]; ok {
		delete(k.obstructed, id)
		e.queueUp(backend.Change{Entry: id, Freed: true, By: by})
	}
}

// freedAll is freed for all. It serves changes with which IPv4 routes go in
// silence: a link's or its carrier's end, an address's, a nexthop object's
// (fib_disable_ip, fib_sync_down_addr, nexthop_flush_dev).
func (e *events) freedAll(k *Kernel, by uint32) {
	for id := range k.obstructed {
		e.freed(k, id, by)
	}
}

// freedByRoute is freed for what a route that goes was in the way of: one of ours
// in its place, or an IPv6 nexthop whose gateway it led to another way.
func (e *events) freedByRoute(k *Kernel, r routeMessage, by uint32) {
	e.freed(k, backend.Identity(r.route(backend.Nexthop{}, "")), by)
	if r.dst.Addr().Is4() {
		return
	}
	for id := range k.obstructed {
		if hop, ok := id.(backend.Nexthop); ok && r.dst.Contains(hop.Gateway) {
			e.freed(k, id, by)
		}
	}
}
