package cleanup

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/ripstop-net/ripstop/backend"
)

// Kernel is one whose devices can be given back to whom they were taken over from.
type Kernel interface {
	backend.Kernel
	Release(ctx context.Context, device string) error
}

// Forwarding removes our devices, and the routes and nexthops that bear our
// protocol number, wherever they lead. What hangs on a device goes with it.
//
// Where flannel's daemon has a device again that was taken over from it, the device is
// given back instead, with what hangs on it.
type Forwarding struct {
	Kernel Kernel
	// InUse are the devices to be given back, and InUseBy names who has them.
	InUse   []string
	InUseBy string
	have    *backend.State
	ops     []backend.Op
}

// Find implements Remover. Routes come first, then nexthops, then devices: with
// 40,000 peers the kernel takes 12 s to delete a device on which all still hangs,
// and 0.3 s in this order.
func (f *Forwarding) Find(ctx context.Context) (Finding, error) {
	all, err := f.Kernel.Dump(ctx)
	if err != nil {
		return Finding{}, fmt.Errorf("read the kernel: %w", err)
	}
	f.have = &backend.State{}
	for e := range bearing(all) {
		if !f.givenBack(e) {
			f.have.Put(e)
		}
	}
	f.ops = backend.Diff(f.have, &backend.State{})
	var out Finding
	for _, name := range f.InUse {
		out.Left = append(out.Left, fmt.Sprintf("link %s: it is in use by %s", name, f.InUseBy))
	}
	for _, op := range f.ops {
		out.Ours = append(out.Ours, op.Entry.String())
	}
	return out, nil
}

// givenBack tells whether an entry goes to another with its device.
func (f *Forwarding) givenBack(e backend.Entry) bool {
	r, route := e.(backend.Route)
	return slices.Contains(f.InUse, e.On()) && (e.Kind() == backend.KindDevice || route && r.Protocol != 0)
}

// bearing are the entries that go by themselves.
func bearing(s *backend.State) iter.Seq[backend.Entry] {
	return func(yield func(backend.Entry) bool) {
		for e := range s.All() {
			switch e.Kind() {
			case backend.KindDevice, backend.KindNexthop, backend.KindRoute:
				if !yield(e) {
					return
				}
			}
		}
	}
}

// mostNamed bounds the failures that an error names.
const mostNamed = 3

// Remove implements Remover. It looks afterwards whether all stays away.
func (f *Forwarding) Remove(ctx context.Context) error {
	var errs []error
	for _, name := range f.InUse {
		if err := f.Kernel.Release(ctx, name); err != nil {
			return err
		}
	}
	failures := backend.Execute(ctx, f.Kernel, f.have, f.ops)
	for i, failed := range failures {
		if i == mostNamed {
			errs = append(errs, fmt.Errorf("and %d more", len(failures)-i))
			break
		}
		errs = append(errs, failed)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	left, err := f.Find(ctx)
	if err != nil {
		return err
	}
	if n := len(left.Ours); n > 0 {
		return fmt.Errorf("%d things are there again, the first is %s: does a ripstopd run with another --run-dir?", n, left.Ours[0])
	}
	return nil
}
