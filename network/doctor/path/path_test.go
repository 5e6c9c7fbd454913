package path

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ripstop-net/ripstop/network/doctor"
)

// world is a network between two hosts that fails as it is told to. It is a Means.
type world struct {
	// lost are the ways that take nothing, by layer and direction, and takes what the
	// others take at most, in bytes, 0 for anything.
	lost  [2][2]bool
	takes [2][2]int
	// gone is the peer's host, mute that it answers no pings, refuses that it says that
	// its daemon is not there, and dead that its daemon is not, until the time given.
	gone, mute, refuses bool
	dead                bool
	until               time.Time
	// closed is the echo's port, by layer and direction.
	closed [2][2]bool
	// mtu is what this host sends at most by the overlay.
	mtu int
	// drops is one of how many pings is lost.
	drops   int
	trouble []string
	noway   bool
	// unresolved is a host that answers neither ARP nor neighbour discovery; of one in
	// so many requests of a kind this one's kernel says so.
	unresolved int64
	// pinged counts the pings of a layer, the others the requests of a kind that are lost:
	// one kind's have no say in which of another's are.
	pinged, silentPings [2]atomic.Int64
	silentEchoes        [2][2]atomic.Int64
	// oneWay is a host that takes no packets of a round trip by the overlay.
	oneWay bool
}

func (w *world) passes(l Layer, d Direction, size int) bool {
	return !w.gone && !w.lost[l][d] && (w.takes[l][d] == 0 || size <= w.takes[l][d])
}

// wait is the answer to a request, or its end without one; silent counts such ends.
func (w *world) wait(ok bool, silent *atomic.Int64) (time.Duration, error) {
	if !ok {
		if w.unresolved != 0 && silent.Add(1)%w.unresolved == 0 {
			return 0, fmt.Errorf("%w: no route to host", ErrUnresolved)
		}
		time.Sleep(answerWithin)
		return 0, ErrSilent
	}
	time.Sleep(time.Millisecond)
	return time.Millisecond, nil
}

func (w *world) Ping(_ context.Context, by Layer, size int) (time.Duration, error) {
	if w.noway {
		return 0, fmt.Errorf("%w: network is unreachable", ErrUnreachable)
	}
	if by == Overlay && w.mtu != 0 && size > w.mtu {
		return 0, &TooLargeError{MTU: w.mtu}
	}
	if w.oneWay && by == Overlay {
		return w.wait(false, &w.silentPings[by])
	}
	dropped := w.drops != 0 && w.pinged[by].Add(1)%int64(w.drops) == 0
	return w.wait(w.passes(by, Out, size) && w.passes(by, Back, size) && !w.mute && !dropped, &w.silentPings[by])
}

func (w *world) Echo(_ context.Context, by, back Layer, size, answer int) (time.Duration, []string, error) {
	if by == Overlay && w.mtu != 0 && size > w.mtu {
		return 0, nil, &TooLargeError{MTU: w.mtu}
	}
	arrives := w.passes(by, Out, size) && !w.closed[by][Out]
	if w.dead && (w.until.IsZero() || time.Now().Before(w.until)) {
		if w.refuses && arrives && w.passes(by, Back, 0) {
			return 0, nil, ErrRefused
		}
		rtt, err := w.wait(false, &w.silentEchoes[by][back])
		return rtt, nil, err
	}
	rtt, err := w.wait(arrives && w.passes(back, Back, answer) && !w.closed[back][Back] && !(w.oneWay && by == Overlay && back == Overlay), &w.silentEchoes[by][back])
	return rtt, w.trouble, err
}

func target() Target {
	a := netip.MustParseAddr
	return Target{
		Node: "one", Peer: "two", Family: "IPv4", MTU: 1450, Overhead: 50, TunnelPort: 8472, EchoPort: 8473, Life: Living,
		Own:   [2]netip.Addr{Underlay: a("10.0.0.1"), Overlay: a("10.5.1.0")},
		Their: [2]netip.Addr{Underlay: a("10.0.0.2"), Overlay: a("10.5.2.0")},
	}
}

