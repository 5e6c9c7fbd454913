package backendtest

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"go.uber.org/goleak"

	"github.com/ripstop-net/ripstop/backend"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestFakeConforms(t *testing.T) {
	Conformance(t, func(*testing.T) Harness {
		f := NewFake()
		return Harness{Kernel: f, Hand: fakeHand{f}, Others: fakeHand{f}, Links: f}
	})
}

// fakeHand is Hand and Others on a Fake.
type fakeHand struct{ f *Fake }

func (h fakeHand) Put(e backend.Entry) error {
	h.f.Hand(func(s *backend.State) { s.Apply(backend.Op{Verb: backend.Replace, Entry: e}) })
	return nil
}

func (h fakeHand) Remove(e backend.Entry) error {
	h.f.Hand(func(s *backend.State) { s.Apply(backend.Op{Verb: backend.Delete, Entry: e}) })
	return nil
}

func (h fakeHand) Down(dev string) error {
	h.f.Down(dev)
	return nil
}

func (h fakeHand) Stand(e backend.Entry) error {
	h.f.Stand(e)
	return nil
}

func (h fakeHand) Yield(e backend.Entry) error {
	h.f.Yield(e)
	return nil
}

func (h fakeHand) Abandon() error {
	h.f.Yield(slices.Collect(h.f.others.OfKind(backend.KindRoute))...)
	return nil
}

func (h fakeHand) Stands(e backend.Entry) (bool, error) { return h.f.Stands(e), nil }

func TestFakeFailsAsTold(t *testing.T) {
	f, o, boom := NewFake(overlays[0].device()), overlays[0], errors.New("boom")
	f.FailOps(func(op backend.Op) error {
		if op.Entry == backend.Entry(o.fdb(3)) {
			return boom
		}
		return nil
	})
	errs := f.Apply(t.Context(), []backend.Op{{Entry: o.fdb(2)}, {Entry: o.fdb(3)}, {Entry: o.fdb(4)}})
	if errs[0] != nil || errs[2] != nil || !errors.Is(errs[1], boom) {
		t.Fatalf("errors: %v", errs)
	}
	if ops := f.Ops(); len(ops) != 2 {
		t.Fatalf("ops: %v", ops)
	}
	f.FailOps(nil)
	f.FailDump(boom)
	if _, err := f.Dump(t.Context()); !errors.Is(err, boom) {
		t.Fatalf("dump: %v", err)
	}
	f.FailDump(nil)
	if have, err := f.Dump(t.Context()); err != nil || !have.Equal(f.State()) {
		t.Fatalf("dump: %v", err)
	}
	route := backend.Route{Dst: netip.MustParsePrefix("10.0.0.0/24")}
	f.Stand(route)
	f.Yield(route)
	if f.Stands(route) {
		t.Fatal("what yielded still stands")
	}
}
