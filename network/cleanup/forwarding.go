package cleanup

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/ripstop-net/ripstop/backend"
)

// Forwarding removes our devices, and the routes and nexthops that bear our
// protocol number, wherever they lead. What hangs on a device goes with it.
type Forwarding struct {
	Kernel backend.Kernel
	have   *backend.State
	ops    []backend.Op
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
		f.have.Put(e)
	}
	f.ops = backend.Diff(f.have, &backend.State{})
	var out Finding
	for _, op := range f.ops {
		out.Ours = append(out.Ours, op.Entry.String())
	}
	return out, nil
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
