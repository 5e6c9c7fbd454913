package kernel

import (
	"errors"

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
	case len(o) < maxObstructed && errors.Is(err, backend.ErrInTheWay):
		o[id] = struct{}{}
	}
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

// freedByRoute is freed for one of ours that a route which goes had the place of.
func (e *events) freedByRoute(k *Kernel, r routeMessage, by uint32) {
	e.freed(k, backend.Identity(r.route(backend.Nexthop{}, "")), by)
}