// TestWhatIsBrokenIsNamed: for each thing that breaks, the verdict that names it, and
// no other.
func TestWhatIsBrokenIsNamed(t *testing.T) {
	both := [2]bool{true, true}
	out, back := [2]bool{Out: true}, [2]bool{Back: true}
	for name, c := range map[string]struct {
		world  *world
		target func(*Target)
		// want are the checks of the verdicts with their severity, says what the first
		// summary has in it.
		want, says string
	}{
		"nothing":                                     {&world{}, nil, "path/overlay ok", "works both ways"},
		"nothing, a direct path":                      {&world{}, func(t *Target) { t.Direct, t.Overhead, t.MTU = true, 0, 1500 }, "path/overlay ok", "the direct path to two works both ways"},
		"nothing, without an overlay":                 {&world{}, func(t *Target) { t.Own[Overlay] = netip.Addr{} }, "path/underlay ok", "two is reached by the underlay"},
		"nothing, a peer without echo":                {&world{dead: true, refuses: true}, func(t *Target) { t.EchoPort = 0 }, "path/overlay ok", "packets of 1450 bytes pass"},
		"nothing, where pings are not answered":       {&world{mute: true}, nil, "path/overlay ok", "works both ways"},
		"VXLAN out":                                   {&world{lost: [2][2]bool{Overlay: out}}, nil, "path/overlay failure", "the underlay answers, VXLAN (UDP port 8472) is blocked from one to two"},
		"VXLAN back":                                  {&world{lost: [2][2]bool{Overlay: back}}, nil, "path/overlay failure", "requests arrive at two by the overlay, answers do not come back: the underlay answers, VXLAN (UDP port 8472) is blocked from two to one"},
		"an entry of this host's":                     {&world{lost: [2][2]bool{Overlay: out}}, func(t *Target) { t.Lacks = []string{"route 10.5.2.0/24"} }, "path/overlay failure", "this host lacks what it takes"},
		"VXLAN both ways":                             {&world{lost: [2][2]bool{Overlay: both}}, nil, "path/overlay failure", "VXLAN (UDP port 8472) is blocked both from one to two and back"},
		"round trips, and each way works":             {&world{oneWay: true}, nil, "path/overlay failure", "the overlay takes packets from one to two, and others from two to one, and none that go there and come back"},
		"the direct path out":                         {&world{lost: [2][2]bool{Overlay: out}}, func(t *Target) { t.Direct = true }, "path/overlay failure", "packets of pods' addresses, which go without a tunnel, are lost from one to two"},
		"VXLAN, of a peer without echo":               {&world{lost: [2][2]bool{Overlay: out}, dead: true}, func(t *Target) { t.EchoPort = 0 }, "path/overlay failure", "from one to it or back"},
		"the underlay, which the store knows to live": {&world{lost: [2][2]bool{both, both}}, nil, "path/underlay failure", "or a firewall on two or one itself, drops all that goes from one to it"},
		"the host":                                    {&world{gone: true}, func(t *Target) { t.Life = NoSign }, "path/host failure", "two is gone"},
		"the host, and the store is away":             {&world{gone: true}, func(t *Target) { t.Life = LifeUnknown }, "path/host failure", "its host is gone, or cut off"},
		"the route to it":                             {&world{gone: true, noway: true}, nil, "path/host failure", "there is no way to two at 10.0.0.2: no way there: network is unreachable; two lives, for its daemon gives signs of life in the store"},
		"the route to it, and the host":               {&world{gone: true, noway: true}, func(t *Target) { t.Life = NoSign }, "path/host failure", "network is unreachable; two gives no sign of life in the store either"},
		"the underlay, and ARP is not answered":       {&world{gone: true, unresolved: 1}, nil, "path/underlay failure", "two lives, for its daemon gives signs of life in the store"},
		"the underlay, and ARP now and then":          {&world{gone: true, unresolved: 7}, nil, "path/underlay failure", "two lives, for its daemon gives signs of life in the store"},
		"the host, and ARP is not answered":           {&world{gone: true, unresolved: 1}, func(t *Target) { t.Life = NoSign }, "path/host failure", "two is gone"},
		"the host, ARP, and the store is away":        {&world{gone: true, unresolved: 1}, func(t *Target) { t.Life = LifeUnknown }, "path/host failure", "its host is gone, or cut off"},
		"the daemon":                                  {&world{dead: true, refuses: true}, nil, "path/daemon warning", "the daemon of two does not run; its overlay works on"},
		"the daemon, which hangs":                     {&world{dead: true}, nil, "path/daemon warning", "does not answer at UDP port 8473"},
		"the daemon and its overlay":                  {&world{dead: true, refuses: true, lost: [2][2]bool{Overlay: out}}, nil, "path/daemon failure", "does not run, and its overlay does not answer"},
		"UDP, or the guard":                           {&world{lost: [2][2]bool{Overlay: both}, closed: [2][2]bool{both, both}}, nil, "path/underlay failure", "so that its guard drops both"},
		"the echo on the underlay, out":               {&world{closed: [2][2]bool{Underlay: out}}, nil, "path/underlay note, path/overlay ok", "UDP port 8473 is blocked on the underlay from one to two"},
		"the MTU out":                                 {&world{takes: [2][2]int{{1450, 0}, {1400, 0}}}, nil, "path/mtu failure", "the tunnel works, packets over 1400 bytes vanish from one to two: path MTU 1400"},
		"the MTU back":                                {&world{takes: [2][2]int{Overlay: {0, 1399}}}, nil, "path/mtu failure", "packets over 1399 bytes vanish from two to one"},
		"the MTU both ways, not the same":             {&world{takes: [2][2]int{Overlay: {1401, 1300}}}, nil, "path/mtu failure", "packets over 1300 bytes vanish from one to two and from two to one"},
		"the MTU, of a peer without echo":             {&world{takes: [2][2]int{Overlay: {0, 1350}}}, func(t *Target) { t.EchoPort = 0 }, "path/mtu failure", "packets over 1350 bytes vanish in one direction or both"},
		"the MTU of jumbo frames":                     {&world{takes: [2][2]int{{1500, 1500}, {1450, 1450}}}, func(t *Target) { t.MTU = 8950 }, "path/mtu failure", "packets over 1450 bytes vanish from one to two and from two to one: path MTU 1450"},
		"the MTU, where underlay and overlay lose":    {&world{takes: [2][2]int{{0, 0}, {1400, 1350}}, closed: [2][2]bool{Underlay: both}}, nil, "path/underlay note, path/mtu failure", "blocked on the underlay"},
		"this host's own MTU":                         {&world{mtu: 1300}, nil, "path/mtu failure", "this host sends packets of at most 1300 bytes"},
		"some packets":                                {&world{drops: 4}, nil, "path/loss warning", "loses packets"},
		"something at the peer":                       {&world{trouble: []string{"entries"}}, nil, "path/peer warning", "the daemon of two says that something is wrong there: entries"},
		"something at the peer, and VXLAN":            {&world{trouble: []string{"device"}, lost: [2][2]bool{Overlay: out}}, nil, "path/overlay failure, path/peer warning", "is blocked from one to two"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				on := target()
				if c.target != nil {
					c.target(&on)
				}
				began := time.Now()
				got := Examine(t.Context(), on, c.world)
				if took := time.Since(began); took > examineLimit || c.want == "path/overlay ok" && took > 3*time.Second {
					t.Errorf("took %s", took)
				}
				var checks []string
				for _, v := range got {
					checks = append(checks, v.Check+" "+v.Severity.String())
					if v.Peer != on.Peer || v.Family != on.Family {
						t.Errorf("%s is of %q, %q", v.Check, v.Peer, v.Family)
					}
					if v.Severity >= doctor.Warning && len(v.Remedy) == 0 {
						t.Errorf("%s has no remedy", v.Check)
					}
				}
				if text := strings.Join(checks, ", "); text != c.want {
					t.Fatalf("verdicts %s, want %s: %+v", text, c.want, got)
				}
				if !strings.Contains(got[0].Summary, c.says) {
					t.Errorf("%q does not say %q", got[0].Summary, c.says)
				}
			})
		})
	}
}

