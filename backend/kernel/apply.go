package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// A batch is one datagram. Its answers, one for each op that fails, must fit a
// receive buffer of the default size where it cannot be forced larger: 212,992
// bytes, of which each answer takes 768. From some dozens on more ops to a batch
// win next to nothing (BenchmarkBatch).
const (
	batchOps   = 256
	batchBytes = 96 << 10
)

// Apply implements backend.Kernel. Where the answers to a batch are lost, all
// its ops have the error, though they may have been carried out; a Dump tells.
func (k *Kernel) Apply(ctx context.Context, ops []backend.Op) []error {
	errs := make([]error, len(ops))
	release, err := k.take(ctx)
	if err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	defer release()
	todo := make([]int, 0, len(ops))
	for i, op := range ops {
		if d, ok := op.Entry.(backend.Device); ok {
			if errs[i] = ctx.Err(); errs[i] == nil {
				errs[i] = k.applyDevice(ctx, op.Verb, d)
			}
			k.obstructed.note(op, errs[i])
			continue
		}
		todo = append(todo, i)
	}
	a := applier{k: k, ops: ops, errs: errs}
	for len(todo) > 0 {
		n := a.batch(ctx, todo)
		todo = append(todo[n:], a.conclude(ctx)...)
		for _, i := range a.sent {
			k.obstructed.note(ops[i], errs[i])
		}
		// Else a large Apply would fill its buffer. Where there is doubt already,
		// it may: only a dump tells then, and the kernel drops the rest at no cost.
		if k.events != nil && !k.events.doubt {
			k.events.drain(k)
		}
	}
	return errs
}

// applier carries out one Apply.
type applier struct {
	k    *Kernel
	ops  []backend.Op
	errs []error
	// sent has the ops of the batch in progress, by sequence number, and ids
	// the numbers of the nexthops among them.
	sent []int
	ids  []uint32
	// renumbered counts the nexthops that had to try another number, explained
	// the look-ups that serve error messages only.
	renumbered, explained int
}

const (
	maxRenumbered = 4096
	maxExplained  = 16
)

// batch sends as many of the ops in todo as go into one datagram and returns
// how many that were.
func (a *applier) batch(ctx context.Context, todo []int) int {
	k := a.k
	a.sent, a.ids = a.sent[:0], a.ids[:0]
	if err := ctx.Err(); err != nil {
		return a.fail(todo, err)
	}
	n := min(len(todo), k.batchOps)
	for _, i := range todo[:n] {
		a.errs[i] = a.lookUp(ctx, i)
	}
	if k.sock == nil {
		var err error
		if k.sock, err = dial(k.ns, requestBuffer); err != nil {
			return a.fail(todo[:n], err)
		}
	}
	first := k.sock.next(n)
	k.out.reset()
	for at, i := range todo[:n] {
		if len(k.out.b) > batchBytes {
			n = at
			break
		}
		if a.errs[i] == nil {
			a.encode(first+uint32(len(a.sent)), i)
		}
	}
	if len(a.sent) == 0 {
		return n
	}
	k.out.ask()
	err := k.sock.batch(ctx, k.out.b, first, len(a.sent), func(at int, err error) { a.errs[a.sent[at]] = err })
	if err != nil {
		k.discard()
		a.fail(a.sent, err)
	}
	return n
}

func (a *applier) fail(todo []int, err error) int {
	for _, i := range todo {
		a.errs[i] = err
	}
	return len(todo)
}

// lookUp sees to it that the number of the device that an op names is known, and
// makes way for it where the kernel would not. It is done before a batch is
// written, for it uses the same buffer.
func (a *applier) lookUp(ctx context.Context, i int) error {
	op := a.ops[i]
	switch kind := op.Entry.Kind(); {
	case kind == backend.KindNexthop && op.Verb == backend.Delete:
		return nil // It names no device.
	case kind == backend.KindRoute:
		if r := op.Entry.(backend.Route); r.Plain && op.Verb != backend.Delete {
			return a.k.carry(ctx, r.Via.Dev)
		}
		return nil
	}
	index, err := a.k.indexOf(ctx, op.Entry.On())
	if f, ok := op.Entry.(backend.FDB); ok && err == nil && op.Verb != backend.Delete {
		err = a.k.makeWay(ctx, f, index)
	}
	if op.Verb == backend.Delete && errors.Is(err, unix.ENODEV) {
		return nil // The number stays unknown, and encode leaves the op out.
	}
	return err
}

// carry sees to it that the number of a link of the host's is known over which a
// plain route is to lead, and that what becomes of the link is noticed.
func (k *Kernel) carry(ctx context.Context, dev string) error {
	k.carriers.want(dev)
	if _, known := k.index[dev]; known && k.carriers.links[dev].index != 0 {
		return nil
	}
	l, err := k.linkByName(ctx, dev)
	if err != nil {
		return fmt.Errorf("look up device %s: %w", dev, err)
	}
	k.index[dev] = l.index
	k.carriers.know(l)
	return nil
}

