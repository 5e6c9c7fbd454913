package backendtest

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
)

// Harness is a Kernel under test, empty at first, whose own devices are
// those that [Owns] tells by name, and other hands on the same kernel.
type Harness struct {
	Kernel backend.Kernel
	Hand   Hand
	Others Others
	Links  Links
}

// Links makes and changes links of the host's own, which have an address of each
// family.
type Links interface {
	// Link does a deed to the link of that name.
	Link(name string, do Deed) error
}

// Deed is what is done to a link.
type Deed string

// The deeds. A link that is made is up and has a carrier. Renaming gives it the
// name with an x behind it, or takes that away.
const (
	Make           Deed = "make"
	Destroy        Deed = "destroy"
	SetDown        Deed = "set down"
	SetUp          Deed = "set up"
	LoseCarrier    Deed = "lose carrier"
	GetCarrier     Deed = "get carrier"
	FlushAddresses Deed = "flush addresses"
	Rename         Deed = "rename"
	NameBack       Deed = "name back"
)

// Hand changes what is ours from outside.
type Hand interface {
	// Put makes an entry, or makes the one of its identity so.
	Put(e backend.Entry) error
	// Remove takes an entry away that is there.
	Remove(e backend.Entry) error
	// Down takes a device down.
	Down(dev string) error
}

// Others makes what is another's: a Route, a Nexthop that has the number which
// the Kernel would choose next, a VXLAN Device, or, if the Device's VNI is 0, a
// device of another kind.
type Others interface {
	Stand(e backend.Entry) error
	// Stands tells whether it is there untouched.
	Stands(e backend.Entry) (bool, error)
	// Yield takes away what Stand made. Abandon does that to all routes at once,
	// in the way of which the kernel says least.
	Yield(e backend.Entry) error
	Abandon() error
}

// Owns tells by name which devices the suite takes for its own.
func Owns(dev string) bool { return strings.HasPrefix(dev, "ripstop") }

// Conformance checks what every Kernel must do. open returns a new Harness for
// each case.
func Conformance(t *testing.T, open func(t *testing.T) Harness) {
	for name, run := range map[string]func(*testing.T, *suite){
		"empty":                  testEmpty,
		"add":                    testAdd,
		"idempotent":             testIdempotent,
		"replace":                testReplace,
		"device in place":        testDeviceInPlace,
		"device down":            testDeviceDown,
		"link-local addresses":   testLinkLocal,
		"settings of a device":   testSettings,
		"misfit":                 testMisfit,
		"another vni":            testAnotherVNI,
		"delete what is not":     testDeleteAbsent,
		"delete device":          testDeleteDevice,
		"delete nexthop":         testDeleteNexthop,
		"missing device":         testMissingDevice,
		"missing nexthop":        testMissingNexthop,
		"errors in a batch":      testErrorsInBatch,
		"foreign route":          testForeignRoute,
		"foreign wider route":    testForeignWiderRoute,
		"foreign nexthop":        testForeignNexthop,
		"foreign vxlan":          testForeignVXLAN,
		"foreign link":           testForeignLink,
		"added twice":            testAddedTwice,
		"outside hand":           testOutsideHand,
		"several for one mac":    testSeveralForOneMAC,
		"metrics and tables":     testMetricsAndTables,
		"watch":                  testWatch,
		"watch ends":             testWatchEnds,
		"changes by a hand":      testChangesByHand,
		"changes of others":      testChangesOfOthers,
		"own changes":            testOwnChanges,
		"freed":                  testFreed,
		"doubt":                  testDoubt,
		"mirror":                 testMirror,
		"plain routes":           testPlainRoutes,
		"plain switch":           testPlainSwitch,
		"route mtu":              testRouteMTU,
		"foreign plain route":    testForeignPlainRoute,
		"plain route's link":     testPlainRoutesLink,
		"link and doubt":         testLinkAndDoubt,
		"plain changes":          testPlainChanges,
		"cancelled":              testCancelled,
		"walk":                   testWalk,
		"walk with outside hand": testWalkWithHand,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run(t, &suite{t: t, Harness: open(t)})
		})
	}
}