// TestRestartIsNoFinding: a daemon that is away for a moment is waited for.
func TestRestartIsNoFinding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{dead: true, refuses: true, until: time.Now().Add(2 * time.Second)}
		if got := Examine(t.Context(), target(), w); doctor.Worst(got) != doctor.OK {
			t.Errorf("got %+v", got)
		}
	})
}

// TestUnresolvedNeighbourIsEvidence: that nobody answers on the link is said beside the
// verdict, if of one ping alone.
func TestUnresolvedNeighbourIsEvidence(t *testing.T) {
	for _, life := range []Life{Living, NoSign, LifeUnknown} {
		synctest.Test(t, func(t *testing.T) {
			on := target()
			on.Life = life
			got := Examine(t.Context(), on, &world{gone: true, unresolved: 5})
			if all := strings.Join(got[0].Evidence, "\n"); !strings.Contains(all, "ping underlay 10.0.0.2: no answer to ARP or neighbour discovery: ") {
				t.Errorf("not in\n%s", all)
			}
		})
	}
}

// TestUnderlaysMTUIsEvidence: whether the network between takes the tunnel's packets
// is told with what the tunnel takes.
func TestUnderlaysMTUIsEvidence(t *testing.T) {
	for says, w := range map[string]*world{
		"packets of 1450 bytes go there and back, 1500 do not":  {takes: [2][2]int{{1450, 1450}, {1400, 1400}}},
		"packets of 1500 bytes go there and back: what is lost": {takes: [2][2]int{Overlay: {1400, 1400}}},
	} {
		synctest.Test(t, func(t *testing.T) {
			got := Examine(t.Context(), target(), w)
			if all := strings.Join(got[0].Evidence, "\n"); !strings.Contains(all, says) {
				t.Errorf("%q is not in\n%s", says, all)
			}
		})
	}
}

