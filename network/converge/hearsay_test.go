package converge

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
)

// byHearsay has a loop begin with what a snapshot says.
func byHearsay(l *Loop, want []backend.Entry) {
	l.SetCareful(true)
	l.Update(1, nil, want)
	settle()
}

// TestFoundAtAStartByHearsay: of what an earlier life left, and the snapshot does not
// know of, nothing is touched before the store is listed, and another hand that changes
// it, or anything else, is undone.
func TestFoundAtAStartByHearsay(t *testing.T) {
	// The third peer is another machine by now, the fourth came after the snapshot was
	// written, the fifth is not there any more or was never made.
	left := append(append(owed(2), moved(3)...), peer(4)...)
	want := owed(2, 3, 5)
	stands := append(append(slices.Clone(left), peer(5)...), peer(3)[0])
	drop := func(entries ...backend.Entry) func(*backend.State) {
		return func(s *backend.State) {
			for _, e := range entries {
				s.Apply(backend.Op{Verb: backend.Delete, Entry: e})
			}
		}
	}
	put := func(entries ...backend.Entry) func(*backend.State) {
		return func(s *backend.State) {
			for _, e := range entries {
				s.Put(e)
			}
		}
	}
	fdb := func(n byte, to string) backend.Entry {
		e := moved(n)[0].(backend.FDB)
		e.Remote = netip.MustParseAddr(to)
		return e
	}
	neighbour := func(n byte) backend.Entry {
		e := peer(n)[1].(backend.Neighbour)
		e.MAC = backend.MAC{2, 0, 0, 0, 9, 9}
		return e
	}
	route := func(n byte) backend.Entry {
		e := peer(n)[3].(backend.Route)
		e.Via = peer(5)[2].(backend.Nexthop)
		return e
	}
	odd := func(n byte) backend.Entry {
		e := peer(n)[0].(backend.FDB)
		e.Odd = "port 1"
		return e
	}
	otherMAC := device
	otherMAC.MAC = backend.MAC{2, 0, 0, 0, 9, 1}
	fake := backendtest.NewFake(left...)
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		byHearsay(l, want)
		holds(t, fake, stands...)
		if ops := fake.Ops(); slices.ContainsFunc(ops, func(op backend.Op) bool { return op.Verb != backend.Add }) {
			t.Errorf("at the start: %v", ops)
		}
		for _, tc := range []struct {
			name string
			harm func(*backend.State)
		}{
			{"known, deleted", drop(peer(2)...)},
			{"known, made another's", put(neighbour(2))},
			{"known, sent elsewhere", put(route(2))},
			{"known, made odd", put(odd(2))},
			{"of another machine, deleted", drop(moved(3)...)},
			{"of another machine, a part deleted", drop(moved(3)[1])},
			{"of another machine, made what the snapshot says", put(peer(3)...)},
			{"of another machine, made what nobody says", put(fdb(3, "10.99.9.9"), neighbour(3), route(3))},
			{"unknown, deleted", drop(peer(4)...)},
			{"unknown, made another's", put(neighbour(4), route(4))},
			{"made, deleted", drop(peer(5)...)},
			{"foreign, added", put(peer(9)...)},
			{"device deleted", drop(device)},
			{"device's MAC changed", func(s *backend.State) { s.Apply(backend.Op{Verb: backend.Replace, Entry: otherMAC}) }},
		} {
			fake.Hand(tc.harm)
			settle()
			if got := fake.State(); !got.Equal(backend.NewState(stands...)) {
				t.Fatalf("%s: the kernel has\n%s\nwant\n%s", tc.name, got, backend.NewState(stands...))
			}
			time.Sleep(2 * calmAfter)
			synctest.Wait()
		}
		if s := l.Stats(); s.Drift == 0 || s.Failing != 0 {
			t.Errorf("counted: %+v", s)
		}
		l.Update(2, nil, peer(4)) // The listing.
		l.SetCareful(false)
		settle()
		holds(t, fake, owed(2, 3, 4, 5)...)
		fake.Hand(put(moved(3)...))
		settle()
		holds(t, fake, owed(2, 3, 4, 5)...)
	})
}

