package backendtest

import (
	"syscall"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
)

func (s *suite) link(do Deed) {
	s.t.Helper()
	if err := s.Links.Link(uplink, do); err != nil {
		s.t.Fatalf("%s %s: %v", do, uplink, err)
	}
}

// direct returns world(n) with the peers from the first on reached directly.
func direct(n, first int) *backend.State {
	want := world(n)
	for _, o := range overlays {
		for i := first; i < n+2; i++ {
			for _, e := range o.peer(i) {
				want.Drop(e)
			}
			want.Put(o.direct(i))
		}
	}
	return want
}

func testPlainRoutes(t *testing.T, s *suite) {
	for _, o := range overlays { // The link is missing.
		s.wantErr(s.try(backend.Add, o.direct(2))[0], syscall.ENODEV)
	}
	s.link(Make)
	want := &backend.State{}
	for _, o := range overlays { // Neither a device nor a nexthop of ours is needed.
		s.apply(backend.Add, o.direct(2), o.direct(3))
		want = with(want, o.direct(2), o.direct(3))
		moved := o.direct(3)
		moved.Via.Gateway = o.local(77)
		s.apply(backend.Replace, moved)
		want = with(want, moved)
		s.holds(want)
		s.wantErr(s.try(backend.Add, o.direct(2))[0], backend.ErrInTheWay, syscall.EEXIST)
	}
	if ops := backend.Diff(s.dump(), want); len(ops) > 0 {
		t.Fatalf("second pass has ops: %v", ops)
	}
	for _, o := range overlays {
		s.apply(backend.Delete, o.direct(3))
		s.apply(backend.Delete, o.direct(3)) // Is there no more.
		want.Drop(o.direct(3))
		s.holds(want)
	}
	s.reach(&backend.State{})
}

// testPlainSwitch: the route changes in place, in both directions, and what it
// needs no longer goes.
func testPlainSwitch(t *testing.T, s *suite) {
	s.link(Make)
	s.reach(world(5))
	for _, first := range []int{4, 2, 5, 7} {
		want := direct(5, first)
		for _, op := range backend.Diff(s.dump(), want) {
			if op.Entry.Kind() == backend.KindRoute && op.Verb != backend.Replace {
				t.Fatalf("not in place: %s", op)
			}
		}
		s.reach(want)
	}
	noDevice := &backend.State{} // As when the network changes to host-gw.
	for _, o := range overlays {
		noDevice.Put(o.direct(2))
	}
	s.reach(noDevice)
	s.reach(world(2))
}

func testRouteMTU(_ *testing.T, s *suite) {
	s.link(Make)
	want := direct(2, 3)
	for _, mtu := range []uint16{1300, 1400, backend.MaxRouteMTU, 0} {
		for _, o := range overlays {
			for _, r := range []backend.Route{o.route(2), o.direct(3)} {
				r.MTU = mtu
				want.Put(r)
			}
		}
		s.reach(want)
	}
	for _, o := range overlays { // Another route through one nexthop.
		r := o.route(2)
		r.MTU = 1300
		other := o.route(9)
		other.Via = r.Via
		s.apply(backend.Replace, r)
		s.apply(backend.Add, other)
		s.holds(with(want, r, other))
		r.MTU = 0
		s.apply(backend.Replace, r)
		s.apply(backend.Delete, other)
		s.holds(want)
	}
	for _, o := range overlays { // At once with a switch.
		r := o.direct(2)
		r.MTU = 1280
		s.apply(backend.Replace, r)
		s.holds(with(s.dump(), r))
	}
	s.reach(want)
}

func testForeignPlainRoute(_ *testing.T, s *suite) {
	s.link(Make)
	s.reach(world(2))
	for _, o := range overlays {
		s.by(s.Others.Stand(o.route(9)))
		s.wantErr(s.try(backend.Add, o.direct(9))[0], backend.ErrInTheWay, syscall.EEXIST)
		s.apply(backend.Delete, o.direct(9))
		s.stands(o.route(9))
		s.holds(world(2))
	}
}

