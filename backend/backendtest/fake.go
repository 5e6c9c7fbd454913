// Package backendtest has a [backend.Kernel] in memory, and the suite that it
// and the real one pass.
package backendtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/ripstop-net/ripstop/backend"
)

// Fake is a Kernel in memory, with the errors of the real one. It is safe for
// concurrent use.
type Fake struct {
	mu       sync.Mutex
	state    *backend.State
	others   *backend.State
	done     []backend.Op
	failOp   func(backend.Op) error
	failDump error
	// refused has what others' things were in the way of.
	refused  map[backend.Entry]struct{}
	watchers map[chan struct{}]struct{}
	// queue and doubt are what Changes is to tell.
	queue []backend.Change
	doubt bool
	dumps int
	// links are the host's own, by name: whether they are up.
	links map[string]bool
	// carriers are those that carry plain routes, or were to.
	carriers map[string]bool
}

// HandPort is the netlink port by which the outside hand is told of.
const HandPort = 4711

// maxQueued bounds the changes that wait to be told, as in the kernel.
const maxQueued = 1 << 18

var _ backend.Kernel = (*Fake)(nil)

// NewFake returns a Fake that holds entries of ours.
func NewFake(entries ...backend.Entry) *Fake {
	return &Fake{
		state: backend.NewState(entries...), others: &backend.State{},
		refused: map[backend.Entry]struct{}{}, watchers: map[chan struct{}]struct{}{},
		links: map[string]bool{}, carriers: map[string]bool{},
	}
}

// Dump implements backend.Kernel.
func (f *Fake) Dump(ctx context.Context) (*backend.State, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if f.failDump != nil {
		return nil, f.failDump
	}
	f.dumps++
	return f.state.Clone(), nil
}

// Apply implements backend.Kernel.
func (f *Fake) Apply(ctx context.Context, ops []backend.Op) []error {
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := make([]error, len(ops))
	before := len(f.done)
	for i, op := range ops {
		if errs[i] = ctx.Err(); errs[i] == nil {
			errs[i] = f.apply(op)
		}
	}
	if len(f.done) > before {
		f.kick()
	}
	return errs
}

func (f *Fake) apply(op backend.Op) error {
	if f.failOp != nil {
		if err := f.failOp(op); err != nil {
			return err
		}
	}
	if err := f.refuses(op); err != nil {
		if errors.Is(err, backend.ErrInTheWay) {
			f.refused[backend.Identity(op.Entry)] = struct{}{}
		}
		return err
	}
	delete(f.refused, backend.Identity(op.Entry))
	f.done = append(f.done, op)
	f.announce(op)
	if r, ok := op.Entry.(backend.Route); ok && op.Verb == backend.Replace {
		f.others.Drop(r) // The kernel does not ask whose it was.
	}
	f.state.Apply(op)
	return nil
}

// Watch implements backend.Kernel.
func (f *Fake) Watch(ctx context.Context, changed func()) error {
	kick := make(chan struct{}, 1)
	f.mu.Lock()
	f.watchers[kick] = struct{}{}
	f.queue, f.doubt = nil, true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.watchers, kick)
		f.queue = nil
		f.mu.Unlock()
	}()
	kick <- struct{}{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-kick:
			changed()
		}
	}
}

func (f *Fake) kick() {
	for w := range f.watchers {
		select {
		case w <- struct{}{}:
		default: // It has yet to look anyway.
		}
	}
}

// Changes implements backend.Kernel.
func (f *Fake) Changes() (changes []backend.Change, doubt bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	changes, doubt = f.queue, f.doubt || len(f.watchers) == 0
	f.queue, f.doubt = nil, false
	if doubt {
		return nil, true
	}
	return changes, false
}

// announce tells what the kernel does of an op before it is carried out: of
// what goes with a nexthop the IPv6 routes alone, and of a change of a device or
// an address that there was one.
func (f *Fake) announce(op backend.Op) {
	switch e := op.Entry.(type) {
	case backend.Device, backend.Address:
		f.lose()
	case backend.Nexthop:
		if op.Verb == backend.Delete && e.Gateway.Is6() {
			for r := range f.state.OfKind(backend.KindRoute) {
				if r := r.(backend.Route); r.Via == e && !r.Plain && r.Dst.Addr().Is6() {
					f.tell(backend.Change{Entry: r, Gone: true})
				}
			}
		}
	}
	f.tell(backend.Change{Entry: op.Entry, Gone: op.Verb == backend.Delete})
}

func (f *Fake) tell(c backend.Change) {
	switch {
	case f.doubt || len(f.watchers) == 0:
	case len(f.queue) == maxQueued:
		f.lose()
	default:
		f.queue = append(f.queue, c)
	}
}

func (f *Fake) lose() { f.queue, f.doubt = nil, true }

// Hand changes what is ours as an outside hand does, and makes it known as far
// as the kernel does.
func (f *Fake) Hand(change func(*backend.State)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.state.Clone()
	change(f.state)
	f.announceBetween(before, f.state)
	f.kick()
}

// Silently changes what is ours without making it known.
func (f *Fake) Silently(change func(*backend.State)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.state)
}

// Overflow has announcements be lost.
func (f *Fake) Overflow() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lose()
	f.kick()
}

// Dumps is how many dumps succeeded so far.
func (f *Fake) Dumps() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dumps
}