// TestAnyHandIsUndoneByHearsay: whatever was left and whatever the snapshot says, the
// first comparison only adds, what stands then stands on, and after the listing there
// is what is wanted.
func TestAnyHandIsUndoneByHearsay(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 7))
		some := func() []backend.Entry {
			out := []backend.Entry{device}
			for n := byte(2); n < 9; n++ {
				if of := [][]backend.Entry{nil, peer(n), moved(n)}[r.IntN(3)]; of != nil {
					out = append(out, of...)
				}
			}
			return out
		}
		left, want, other := some(), some(), some()
		fake := backendtest.NewFake(left...)
		loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
			byHearsay(l, want)
			stands := fake.State()
			for _, e := range left {
				if !stands.Has(e) {
					t.Errorf("seed %d: %s is gone", seed, e)
				}
			}
			for _, e := range want {
				if _, ok := stands.At(e); !ok {
					t.Errorf("seed %d: %s was not made", seed, e)
				}
			}
			for range 3 {
				fake.Hand(func(s *backend.State) {
					for e := range stands.All() {
						if ofPeer(e) && r.IntN(3) == 0 {
							s.Apply(backend.Op{Verb: backend.Delete, Entry: e})
						}
					}
					for _, e := range other {
						if ofPeer(e) && r.IntN(3) == 0 {
							s.Put(e)
						}
					}
				})
				settle()
				if got := fake.State(); !got.Equal(stands) {
					t.Errorf("seed %d: the kernel has\n%s\nhad\n%s", seed, got, stands)
					return
				}
				time.Sleep(2 * calmAfter)
				synctest.Wait()
			}
			l.SetCareful(false)
			settle()
			holds(t, fake, want...)
		})
	}
}

// TestForeignFormsFoundAreNotPutBack: what no life of ours made is left alone where it
// is found, and made right once another hand has touched it again.
func TestForeignFormsFoundAreNotPutBack(t *testing.T) {
	odd := peer(2)[0].(backend.FDB)
	odd.Odd = "port 1"
	stray := peer(3)[2].(backend.Nexthop)
	stray.Stray = 17
	flannels := peer(4)[3].(backend.Route)
	flannels.Plain, flannels.Protocol = true, 3
	left := append(owed(2, 3, 4), odd, stray, flannels)
	fake := backendtest.NewFake(left...)
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		byHearsay(l, owed(2, 3, 4))
		holds(t, fake, left...)
		fake.Hand(func(s *backend.State) {
			for _, e := range []backend.Entry{odd, stray, flannels} {
				s.Drop(e)
			}
		})
		settle()
		holds(t, fake, owed(2, 3, 4)...)
		fake.Hand(func(s *backend.State) {
			for _, e := range []backend.Entry{odd, stray, flannels} {
				s.Put(e)
			}
		})
		settle()
		holds(t, fake, owed(2, 3, 4)...)
	})
}

// TestPlainRouteThatWentByHearsay: a direct route that an earlier life made by another
// interface is left alone, and is not wished back when that is gone: what was saved is.
func TestPlainRouteThatWentByHearsay(t *testing.T) {
	to := func(dev string) backend.Route {
		return backend.Route{
			Dst: netip.MustParsePrefix("10.5.2.0/24"), Plain: true, Via: backend.Nexthop{Dev: dev, Gateway: netip.MustParseAddr("10.99.0.2")},
		}
	}
	fake := backendtest.NewFake()
	for _, dev := range []string{"eth0", "eth1"} {
		if err := fake.Link(dev, backendtest.Make); err != nil {
			t.Fatal(err)
		}
	}
	fake.Hand(func(s *backend.State) { s.Put(to("eth0")) })
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		byHearsay(l, []backend.Entry{to("eth1")})
		holds(t, fake, to("eth0"))
		if err := fake.Link("eth0", backendtest.Destroy); err != nil {
			t.Error(err)
		}
		settle()
		holds(t, fake, to("eth1"))
	})
}