func testEmpty(_ *testing.T, s *suite) { s.holds(&backend.State{}) }

func testAdd(_ *testing.T, s *suite) {
	want := &backend.State{}
	for _, o := range overlays {
		for _, e := range append([]backend.Entry{o.device(), o.address(1)}, o.peer(2)...) {
			s.apply(backend.Add, e)
			want.Put(e)
			s.holds(want)
		}
	}
}

func testIdempotent(t *testing.T, s *suite) {
	want := world(20)
	s.reach(want)
	if ops := backend.Diff(s.dump(), want); len(ops) > 0 {
		t.Fatalf("second pass has ops: %v", ops)
	}
}

func testReplace(_ *testing.T, s *suite) {
	s.reach(world(2))
	want := world(2)
	for _, o := range overlays {
		fdb := o.fdb(2)
		fdb.Remote = o.local(77)
		s.apply(backend.Replace, fdb)
		neighbour := o.neighbour(2)
		neighbour.MAC = o.fdb(3).MAC
		s.apply(backend.Replace, neighbour)
		route := o.route(2)
		route.Via = o.nexthop(3)
		s.apply(backend.Replace, route)
		want = with(want, fdb, neighbour, route)
	}
	s.holds(want)
}

func testDeviceInPlace(t *testing.T, s *suite) {
	s.reach(world(2))
	for _, o := range overlays {
		d := o.device()
		d.MTU = 1300
		s.apply(backend.Replace, d)
		d.Local = o.local(99)
		s.apply(backend.Replace, d)
		s.holds(with(s.dump(), d))

		d.MAC = backend.MAC{2, 0, 0, 0, 7, 9}
		want := s.dump()
		want.Apply(backend.Op{Verb: backend.Replace, Entry: d})
		s.apply(backend.Replace, d)
		s.holds(want)
		if want.Has(o.neighbour(2)) {
			t.Fatal("the model keeps neighbours when the MAC changes")
		}
		// By the way of Diff, what was flushed is there again at the end.
		s.reach(with(world(2), slices.Collect(s.dump().Pick(slices.Values([]backend.Entry{overlays[0].device(), overlays[1].device()})).All())...))
	}
}

func testDeviceDown(_ *testing.T, s *suite) {
	want := world(3)
	for _, o := range overlays {
		s.reach(want)
		s.by(s.Hand.Down(o.dev))
		down := o.device()
		down.Down = true
		left := with(want, down)
		for i := 2; i < 5; i++ {
			left.Drop(o.neighbour(i))
			left.Drop(o.nexthop(i))
			left.Drop(o.route(i))
		}
		if o.v6 {
			left.Drop(o.address(1))
		}
		s.holds(left)
		s.wantErr(s.try(backend.Add, o.nexthop(2))[0], syscall.ENETDOWN)
		s.reach(want)
	}
	learning := overlays[0].device()
	learning.Learning = true
	s.by(s.Hand.Put(learning))
	s.holds(with(want, learning))
	s.reach(want)
}

// testSettings: what a device of ours has otherwise than the host's own is mended
// in place, and so is what a hand sets otherwise.
func testSettings(_ *testing.T, s *suite) {
	want := world(2)
	s.reach(want)
	for _, o := range overlays {
		for _, set := range []func(*backend.Device){
			func(d *backend.Device) { d.NoForwarding = true },
			func(d *backend.Device) { d.PathFilter = true },
			func(d *backend.Device) { d.NoTxChecksum = true },
		} {
			d := o.device()
			set(&d)
			s.by(s.Hand.Put(d))
			s.holds(with(want, d))
			s.reach(want)
		}
	}
	for _, o := range overlays {
		d := o.device()
		d.NoTxChecksum = true
		want.Put(d)
	}
	s.reach(want)
	s.reach(backend.NewState())
	s.reach(want)
}

