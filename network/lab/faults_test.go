package lab

import (
	"cmp"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// faultsEnv bounds what a fault on the host may take to heal, as a duration.
// With it nothing else runs at the same time, and the suite is run in full.
const faultsEnv = "RIPSTOP_FAULTS_LIMIT"

// faultLimits are how long things may take.
type faultLimits struct {
	// heal is for a fault on the host, store for what has to go through etcd,
	// both from the end of the deed.
	heal, store time.Duration
	// many is for a fault on a host that has so many peers.
	many            time.Duration
	peers, restarts int
	// alone means that nothing else runs, so that times say something.
	alone bool
}

// usualLimits allow for a machine that runs other tests, under the race detector.
var usualLimits = faultLimits{heal: 3 * time.Second, store: 10 * time.Second, many: 10 * time.Second, peers: 1000, restarts: 10}

// faultSuite collects a line for each fault.
type faultSuite struct {
	faultLimits
	mu   sync.Mutex
	rows []faultRow
}

// faultRow is what a fault did.
type faultRow struct {
	lab, fault string
	healed     time.Duration
	// deed is how long the deed itself took, after which healed begins, and kernel
	// how long the kernel went on with it from then on and let nobody else at it.
	deed, kernel time.Duration
	// gap and lost are those of the pings whose path the fault may break;
	// elsewhere counts what all others lost.
	gap             time.Duration
	lost, elsewhere int
	// shown is what the daemon's status showed of it.
	shown shown
}

// TestFaults does to a living network what the world does to one, and measures
// how long it takes to heal. "make faults" runs it alone, prints the table and
// holds it to tighter limits.
func TestFaults(t *testing.T) {
	s := &faultSuite{faultLimits: usualLimits}
	if text, ok := os.LookupEnv(faultsEnv); ok {
		limit, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("%s: %v", faultsEnv, err)
		}
		s.faultLimits = faultLimits{heal: limit, store: 3 * limit, many: limit, peers: 10_000, restarts: 100, alone: true}
	}
	t.Cleanup(func() { s.print(t) })
	type part struct {
		name string
		run  func(*testing.T)
	}
	parts := []part{
		{"host", func(t *testing.T) { s.hostFaults(t, Dual) }},
		{"host-ipv4", func(t *testing.T) { s.hostFaults(t, IPv4) }},
		{"direct", s.directFaults},
		{"underlay", s.underlayFaults},
		{"host-many-peers", func(t *testing.T) { s.manyPeers(t, IPv4) }},
		{"store", s.storeFaults},
		{"restarts", s.manyRestarts},
	}
	if s.alone {
		parts = append(parts, part{"host-many-peers-dual", func(t *testing.T) { s.manyPeers(t, Dual) }}, part{"direct-many-peers", s.manyDirectPeers})
	}
	for _, part := range parts {
		t.Run(part.name, func(t *testing.T) {
			if !s.alone {
				t.Parallel()
			}
			part.run(t)
		})
	}
}

// add notes a line. What the daemon showed of the fault is to be watched for each.
func (s *faultSuite) add(r faultRow, seen shown) {
	r.shown = seen
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = append(s.rows, r)
}

func (s *faultSuite) print(t *testing.T) {
	var b strings.Builder
	round := func(d time.Duration) string { return fmt.Sprintf("%.3f s", d.Seconds()) }
	some := func(d time.Duration) string {
		if d < time.Millisecond {
			return "-"
		}
		return round(d)
	}
	fmt.Fprintf(&b, "%-11s %-52s %10s %10s %13s %12s %6s %10s  %s\n", "network", "fault", "the deed", "the kernel", "healed after", "longest gap", "lost", "elsewhere", "shown by")
	for _, r := range s.rows {
		fmt.Fprintf(&b, "%-11s %-52s %10s %10s %13s %12s %6d %10d  %s\n", r.lab, r.fault, some(r.deed), some(r.kernel), round(r.healed), round(r.gap), r.lost, r.elsewhere, r.shown.text)
	}
	if s.alone {
		fmt.Print("\n", b.String(), "\n")
		return
	}
	t.Log("\n" + b.String())
}

// reach says which of the pings of a host a fault may touch.
type reach int

// The ranks.
const (
	nobody  reach = iota // No path breaks: no ping may be lost.
	onePeer              // The path to the second host.
	farPeer              // The path to the third host.
	allPeers
)

// flow is a ping between a pod of the first host and one of another, in one
// direction and family.
type flow struct {
	name   string
	peer   *Host
	pinger *Pinger
}

// startFlows pings a hundred times a second between the first host and the two
// next, both ways, in every family.
func startFlows(t *testing.T, l *Lab) []flow {
	t.Helper()
	var flows []flow
	first := l.Hosts[0]
	for _, peer := range l.Hosts[1:3] {
		for _, f := range l.Families() {
			for _, ends := range [][2]*Pod{{first.Pods[0], peer.Pods[0]}, {peer.Pods[0], first.Pods[0]}} {
				p, err := StartPinger(t.Context(), ends[0].Namespace, ends[0].Addresses[f], ends[1].Addresses[f], 100, PingOptions{})
				if err != nil {
					t.Fatal(err)
				}
				flows = append(flows, flow{fmt.Sprintf("%s from %s to %s", f, ends[0].Name, ends[1].Name), peer, p})
			}
		}
	}
	return flows
}

