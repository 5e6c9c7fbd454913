package backendtest

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
)

// following runs Watch until end and returns once it has subscribed and the
// doubt of the beginning has been told.
func (s *suite) following() (end func()) {
	s.t.Helper()
	changed, end := s.watched()
	select {
	case <-changed:
	case <-time.After(patience):
		s.t.Fatal("changed is not called at the beginning")
	}
	if _, doubt := s.Kernel.Changes(); !doubt {
		s.t.Fatal("no doubt at the beginning")
	}
	s.calm(10)
	return end
}

// calm waits until so many looks in a row have found no doubt: a carrier's state is
// announced late (linkwatch_event).
func (s *suite) calm(looks int) {
	for quiet := 0; quiet < looks; quiet++ {
		moment()
		if _, doubt := s.Kernel.Changes(); doubt {
			quiet = 0
		}
	}
}

// moment passes between two looks at what the kernel announces by itself.
func moment() { <-time.After(5 * time.Millisecond) }

// mostNoise is how often there may be a doubt without a cause: the state of a
// new device's carrier is announced up to a second later (linkwatch_event).
const mostNoise = 4

// changes is Changes without a doubt, if ok.
func (s *suite) changes(after string) (changes []backend.Change, ok bool) {
	s.t.Helper()
	changes, doubt := s.Kernel.Changes()
	if !doubt {
		return changes, true
	}
	if s.noise++; s.noise > mostNoise {
		s.t.Fatalf("doubt after %s", after)
	}
	return nil, false
}

// quiet checks that nothing is left to be told, now and a little later.
func (s *suite) quiet(after string) {
	s.t.Helper()
	for range 2 {
		if changes, _ := s.changes(after); len(changes) > 0 {
			s.t.Fatalf("after %s: told of %v", after, changes)
		}
		moment()
	}
}

// told checks that Changes tells, without a doubt, of all that is wanted and
// that what it tells comes to the same.
func (s *suite) told(mirror *backend.State, after string, want ...backend.Change) {
	s.t.Helper()
	changes, ok := s.changes(after)
	if !ok {
		*mirror = *s.dump()
		return
	}
	for _, w := range want {
		if !slices.ContainsFunc(changes, func(c backend.Change) bool {
			return backend.Identity(c.Entry) == backend.Identity(w.Entry) && c.Gone == w.Gone && (c.Gone || c.Entry == w.Entry)
		}) {
			s.t.Fatalf("after %s: told of %v, which lacks %v", after, changes, w)
		}
	}
	if _, doubt := mirror.Correct(changes); doubt {
		s.t.Fatalf("doubt of the mirror after %s", after)
	}
	s.holds(mirror)
}

func testChangesByHand(_ *testing.T, s *suite) {
	s.reach(world(3))
	defer s.following()()
	mirror := s.dump()
	for _, o := range overlays {
		fdb, neighbour := o.fdb(3), o.neighbour(3)
		fdb.Remote, neighbour.MAC = o.local(66), o.fdb(2).MAC
		for _, e := range []backend.Entry{o.fdb(9), o.neighbour(9), o.nexthop(9), o.route(9), fdb, neighbour} {
			s.by(s.Hand.Put(e))
			s.told(mirror, "put "+e.String(), backend.Change{Entry: e})
		}
		// Routes of IPv4 go silently with their nexthop.
		for _, e := range []backend.Entry{o.route(9), o.nexthop(9), o.neighbour(9), o.fdb(9), o.fdb(2), o.neighbour(2), o.nexthop(2)} {
			s.by(s.Hand.Remove(e))
			s.told(mirror, "remove "+e.String(), backend.Change{Entry: e, Gone: true})
		}
	}
	s.quiet("all that")
}

func testChangesOfOthers(_ *testing.T, s *suite) {
	s.reach(world(2))
	defer s.following()()
	s.by(s.Others.Stand(overlays[0].nexthop(5)))
	for _, o := range overlays {
		s.by(s.Others.Stand(o.route(9)))
	}
	s.by(s.Others.Stand(backend.Device{Name: "other0"}))
	s.quiet("changes of others'")
}

func testOwnChanges(_ *testing.T, s *suite) {
	s.reach(world(1))
	defer s.following()()
	mirror := s.dump()
	for _, o := range overlays {
		for _, e := range o.peer(2) {
			s.apply(backend.Replace, e)
			s.told(mirror, "own replace of what is there")
		}
		for _, e := range o.peer(9) {
			s.apply(backend.Add, e)
			s.told(mirror, "own add of "+e.String(), backend.Change{Entry: e})
			s.quiet("own change")
		}
		peer := o.peer(9)
		for _, e := range slices.Backward(peer) {
			s.apply(backend.Delete, e)
			s.told(mirror, "own delete of "+e.String(), backend.Change{Entry: e, Gone: true})
			s.quiet("own change")
		}
	}
	// What was noted as done is no news when it is told.
	want := world(300)
	for _, f := range backend.Execute(s.t.Context(), s.Kernel, mirror, backend.Diff(mirror, want)) {
		s.t.Fatal(f)
	}
	if changes, ok := s.changes("own changes"); ok {
		if news, doubt := mirror.Correct(changes); doubt || len(news) > 0 || len(changes) == 0 {
			s.t.Fatalf("of %d own changes told, these are news: %v; doubt %t", len(changes), news, doubt)
		}
	}
	s.quiet("own changes")
}