// TestWantThatChangesByHearsay, as where the node moves: what was known is followed,
// what was found otherwise stays.
func TestWantThatChangesByHearsay(t *testing.T) {
	fake := backendtest.NewFake(append(owed(2), moved(3)...)...)
	other := func(n byte) []backend.Entry {
		mac := backend.MAC{2, 0, 0, 0, 3, n}
		fdb, neighbour, route := peer(n)[0].(backend.FDB), peer(n)[1].(backend.Neighbour), peer(n)[3].(backend.Route)
		fdb.MAC, neighbour.MAC, route.MTU = mac, mac, 1300
		return []backend.Entry{fdb, neighbour, peer(n)[2], route}
	}
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		byHearsay(l, owed(2, 3))
		l.Update(1, append(peer(2), peer(3)...), append(other(2), other(3)...))
		settle()
		found := moved(3)[:2] // The rest of it is as it was wanted.
		holds(t, fake, append(append(append([]backend.Entry{device}, other(2)...), other(3)...), found...)...)
		l.SetCareful(false)
		settle()
		holds(t, fake, append([]backend.Entry{device}, append(other(2), other(3)...)...)...)
	})
}

// TestDoubtAtAStartByHearsay: as long as the kernel cannot be read again, what the
// mirror lacks may have been there from the beginning.
func TestDoubtAtAStartByHearsay(t *testing.T) {
	fake := backendtest.NewFake(owed(2)...)
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		settle() // It has read the kernel.
		fake.FailDump(errors.New("no buffer space"))
		fake.Overflow()
		fake.Silently(func(s *backend.State) {
			for _, e := range moved(3) {
				s.Put(e)
			}
		})
		byHearsay(l, owed(2, 5))
		holds(t, fake, append(owed(2, 5), moved(3)...)...)
		fake.FailDump(nil)
		time.Sleep(2 * longestRetry)
		synctest.Wait()
		holds(t, fake, append(owed(2, 5), moved(3)...)...)
		fake.Hand(func(s *backend.State) { s.Drop(moved(3)[3]) })
		settle()
		holds(t, fake, append(owed(2, 5), moved(3)...)...)
	})
}

// TestWrongDeviceByHearsay: a device that is not as it should be is put right with all
// that hung on it.
func TestWrongDeviceByHearsay(t *testing.T) {
	for name, change := range map[string]func(*backend.Device){
		"MAC": func(d *backend.Device) { d.MAC[5]++ }, "VNI": func(d *backend.Device) { d.VNI++ },
	} {
		was := device
		change(&was)
		fake := backendtest.NewFake(append(append([]backend.Entry{was}, peer(2)...), moved(3)...)...)
		loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
			byHearsay(l, owed(2, 3))
			if !isConverged(l) {
				t.Errorf("%s: not converged", name)
			}
			holds(t, fake, append(append(owed(2), moved(3)...), peer(3)[0])...)
		})
	}
}

// TestDeviceThatIsNotWantedByHearsay: it is left alone as long as a route sends by it.
func TestDeviceThatIsNotWantedByHearsay(t *testing.T) {
	old := device
	old.Name, old.VNI = "ripstop.7", 7
	via := backend.Nexthop{Dev: old.Name, Gateway: netip.MustParseAddr("10.5.77.0")}
	mac := backend.MAC{2, 0, 0, 0, 7, 7}
	theirs := []backend.Entry{
		old, backend.FDB{Dev: old.Name, MAC: mac, Remote: netip.MustParseAddr("10.99.0.77")}, backend.Neighbour{Dev: old.Name, IP: via.Gateway, MAC: mac},
		via, backend.Route{Dst: netip.MustParsePrefix("10.5.77.0/24"), Via: via},
	}
	fake := backendtest.NewFake(append(owed(2), theirs...)...)
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		byHearsay(l, owed(2))
		holds(t, fake, append(owed(2), theirs...)...)
		l.SetCareful(false)
		time.Sleep(2 * longestRetry)
		synctest.Wait()
		holds(t, fake, owed(2)...)
	})
	fake = backendtest.NewFake(append(owed(2), theirs[:2]...)...)
	loop(t, fake, func(l *Loop, _ *observer.ObservedLogs) {
		byHearsay(l, owed(2))
		holds(t, fake, owed(2)...)
		if s := l.Stats(); s.Failing != 0 {
			t.Errorf("what goes with it is made again: %+v", s)
		}
	})
}