// stopFlows ends the pings and sums up; what was lost beyond reach is an error.
func stopFlows(t *testing.T, l *Lab, flows []flow, r reach) (row faultRow) {
	t.Helper()
	reports := make([]PingReport, len(flows))
	var group sync.WaitGroup
	for i, f := range flows {
		group.Go(func() { reports[i] = f.pinger.Stop() })
	}
	group.Wait()
	for i, f := range flows {
		lost := reports[i].Lost
		if r == allPeers || r == onePeer && f.peer == l.Hosts[1] || r == farPeer && f.peer == l.Hosts[2] {
			row.gap = max(row.gap, reports[i].LongestGap)
			row.lost += lost
			continue
		}
		if r == nobody {
			row.gap = max(row.gap, reports[i].LongestGap)
		}
		if row.elsewhere += lost; lost != 0 {
			t.Errorf("%s lost packets though its path was whole: %s", f.name, reports[i])
		}
	}
	return row
}

// calm is how long pings run before and after a deed.
const calm = 150 * time.Millisecond

// fault is something done to the first host of a lab.
type fault struct {
	name string
	do   deed
	// breaks says whose packets it may cost.
	breaks reach
	// underlay means that the host itself cannot be reached for a while, and
	// then asks for the others' MAC again.
	underlay bool
	// lingers means that the kernel goes on with the deed when it is done, from a work
	// queue, with the lock held that all changes need. That time is measured, and the
	// daemon has its limit besides.
	lingers bool
	// network is the lab's name in the table, where it is not its mode. state
	// tells afterwards whether the host is as it was before; where it is nil, the
	// host's picture does.
	network string
	state   func() func() bool
	// mended is for what neither shows: it is asked before the deed and gives what
	// tells afterwards that it is undone. Healed is measured by it alone, and within is
	// the limit where nothing else runs, if that is less than others have.
	mended func(*testing.T, *Lab, *Host) func() bool
	within time.Duration
	// unasked means that the daemon is not asked how it is until it has mended it: a
	// question would have it look.
	unasked bool
}

// try does it and waits until the host is what it was.
func (s *faultSuite) try(t *testing.T, l *Lab, f fault) {
	h := l.Hosts[0]
	// Whoever harms the same entries again and again is met more slowly the
	// more often he does. That is not what is measured here: a daemon that was
	// started again has forgotten who fought.
	if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	everyPairTalks(t, l, talkLimit)
	var asBefore func() bool
	limit, tell := s.heal, func() string { return "it is not what it was" }
	if f.state == nil {
		before := mustPicture(t, h)
		asBefore, tell = func() bool { return looksLike(h, before) }, func() string { return differs(h, before) }
	} else {
		limit, asBefore = s.many, f.state()
	}
	undone := asBefore
	if f.mended != nil {
		undone = f.mended(t, l, h)
	}
	if s.alone && f.within != 0 {
		limit = f.within
	}
	looks := newLook(t, h, f.do.signs)
	if !f.unasked {
		looks.begin(t)
	}
	flows := startFlows(t, l)
	time.Sleep(calm)
	var last *lastChange
	if f.mended == nil && f.state != nil {
		last = hearLastChange(t, h)
	}
	began := time.Now()
	if err := f.do.act(t, l, h); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	var lock *lockWatch
	patience := limit
	if f.lingers {
		lock, patience = watchLock(t, h), limit+mostKernel
	}
	var healed time.Duration
	var ok bool
	if last != nil {
		healed, ok = last.until(t, began.Add(took), patience, undone)
	} else {
		healed, ok = timeUntil(patience, undone)
	}
	kernel := lock.end(t)
	if ok = ok && healed <= limit+kernel; !ok {
		t.Errorf("not healed after %s:\n%s", healed, tell())
	}
	if f.unasked {
		looks.begin(t)
	}
	time.Sleep(calm)
	if f.underlay { // The pings are to show when packets pass again.
		everyPairTalks(t, l, talkLimit)
		time.Sleep(calm)
	}
	row := stopFlows(t, l, flows, f.breaks)
	if limit := took + kernel + limit; row.gap > limit {
		t.Errorf("no answer for %s, want at most %s", row.gap, limit)
	}
	if !asBefore() || !undone() {
		t.Errorf("it did not stay healed:\n%s", tell())
	}
	row.lab, row.fault, row.healed = cmp.Or(f.network, string(l.Mode())), f.name, healed
	row.deed, row.kernel = took, kernel
	s.add(row, looks.end(t))
}

func (s *faultSuite) hostFaults(t *testing.T, mode Mode) {
	l := startLab(t, Options{Nodes: 3, Mode: mode})
	everyPairTalks(t, l, talkLimit)
	for _, f := range hostFaults {
		t.Run(strings.ReplaceAll(f.name, " ", "-"), func(t *testing.T) { s.try(t, l, f) })
	}
}
