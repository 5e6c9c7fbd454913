package backendtest

import (
	"math/rand/v2"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
)

// testWalk goes from one random state to the next and finds each complete.
func testWalk(t *testing.T, s *suite) {
	r := rand.New(rand.NewPCG(7, 82))
	s.link(Make)
	for step := range 40 {
		want := randomWorld(r)
		s.reach(want)
		if t.Failed() {
			t.Fatalf("at step %d", step)
		}
	}
}

// testWalkWithHand goes the same way while an outside hand does harm before
// every step.
func testWalkWithHand(t *testing.T, s *suite) {
	r := rand.New(rand.NewPCG(11, 82))
	s.link(Make)
	for step := range 40 {
		s.harm(r)
		s.reach(randomWorld(r))
		if t.Failed() {
			t.Fatalf("at step %d", step)
		}
	}
}

// harm lets the outside hand take away or put something.
func (s *suite) harm(r *rand.Rand) {
	s.t.Helper()
	have := s.dump()
	switch r.IntN(8) {
	case 0:
		s.link(SetDown)
		s.link(SetUp)
	case 1:
		s.link(Destroy)
		s.link(Make)
	case 2:
		s.link(FlushAddresses)
	}
	for _, o := range overlays {
		if _, ok := have.Device(o.dev); !ok {
			continue
		}
		switch i := 2 + r.IntN(walkPeers); r.IntN(6) {
		case 0:
			s.by(s.Hand.Down(o.dev))
		case 1:
			s.by(s.Hand.Put(o.fdb(i)))
		case 2:
			if have.Has(o.nexthop(i)) {
				s.by(s.Hand.Remove(o.nexthop(i)))
			}
		case 3:
			if r, ok := have.At(o.route(i)); ok {
				s.by(s.Hand.Remove(r))
			}
		case 4:
			s.by(s.Hand.Remove(o.device()))
		case 5:
			s.by(s.Hand.Put(o.neighbour(i)))
		}
	}
}

const walkPeers = 8

// randomWorld is a state that a planner could want: all that a route needs is
// there.
func randomWorld(r *rand.Rand) *backend.State {
	s := &backend.State{}
	odds := func(n int) bool { return r.IntN(n) == 0 }
	for _, o := range overlays {
		if odds(6) {
			continue
		}
		d := o.device()
		if odds(8) {
			d.VNI = 9
		}
		if odds(3) {
			d.MTU = 1350
		}
		if odds(3) {
			d.MAC[5]++
		}
		if odds(3) {
			d.Local = o.local(200)
		}
		s.Put(d)
		s.Put(o.address(1 + r.IntN(2)*100))
		var there []int
		for i := 2; i < 2+walkPeers; i++ {
			if odds(3) {
				continue
			}
			if odds(4) {
				route := o.direct(i)
				route.MTU = uint16(r.IntN(2) * 1300)
				s.Put(route)
				continue
			}
			there = append(there, i)
			f, n := o.fdb(i), o.neighbour(i)
			if odds(3) {
				f.Remote = o.local(100 + i)
			}
			if odds(3) {
				f.MAC[2], n.MAC[2] = 1, 1
			}
			s.Put(f)
			s.Put(n)
			s.Put(o.nexthop(i))
			route := o.route(i)
			if odds(4) {
				route.Via = o.nexthop(there[r.IntN(len(there))])
			}
			route.MTU = uint16(r.IntN(2) * 1300)
			s.Put(route)
		}
	}
	return s
}