// testLinkLocal: the kernel's own link-local addresses are entries like others,
// and that it makes them is an attribute of the device.
func testLinkLocal(_ *testing.T, s *suite) {
	want := world(2)
	s.reach(want)
	for _, o := range overlays {
		d := o.device()
		d.LinkLocal = true
		s.by(s.Hand.Put(d))
		s.holds(with(want, d))
		address := backend.Address{Dev: o.dev, Prefix: netip.MustParsePrefix("fe80::5/64")}
		s.by(s.Hand.Put(address))
		s.holds(with(want, d, address))
		s.reach(want)
	}
}

func testMisfit(_ *testing.T, s *suite) {
	s.reach(world(2))
	for _, o := range overlays {
		other := o.device()
		other.VNI, other.Port = 8, 4789
		want := world(2)
		want.Put(other)
		s.reach(want)
		s.wantErr(s.try(backend.Replace, o.device())[0], syscall.EOPNOTSUPP)
		s.reach(world(2))
	}
}

// testAnotherVNI moves all entries to devices of another VNI and so of other
// names, as after a change of the config.
func testAnotherVNI(_ *testing.T, s *suite) {
	s.reach(world(5))
	want := &backend.State{}
	names := map[string]string{"ripstop.7": "ripstop.8", "ripstop-v6.7": "ripstop-v6.8"}
	for e := range world(5).All() {
		switch e := e.(type) {
		case backend.Device:
			e.Name, e.VNI, e.MAC[5] = names[e.Name], 8, 8
			want.Put(e)
		case backend.Address:
			e.Dev = names[e.Dev]
			want.Put(e)
		case backend.FDB:
			e.Dev = names[e.Dev]
			want.Put(e)
		case backend.Neighbour:
			e.Dev = names[e.Dev]
			want.Put(e)
		case backend.Nexthop:
			e.Dev = names[e.Dev]
			want.Put(e)
		case backend.Route:
			e.Via.Dev = names[e.Via.Dev]
			want.Put(e)
		}
	}
	s.reach(want)
}

func testDeleteAbsent(_ *testing.T, s *suite) {
	for range 2 { // Without the device, then with it.
		for _, o := range overlays {
			for _, e := range append(o.peer(2), o.address(5)) {
				s.apply(backend.Delete, e)
			}
			s.apply(backend.Delete, backend.Device{Name: "ripstop.99"})
		}
		s.reach(world(0))
	}
	s.holds(world(0))
}

func testDeleteDevice(t *testing.T, s *suite) {
	s.reach(world(3))
	s.apply(backend.Delete, overlays[0].device())
	want := world(3)
	want.Apply(backend.Op{Verb: backend.Delete, Entry: overlays[0].device()})
	s.holds(want)
	s.apply(backend.Delete, overlays[1].device())
	s.holds(&backend.State{})
	s.reach(world(3)) // The names and numbers are free again.
	s.reach(&backend.State{})
	if n := s.dump().Len(); n != 0 {
		t.Fatalf("%d entries left", n)
	}
}

func testDeleteNexthop(_ *testing.T, s *suite) {
	s.reach(world(3))
	want := world(3)
	for _, o := range overlays {
		op := backend.Op{Verb: backend.Delete, Entry: o.nexthop(3)}
		s.apply(op.Verb, op.Entry)
		want.Apply(op)
	}
	s.holds(want)
	s.reach(world(3))
}

func testMissingDevice(_ *testing.T, s *suite) {
	for _, o := range overlays {
		for _, e := range []backend.Entry{o.address(1), o.fdb(2), o.neighbour(2), o.nexthop(2)} {
			s.wantErr(s.try(backend.Add, e)[0], syscall.ENODEV)
		}
		s.wantErr(s.try(backend.Replace, o.device())[0], syscall.ENODEV)
	}
	s.holds(&backend.State{})
}

func testMissingNexthop(_ *testing.T, s *suite) {
	s.reach(world(1))
	for _, o := range overlays {
		s.wantErr(s.try(backend.Add, o.route(5))[0], syscall.EINVAL)
		s.by(s.Hand.Remove(o.nexthop(2))) // Its number is known and stale.
		s.wantErr(s.try(backend.Add, o.route(2))[0], syscall.EINVAL)
		s.apply(backend.Add, o.nexthop(2))
		s.apply(backend.Add, o.route(2))
	}
	s.holds(world(1))
}