// makeWay removes an FDB entry that leads through a nexthop object: a REPLACE of
// it by one with a destination answers success and does nothing
// (vxlan_fdb_replace finds no remote to change).
func (k *Kernel) makeWay(ctx context.Context, f backend.FDB, index int) error {
	key := fdbKey{f.Dev, f.MAC}
	if _, ok := k.byNexthop[key]; !ok {
		return nil
	}
	err := k.request(ctx, func(w *builder, seq uint32) {
		encodeFDB(w, seq, backend.Delete, backend.FDB{MAC: f.MAC}, index)
		w.ask()
	}, nil)
	if err != nil && !gone(err) {
		return fmt.Errorf("remove entry that leads through a nexthop object: %w", err)
	}
	delete(k.byNexthop, key)
	return nil
}

// conclude makes of the kernel's answers the ops' errors and returns the ops
// that are to be sent again.
func (a *applier) conclude(ctx context.Context) (again []int) {
	for at, i := range a.sent {
		op := a.ops[i]
		if op.Verb == backend.Delete && a.errs[i] != nil && gone(a.errs[i]) {
			a.errs[i] = nil
		}
		switch e := op.Entry.(type) {
		case backend.Nexthop:
			if a.concludeNexthop(ctx, i, e, a.ids[at]) {
				again = append(again, i)
			}
		case backend.Route:
			if op.Verb == backend.Add && errors.Is(a.errs[i], unix.EEXIST) {
				a.errs[i] = a.explainRoute(ctx, e, a.errs[i])
			}
		}
	}
	return again
}

// concludeNexthop keeps the numbers up to date. A number that another took
// since the last dump is no hindrance: the op is then to be sent again.
func (a *applier) concludeNexthop(ctx context.Context, i int, e backend.Nexthop, id uint32) (again bool) {
	hops := &a.k.hops
	switch err := a.errs[i]; {
	case err == nil && a.ops[i].Verb == backend.Delete:
		hops.remove(e)
	case err == nil:
		hops.set(e, id)
	case a.ops[i].Verb == backend.Add && errors.Is(err, unix.EEXIST):
		there, lookErr := a.k.nexthopByID(ctx, id)
		switch {
		case lookErr == nil && there.plain && there.protocol == Protocol && there.gateway == e.Gateway && there.index == a.k.index[e.Dev]:
			a.errs[i] = fmt.Errorf("%w: it is there already as number %d: %w", backend.ErrInTheWay, id, err)
		case a.renumbered < maxRenumbered && ctx.Err() == nil:
			a.renumbered++
			hops.remove(e)
			hops.takenByAnother(id)
			return true
		}
	}
	return false
}

// nexthopByID looks one object up.
func (k *Kernel) nexthopByID(ctx context.Context, id uint32) (n nexthopMessage, err error) {
	err = k.request(ctx, func(w *builder, seq uint32) {
		w.begin(unix.RTM_GETNEXTHOP, 0, seq, sizeNexthopMessage)
		w.u32(unix.NHA_ID, id)
		w.ask()
	}, func(m message) { n, _ = parseNexthop(m.body) })
	return n, err
}

// encode writes one op, or notes why it cannot be.
func (a *applier) encode(seq uint32, i int) {
	k, op := a.k, a.ops[i]
	index := k.index[op.Entry.On()]
	id := uint32(0)
	switch e := op.Entry.(type) {
	case backend.Address, backend.FDB, backend.Neighbour:
		if index == 0 {
			return // A delete on a device that is not there.
		}
	case backend.Nexthop:
		if id = k.hops.id(e); id == 0 && op.Verb != backend.Delete {
			id = k.hops.free()
		}
		if id == 0 {
			return // A delete of what is not there.
		}
	case backend.Route:
		if id = k.hops.id(e.Via); id == 0 && op.Verb != backend.Delete && !e.Plain {
			a.errs[i] = fmt.Errorf("%w: no nexthop %s", unix.EINVAL, e.Via)
			return
		}
	}
	switch e := op.Entry.(type) {
	case backend.Address:
		encodeAddress(&k.out, seq, op.Verb, e, index)
	case backend.FDB:
		encodeFDB(&k.out, seq, op.Verb, e, index)
	case backend.Neighbour:
		encodeNeighbour(&k.out, seq, op.Verb, e, index)
	case backend.Nexthop:
		verb := op.Verb
		if verb == backend.Replace && k.hops.id(e) == 0 {
			verb = backend.Add // The number may yet turn out to be another's.
		}
		encodeNexthop(&k.out, seq, verb, e, id, index)
	case backend.Route:
		_, narrow := k.hops.narrow[id]
		if op.Verb != backend.Delete {
			k.hops.met(e, id)
		}
		encodeRoute(&k.out, seq, op.Verb, e, way{nexthop: id, device: index, metrics: narrow})
	default:
		a.errs[i] = fmt.Errorf("%w: no entry of kind %d", unix.EINVAL, op.Entry.Kind())
		return
	}
	k.out.end()
	a.sent = append(a.sent, i)
	a.ids = append(a.ids, id)
}