// testPlainRoutesLink: what becomes of plain routes with their link.
func testPlainRoutesLink(_ *testing.T, s *suite) {
	s.link(Make)
	want := direct(4, 4)
	s.reach(want)
	for _, do := range []Deed{LoseCarrier, GetCarrier} {
		s.link(do)
		s.holds(want)
	}
	s.link(LoseCarrier)
	s.reach(world(2)) // Without a carrier they can be taken away and made.
	s.reach(want)
	s.link(GetCarrier)

	without := func(v4, v6 bool) *backend.State {
		left := want.Clone()
		for _, o := range overlays {
			if o.v6 && v6 || !o.v6 && v4 {
				left.Drop(o.direct(4))
				left.Drop(o.direct(5))
			}
		}
		return left
	}
	s.link(FlushAddresses)
	s.holds(without(true, false))
	s.reach(want)
	s.link(SetDown)
	s.holds(without(true, true))
	for _, o := range overlays {
		s.wantErr(s.try(backend.Add, o.direct(4))[0], syscall.ENETDOWN)
	}
	s.link(SetUp)
	s.reach(want)
	s.link(Rename)
	renamed := want.Clone()
	for _, o := range overlays {
		for i := 4; i < 6; i++ {
			r := o.direct(i)
			r.Via.Dev += "x"
			renamed.Put(r)
		}
	}
	s.holds(renamed)
	for _, o := range overlays {
		s.wantErr(s.try(backend.Replace, o.direct(4))[0], syscall.ENODEV)
	}
	s.link(NameBack)
	s.holds(want)
	s.link(Destroy)
	s.holds(without(true, true))
	s.link(Make)
	s.reach(want)
}

// testLinkAndDoubt: every change of a link that carries plain routes, or is to,
// is a doubt, and none of another link is.
func testLinkAndDoubt(t *testing.T, s *suite) {
	s.link(Make)
	want := direct(3, 4)
	s.reach(want)
	defer s.following()()
	settle := func() { s.calm(3) }
	settle()
	for _, do := range []Deed{
		LoseCarrier, GetCarrier, FlushAddresses, SetDown, SetUp, Rename, NameBack, SetDown, SetUp, Destroy, Make,
	} {
		s.link(do)
		for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) { // The carrier's loss comes later (linkwatch_event).
			if _, doubt := s.Kernel.Changes(); doubt {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("no doubt after: %s", do)
			}
		}
		settle()
		have := s.dump()
		for _, f := range backend.Execute(t.Context(), s.Kernel, have, backend.Diff(have, want)) {
			if do != SetDown && do != Rename && do != Destroy {
				t.Fatalf("after %s: %v", do, f)
			}
		}
		settle()
	}
	s.holds(want)
	if err := s.Links.Link("other0", Make); err != nil {
		t.Fatal(err)
	}
	settle()
	for _, do := range []Deed{SetDown, SetUp, FlushAddresses, Destroy} {
		if err := s.Links.Link("other0", do); err != nil {
			t.Fatal(err)
		}
		if _, doubt := s.Kernel.Changes(); doubt {
			if s.noise++; s.noise > mostNoise {
				t.Fatalf("doubt after %s of a link that carries nothing", do)
			}
		}
	}
}

func testPlainChanges(_ *testing.T, s *suite) {
	s.link(Make)
	s.reach(direct(3, 4))
	defer s.following()()
	mirror := s.dump()
	for _, o := range overlays {
		for _, e := range []backend.Route{o.direct(9), o.direct(10)} {
			s.by(s.Hand.Put(e))
			s.told(mirror, "put "+e.String(), backend.Change{Entry: e})
			s.by(s.Hand.Remove(e))
			s.told(mirror, "remove "+e.String(), backend.Change{Entry: e, Gone: true})
		}
		narrow := o.direct(4)
		narrow.MTU = 1300
		s.apply(backend.Replace, narrow)
		s.told(mirror, "own replace", backend.Change{Entry: narrow})
		s.apply(backend.Add, o.fdb(4))
		s.apply(backend.Add, o.neighbour(4))
		s.apply(backend.Add, o.nexthop(4))
		s.apply(backend.Replace, o.route(4))
		s.told(mirror, "own switch", backend.Change{Entry: o.route(4)})
		s.apply(backend.Replace, o.direct(4))
		s.apply(backend.Delete, o.nexthop(4))
		s.told(mirror, "own switch back", backend.Change{Entry: o.direct(4)}, backend.Change{Entry: o.nexthop(4), Gone: true})
	}
	s.quiet("all that")
}