func testErrorsInBatch(t *testing.T, s *suite) {
	const n = 700
	o := overlays[0]
	want := world(0)
	s.reach(want)
	check := func(entries []backend.Entry, bad func(i int) bool, target error) {
		t.Helper()
		for i, err := range s.try(backend.Add, entries...) {
			switch {
			case bad(i) && !errors.Is(err, target):
				t.Fatalf("op %d: error is %v, want %v", i, err, target)
			case !bad(i) && err != nil:
				t.Fatalf("op %d: %v", i, err)
			case !bad(i):
				want.Put(entries[i])
			}
		}
		s.holds(want)
	}
	var fdb, neighbours, nexthops, routes []backend.Entry
	badFDB := func(i int) bool { return i%100 == 3 || i == n-1 || i == 256 }
	for i := range n {
		f := o.fdb(i + 2)
		if badFDB(i) {
			f.Remote = overlays[1].local(i)
		}
		fdb = append(fdb, f)
		neighbours = append(neighbours, o.neighbour(i+2))
		nexthops = append(nexthops, o.nexthop(i+2))
		routes = append(routes, o.route(i+2))
	}
	check(fdb, badFDB, syscall.EAFNOSUPPORT)
	check(neighbours, func(int) bool { return false }, nil)
	check(nexthops, func(int) bool { return false }, nil)
	badRoute := func(i int) bool { return i%99 == 0 }
	for i, e := range routes {
		if badRoute(i) {
			s.by(s.Others.Stand(e))
		}
	}
	check(routes, badRoute, backend.ErrInTheWay)
	s.reach(&backend.State{})
}

func testForeignRoute(_ *testing.T, s *suite) {
	s.reach(world(2))
	for _, o := range overlays {
		route := o.route(9)
		route.Via = o.nexthop(2)
		s.by(s.Others.Stand(route))
		s.holds(world(2))
		s.wantErr(s.try(backend.Add, route)[0], backend.ErrInTheWay, syscall.EEXIST)
		s.apply(backend.Delete, route)
		s.stands(route)
		s.holds(world(2))
	}
}

// testForeignWiderRoute: another's route to all subnets is in no peer's way.
func testForeignWiderRoute(_ *testing.T, s *suite) {
	s.reach(world(1))
	for _, o := range overlays {
		wide := backend.Route{Dst: netip.PrefixFrom(o.subnet(0).Addr(), 40).Masked(), Via: o.nexthop(2)}
		if !o.v6 {
			wide.Dst = netip.PrefixFrom(o.subnet(0).Addr(), 16).Masked()
		}
		s.by(s.Others.Stand(wide))
		for _, e := range o.peer(5) {
			s.apply(backend.Add, e)
		}
		s.stands(wide)
	}
}

func testForeignNexthop(_ *testing.T, s *suite) {
	want := world(2)
	s.reach(want)
	for _, o := range overlays {
		s.by(s.Others.Stand(o.nexthop(5)))
		s.holds(want)
		s.apply(backend.Add, o.nexthop(6))
		s.by(s.Others.Stand(o.nexthop(7))) // The kernel has not seen it in a dump.
		s.apply(backend.Add, o.nexthop(5), o.nexthop(7), o.nexthop(8))
		want = with(want, o.nexthop(5), o.nexthop(6), o.nexthop(7), o.nexthop(8))
		s.holds(want)
	}
	s.reach(world(2))
	for _, o := range overlays {
		s.stands(o.nexthop(5))
		s.stands(o.nexthop(7))
	}
}

func testForeignVXLAN(t *testing.T, s *suite) {
	for _, o := range overlays {
		other := o.device()
		other.Name = "other" + o.dev[7:]
		s.by(s.Others.Stand(other))
		s.holds(&backend.State{})
		err := s.try(backend.Add, o.device())[0]
		s.wantErr(err, backend.ErrInTheWay, syscall.EEXIST)
		if !strings.Contains(err.Error(), other.Name) {
			t.Fatalf("error does not name %s: %v", other.Name, err)
		}
		s.stands(other)
	}
	s.holds(&backend.State{})
}