// TestLargestIsFound: whatever the largest is, it is found.
func TestLargestIsFound(t *testing.T) {
	for _, most := range []int{129, 1230, 1450, 8950, 65485} {
		for real := smallest; real <= most; real += 1 + (most-smallest)/97 {
			if got := largest(t.Context(), most, func(_ context.Context, size int) bool { return size <= real }); got != real {
				t.Fatalf("of %d: %d, want %d", most, got, real)
			}
		}
	}
}

// stuck is a Means of which large packets wait for an answer for as long as they may.
type stuck struct{ world }

func (s *stuck) Echo(ctx context.Context, by, back Layer, size, answer int) (time.Duration, []string, error) {
	if max(size, answer) > 0 {
		<-ctx.Done()
		return 0, nil, ErrSilent
	}
	return s.world.Echo(ctx, by, back, size, answer)
}

// TestExaminationEndsInTime, and with a verdict, though something waits for ever.
func TestExaminationEndsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		got := Examine(t.Context(), target(), &stuck{})
		if took := time.Since(began); took > examineLimit+10*time.Millisecond || doctor.Worst(got) != doctor.Failure || got[0].Check != CheckMTU || !strings.Contains(got[0].Summary, "small packets pass, those of 1450 bytes vanish") {
			t.Errorf("after %s: %+v", took, got)
		}
	})
}

// TestMTUNamesTheInterface in its command, where it is known, and has none else.
func TestMTUNamesTheInterface(t *testing.T) {
	for name, want := range map[string]bool{"": false, "bond0.5": true} {
		on := target()
		on.Interface, on.EchoPort = name, 0
		got := Judge(on, Seen{Pings: [2]Outcome{{Reply: Answered}, {Reply: Answered}}, Round: 1400})
		if has := strings.Contains(strings.Join(got[0].Remedy, "\n"), "$ ip link set dev bond0.5 mtu 1450"); has != want || got[0].Check != CheckMTU {
			t.Errorf("%q: %+v", name, got)
		}
	}
}

// TestADaemonThatEndsIsNoMTU: where nothing passes any more, from whatever request on,
// no size is to blame.
func TestADaemonThatEndsIsNoMTU(t *testing.T) {
	for last := range int64(40) {
		var asked atomic.Int64
		got := largest(t.Context(), 1450, func(_ context.Context, size int) bool { return asked.Add(1) <= last && size <= 1400 })
		if got != 0 && got != 1400 {
			t.Errorf("after %d requests: %d", last, got)
		}
	}
}
