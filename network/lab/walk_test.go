package lab

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

var (
	walkSeed  = flag.Uint64("walk.seed", 0, "seed of the random walk, 0 for one of the clock's")
	walkSteps = flag.Int("walk.steps", 15, "bursts of faults in the random walk")
	walkTime  = flag.Duration("walk.time", 0, "time after which the random walk takes no more steps, 0 for never")
	walkOnly  = flag.String("walk.only", "", "regular expression of the faults in the random walk, empty for all")
	// An entry that is hit again and again is mended after pauses of up to 5 s, and
	// a start without the store waits 3 s for it.
	walkLimit = flag.Duration("walk.limit", 20*time.Second, "time that the last fault of a burst is given to be healed")
)

// walkAuditEvery is how often the daemons of the audited hosts compare the kernel
// with what it announced. The others' would mend within a step what the loop
// forgot.
const (
	walkAuditEvery = time.Second
	walkAudited    = 2
)

// walk is a random walk of a lab through faults.
type walk struct {
	t       *testing.T
	lab     *Lab
	store   *clientv3.Client
	subnets map[*Host]subnet.Subnets
	// ghost is the record of the peer that is in the store alone, "" if there
	// is none, and gone the last one, which went at that time.
	ghost, gone string
	wentAt      time.Time
	// left are addresses of the ghost's that it has moved away from, and until when a
	// guard may let them in still.
	left map[netip.Addr]time.Time
	// pulse says where the other peer of that kind is, 0 or 1.
	pulse int
	// direct tells whether hosts on one link reach each other directly.
	direct bool
	// menu are the faults to draw from.
	menu []walkFault
	// guards are the hosts' rules as they were at first.
	guards map[*Host][]string
	// logged says how far the hosts' logs have been read, in bytes.
	logged map[*Host]int64

	// What the burst of now has done: which faults, in words, when the last of
	// it was over, and whose overlays it may have moved.
	faults []string
	steps  []string
	last   time.Time
	moved  map[*Host]bool
	ears   map[*Host]*listener
}