func testForeignLink(t *testing.T, s *suite) {
	bridge := backend.Device{Name: overlays[0].dev}
	s.by(s.Others.Stand(bridge))
	have := s.dump()
	failures := backend.Execute(t.Context(), s.Kernel, have, backend.Diff(have, world(1)))
	if len(failures) == 0 {
		t.Fatal("no failure")
	}
	s.wantErr(failures[0].Err, backend.ErrInTheWay)
	s.wantErr(s.try(backend.Delete, overlays[0].device())[0], backend.ErrInTheWay)
	s.wantErr(s.try(backend.Replace, overlays[0].device())[0], backend.ErrInTheWay)
	s.stands(bridge)
	want := world(1)
	want.Apply(backend.Op{Verb: backend.Delete, Entry: overlays[0].device()})
	s.holds(want) // The other family is not hindered.
}

func testAddedTwice(_ *testing.T, s *suite) {
	s.reach(world(1))
	for _, o := range overlays {
		s.wantErr(s.try(backend.Add, o.device())[0], backend.ErrInTheWay, syscall.EEXIST)
		s.wantErr(s.try(backend.Add, o.address(1))[0], syscall.EEXIST)
		s.apply(backend.Add, o.fdb(2))
		s.apply(backend.Add, o.neighbour(2))
		s.wantErr(s.try(backend.Add, o.nexthop(2))[0], backend.ErrInTheWay, syscall.EEXIST)
		s.wantErr(s.try(backend.Add, o.route(2))[0], backend.ErrInTheWay, syscall.EEXIST)
	}
	s.holds(world(1))
}

func testOutsideHand(_ *testing.T, s *suite) {
	want := world(3)
	s.reach(want)
	for _, o := range overlays {
		for _, e := range append([]backend.Entry{o.device(), o.address(1)}, o.peer(3)...) {
			left := want.Clone()
			left.Apply(backend.Op{Verb: backend.Delete, Entry: e})
			s.by(s.Hand.Remove(e))
			s.holds(left)
			s.reach(want)
		}
		fdb, neighbour := o.fdb(3), o.neighbour(3)
		fdb.Remote, neighbour.MAC = o.local(66), o.fdb(2).MAC
		for _, e := range []backend.Entry{fdb, neighbour, o.fdb(9), o.neighbour(9), o.nexthop(9), o.address(9)} {
			s.by(s.Hand.Put(e))
			s.holds(with(want, e))
			s.reach(want)
		}
	}
}

func testSeveralForOneMAC(_ *testing.T, s *suite) {
	s.reach(world(1))
	want := world(1)
	for _, o := range overlays {
		for i := 2; i < 5; i++ {
			want.Put(backend.FDB{Dev: o.dev, Remote: o.local(i)})
		}
	}
	s.reach(want)
	for _, o := range overlays {
		s.apply(backend.Delete, backend.FDB{Dev: o.dev, Remote: o.local(3)})
		want.Drop(backend.FDB{Dev: o.dev, Remote: o.local(3)})
	}
	s.holds(want)
	s.reach(world(1))
}

func testMetricsAndTables(_ *testing.T, s *suite) {
	want := world(1)
	for _, o := range overlays {
		for _, r := range []backend.Route{{Table: 100}, {Table: 5000}, {Metric: 7}} {
			r.Dst, r.Via = o.subnet(2), o.nexthop(2)
			want.Put(r)
		}
	}
	s.reach(want)
	s.reach(world(1))
}

func testCancelled(t *testing.T, s *suite) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Kernel.Dump(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("dump: %v", err)
	}
	for _, err := range s.Kernel.Apply(ctx, []backend.Op{{Entry: overlays[0].device()}, {Entry: overlays[1].device()}}) {
		s.wantErr(err, context.Canceled)
	}
	s.holds(&backend.State{})
	s.reach(world(1))
}