// testFreed: what was in the way is told of when it goes, once, and what was in
// the way of nothing is not.
func testFreed(_ *testing.T, s *suite) {
	s.reach(world(1))
	for _, o := range overlays {
		s.by(s.Others.Stand(o.route(8))) // Nobody asks for it.
		s.apply(backend.Add, o.fdb(9), o.neighbour(9))
		s.apply(backend.Add, o.nexthop(9))
	}
	defer s.following()()
	refused := func(e backend.Entry) {
		s.t.Helper()
		for calm := false; !calm; { // A link's state may yet be announced.
			s.wantErr(s.try(backend.Add, e)[0], backend.ErrInTheWay)
			moment()
			changes, _ := s.changes("a failure")
			calm = len(changes) == 0
		}
	}
	freed := func(e backend.Entry, after string) {
		s.t.Helper()
		changes, ok := s.changes(after)
		if ok && !slices.ContainsFunc(changes, func(c backend.Change) bool { return c.Freed && !c.Gone && c.Entry == backend.Identity(e) }) {
			s.t.Fatalf("after %s: told of %v", after, changes)
		}
		if _, doubt := s.dump().Correct(changes); doubt {
			s.t.Fatalf("doubt of the mirror after %s", after)
		}
		s.quiet(after)
		s.apply(backend.Add, e)
		s.changes("own add")
	}
	for _, o := range overlays {
		s.by(s.Others.Stand(o.route(9)))
		refused(o.route(9))
		s.by(s.Others.Yield(o.route(8)))
		s.by(s.Others.Yield(o.route(9)))
		freed(o.route(9), "the end of another's route")
	}
	for _, o := range overlays {
		s.apply(backend.Delete, o.route(9))
		s.changes("own delete")
		s.by(s.Others.Stand(o.route(9)))
		refused(o.route(9))
		s.by(s.Others.Abandon())
		freed(o.route(9), "the end of another's link")
	}
	device := overlays[0].device()
	device.Name, device.VNI = "ripstop.8", 8
	other := device
	other.Name = "other.8"
	s.by(s.Others.Stand(other))
	refused(device)
	s.by(s.Others.Yield(other))
	freed(device, "the end of another's VXLAN device")
}

func testDoubt(t *testing.T, s *suite) {
	if _, doubt := s.Kernel.Changes(); !doubt {
		t.Fatal("no doubt while nothing is subscribed")
	}
	s.reach(world(2))
	defer s.following()()
	doubt := func(what string, err error) {
		t.Helper()
		s.by(err)
		if changes, doubt := s.Kernel.Changes(); !doubt || len(changes) > 0 {
			t.Fatalf("no doubt after %s, told of %v", what, changes)
		}
		s.calm(3)
	}
	for _, o := range overlays {
		doubt("put address", s.Hand.Put(o.address(50)))
		doubt("remove address", s.Hand.Remove(o.address(50)))
		d := o.device()
		d.MTU = 1333
		doubt("another MTU", s.Hand.Put(d))
		doubt("down", s.Hand.Down(o.dev))
		s.apply(backend.Replace, o.device())
		doubt("own up", nil)
		doubt("remove device", s.Hand.Remove(o.device()))
		doubt("put device", s.Hand.Put(o.device()))
	}
}

// testMirror goes from one random state to the next, with an outside hand, and
// finds a mirror that Changes corrects equal to a dump whenever it says no doubt.
func testMirror(t *testing.T, s *suite) {
	s.link(Make)
	defer s.following()()
	r := rand.New(rand.NewPCG(13, 82))
	mirror, certain := s.dump(), 0
	compare := func(step int) {
		t.Helper()
		changes, doubt := s.Kernel.Changes()
		if !doubt {
			_, doubt = mirror.Correct(changes)
		}
		have := s.dump()
		switch {
		case doubt:
			mirror = have
		case !have.Equal(mirror):
			t.Fatalf("step %d: dump has\n%s\nmirror has\n%s\nafter %v", step, have, mirror, changes)
		default:
			certain++
		}
	}
	want := world(walkPeers)
	for step := range 60 {
		s.harm(r)
		compare(step)
		if step%3 == 0 {
			want = randomWorld(r)
		} else { // The devices stay as they are.
			next := randomWorld(r)
			for _, o := range overlays {
				if d, ok := want.Device(o.dev); ok {
					next.Put(d)
				} else {
					next.Apply(backend.Op{Verb: backend.Delete, Entry: o.device()})
				}
			}
			want = next
		}
		for _, f := range backend.Execute(t.Context(), s.Kernel, mirror, backend.Diff(mirror, want)) {
			t.Fatalf("step %d: %v", step, f)
		}
		compare(step)
	}
	if certain < 10 {
		t.Fatalf("doubt at all but %d steps", certain)
	}
}