// ask asks etcd until it answers: a client that lost it comes back in its own time.
func (w *walk) ask(request func(context.Context) error) error {
	for end := time.Now().Add(*walkLimit); ; {
		ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
		err := request(ctx)
		cancel()
		if err == nil || time.Now().After(end) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// burst does some faults, one upon the other, and then mends what the daemons
// are not there to mend. All choices are the random's.
func (w *walk) burst(r *rand.Rand) {
	w.faults, w.steps, w.moved = nil, nil, map[*Host]bool{}
	busy, barred := map[string]bool{}, map[string]bool{}
	var mends []func()
	do := func(what string, f func() error) {
		w.steps = append(w.steps, what)
		if err := f(); err != nil {
			w.t.Fatalf("%s: %v", w.said(), err)
		}
		w.last = time.Now()
	}
	for range 1 + r.IntN(4) {
		f, h := w.menu[r.IntN(len(w.menu))], w.lab.Hosts[r.IntN(len(w.lab.Hosts))]
		own, pause := rand.New(rand.NewPCG(r.Uint64(), 0)), time.Duration(r.IntN(300))*time.Millisecond
		if barred[f.name] || slices.ContainsFunc(f.on(h), func(target string) bool { return busy[target] }) {
			continue
		}
		time.Sleep(pause)
		barred[f.bars] = true
		name := f.name
		if !slices.Equal(f.on(h), onEtcd(h)) || f.name == "record deleted" {
			name += " on " + h.Name
		}
		switch f.moves {
		case ownOverlay:
			w.move(h)
		case allOverlays:
			w.move(w.lab.Hosts...)
		case ownDirect:
			if w.direct {
				w.move(h)
			}
		}
		var mend func() error
		do(name, func() (err error) {
			mend, err = f.do(w, h, own)
			return err
		})
		w.faults = append(w.faults, f.name)
		if mend != nil {
			for _, target := range f.on(h) {
				busy[target] = true
			}
			mends = append(mends, func() { do("mended: "+name, mend) })
		}
	}
	r.Shuffle(len(mends), func(i, j int) { mends[i], mends[j] = mends[j], mends[i] })
	for _, mend := range mends {
		time.Sleep(time.Duration(r.IntN(700)) * time.Millisecond)
		mend()
	}
}

// move notes that the overlays of hosts may change.
func (w *walk) move(hosts ...*Host) {
	for _, h := range hosts {
		w.moved[h] = true
	}
}

func (w *walk) said() string { return strings.Join(w.steps, ", ") }

// TestWalk puts bursts of random faults to five hosts. After each, every pair
// talks, each kernel has exactly what the store's records ask for, no node has
// another subnet than at first, no guard lets in others than peers, no audit found
// anything, and no overlay moved that had no cause to. -walk.seed replays the faults
// in their order, though not to the millisecond; -walk.only draws from some alone.
func TestWalk(t *testing.T) { takeWalk(t, false, Options{Nodes: 5, Mode: Dual}) }

// TestWalkDirect is TestWalk with direct routes between four of the hosts; the fifth
// is behind a router.
func TestWalkDirect(t *testing.T) {
	takeWalk(t, true, Options{Nodes: 5, Far: 1, Mode: Dual, Config: configWith(Dual, directRoutes)})
}

func takeWalk(t *testing.T, direct bool, opts Options) {
	t.Parallel()
	seed := *walkSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test -run '%s$' ./network/lab -walk.seed=%d -walk.steps=%d -walk.only=%q", t.Name(), seed, *walkSteps, *walkOnly)
	only, err := regexp.Compile(*walkOnly)
	if err != nil {
		t.Fatalf("-walk.only: %v", err)
	}
	w := &walk{t: t, direct: direct, subnets: map[*Host]subnet.Subnets{}, logged: map[*Host]int64{}, guards: map[*Host][]string{}, left: map[netip.Addr]time.Time{}}
	w.menu = slices.DeleteFunc(slices.Clone(walkFaults), func(f walkFault) bool { return !only.MatchString(f.name) })
	if len(w.menu) == 0 {
		t.Fatalf("-walk.only=%q leaves nothing to do", *walkOnly)
	}
	w.lab = startLab(t, opts)
	w.store = openStore(t, w.lab)
	everyPairTalks(t, w.lab, talkLimit)
	for i, h := range w.lab.Hosts {
		env, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		w.subnets[h] = env.Subnets
		if i < walkAudited {
			h.DaemonArgs = []string{"--audit-every=" + walkAuditEvery.String()}
			if err := h.RestartDaemon(t.Context(), 15); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.setPulse(); err != nil {
		t.Fatal(err)
	}
	if err := w.untilPlanned(time.Now()); err != nil {
		t.Fatal(err)
	}
	var toll walkToll
	defer func() { t.Log("\n" + toll.String()) }()
	began := time.Now()
	for step := 0; step < *walkSteps && (*walkTime == 0 || time.Since(began) < *walkTime); step++ {
		w.listen()
		w.burst(rand.New(rand.NewPCG(seed, uint64(step))))
		took, err := w.healed()
		toll.add(w.faults, took)
		t.Logf("step %d, healed after %5v: %s", step, took.Round(10*time.Millisecond), w.said())
		if err != nil {
			t.Fatalf("seed %d, step %d: %v", seed, step, err)
		}
	}
	t.Logf("seed %d: %d steps in %s", seed, len(toll.took), time.Since(began).Round(time.Second))
}

// walkToll is what a walk came to.
type walkToll struct {
	took  []time.Duration
	kinds map[string][]time.Duration
}

func (w *walkToll) add(faults []string, took time.Duration) {
	w.took = append(w.took, took)
	if w.kinds == nil {
		w.kinds = map[string][]time.Duration{}
	}
	for _, f := range faults {
		w.kinds[f] = append(w.kinds[f], took)
	}
}

// String is a table of the faults and of how long bursts that had them took to
// heal.
func (w *walkToll) String() string {
	var b strings.Builder
	line := func(name string, took []time.Duration) {
		took = slices.Sorted(slices.Values(took))
		part := func(of float64) time.Duration {
			return took[min(len(took)-1, int(of*float64(len(took))))].Round(10 * time.Millisecond)
		}
		fmt.Fprintf(&b, "%-48s %6d %8v %8v %8v\n", name, len(took), part(0.5), part(0.99), part(1))
	}
	fmt.Fprintf(&b, "%-48s %6s %8s %8s %8s\n", "fault", "times", "p50", "p99", "longest")
	names := make([]string, 0, len(w.kinds))
	for name := range w.kinds {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(len(w.kinds[b]), len(w.kinds[a])), cmp.Compare(a, b)) })
	for _, name := range names {
		line(name, w.kinds[name])
	}
	if len(w.took) > 0 {
		line("all bursts", w.took)
	}
	return b.String()
}