func (f *Fake) announceBetween(before, after *backend.State) {
	differs := func(e backend.Entry, gone bool) {
		switch e := e.(type) {
		case backend.Device, backend.Address:
			f.lose()
			return
		case backend.Route:
			if gone && e.Dst.Addr().Is4() && !e.Plain && before.Has(e.Via) && !after.Has(e.Via) {
				return // It goes in silence.
			}
		}
		f.tell(backend.Change{Entry: e, Gone: gone, By: HandPort})
	}
	for e := range before.All() {
		if _, ok := after.At(e); !ok {
			differs(e, true)
		}
	}
	for e := range after.All() {
		if !before.Has(e) {
			differs(e, false)
		}
	}
}

// Down takes a device down by an outside hand, with all that goes then: its
// neighbours, nexthops, routes and IPv6 addresses.
func (f *Fake) Down(dev string) {
	f.Hand(func(s *backend.State) {
		for _, e := range slices.Collect(s.All()) {
			if e.On() != dev {
				continue
			}
			switch e := e.(type) {
			case backend.Device:
				e.Down = true
				s.Put(e)
			case backend.Address:
				if e.Prefix.Addr().Is6() {
					s.Drop(e)
				}
			case backend.Neighbour, backend.Nexthop, backend.Route:
				s.Drop(e)
			}
		}
	})
}

// Stand puts there what is another's: a route, a nexthop, a VXLAN device, or, as
// a Device of VNI 0, one of another kind.
func (f *Fake) Stand(entries ...backend.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range entries {
		f.others.Put(e)
	}
}

// Yield takes away what Stand put there.
func (f *Fake) Yield(entries ...backend.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range entries {
		f.others.Drop(e)
	}
	for e := range f.refused {
		f.tell(backend.Change{Entry: e, Freed: true})
	}
	clear(f.refused)
	f.kick()
}

// Stands tells whether what Stand put there is there untouched.
func (f *Fake) Stands(e backend.Entry) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.others.Has(e)
}

// State returns a copy of what is ours.
func (f *Fake) State() *backend.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state.Clone()
}

// Ops returns the ops that were carried out, in order, since the last call.
func (f *Fake) Ops() []backend.Op {
	f.mu.Lock()
	defer f.mu.Unlock()
	ops := f.done
	f.done = nil
	return ops
}

// FailOps makes ops fail for which fail gives an error, until it is called
// with nil. fail must not call the Fake.
func (f *Fake) FailOps(fail func(backend.Op) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failOp = fail
}

// FailDump makes dumps fail with err, until it is called with nil.
func (f *Fake) FailDump(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failDump = err
}

// inTheWay is how the kernel's EEXIST comes out.
func inTheWay(what string) error {
	return fmt.Errorf("%w: %s: %w", backend.ErrInTheWay, what, syscall.EEXIST)
}

// refuses tells why the kernel would not carry out an op.
func (f *Fake) refuses(op backend.Op) error {
	if d, ok := op.Entry.(backend.Device); ok {
		return f.refusesDevice(op.Verb, d)
	}
	if op.Verb == backend.Delete {
		return nil
	}
	if r, ok := op.Entry.(backend.Route); ok {
		return f.refusesRoute(op.Verb, r)
	}
	dev, ok := f.state.Device(op.Entry.On())
	if !ok {
		return fmt.Errorf("look up device %s: %w", op.Entry.On(), syscall.ENODEV)
	}
	_, there := f.state.At(op.Entry)
	switch e := op.Entry.(type) {
	case backend.Address:
		if there && op.Verb == backend.Add {
			return syscall.EEXIST
		}
	case backend.FDB:
		if e.Remote.Is4() != dev.Local.Is4() {
			return syscall.EAFNOSUPPORT
		}
	case backend.Nexthop:
		switch {
		case there && op.Verb == backend.Add:
			return inTheWay("it is there already")
		case dev.Down:
			return syscall.ENETDOWN
		}
	}
	return nil
}

func (f *Fake) refusesRoute(v backend.Verb, r backend.Route) error {
	if r.Plain {
		f.carriers[r.Via.Dev] = true
	}
	switch up, there := f.links[r.Via.Dev]; {
	case !r.Plain && !f.state.Has(r.Via):
		return fmt.Errorf("%w: no nexthop %s", syscall.EINVAL, r.Via)
	case r.Plain && !there:
		return fmt.Errorf("look up device %s: %w", r.Via.Dev, syscall.ENODEV)
	case r.Plain && !up:
		return syscall.ENETDOWN
	}
	if v == backend.Replace {
		return nil
	}
	if _, ok := f.others.At(r); ok {
		return inTheWay("a route of another")
	}
	if _, ok := f.state.At(r); ok {
		return inTheWay("a route of ours")
	}
	return nil
}

func (f *Fake) refusesDevice(v backend.Verb, d backend.Device) error {
	if other, ok := f.others.Device(d.Name); ok && other.VNI == 0 {
		return inTheWay("a device that is not VXLAN")
	}
	have, there := f.state.Device(d.Name)
	switch {
	case v == backend.Delete:
		return nil
	case v == backend.Replace && !there:
		return fmt.Errorf("look up device: %w", syscall.ENODEV)
	case v == backend.Replace:
		if have.VNI != d.VNI || have.Port != d.Port || have.Local.Is4() != d.Local.Is4() {
			return syscall.EOPNOTSUPP
		}
		return nil
	case there:
		return inTheWay(d.Name + " is there already")
	}
	for _, s := range []*backend.State{f.state, f.others} {
		for e := range s.All() {
			o, ok := e.(backend.Device)
			if ok && o.VNI == d.VNI && o.Port == d.Port && o.Local.Is4() == d.Local.Is4() {
				return inTheWay("VXLAN device " + o.Name + " has the VNI and port")
			}
		}
	}
	return nil
}
