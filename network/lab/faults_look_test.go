package lab

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/status"
)

// sign is what a daemon's status shows of a fault, at some time between the deed
// and the end of the mending.
type sign struct {
	text  string
	shows func(view) bool
	// only says in which suites it shows, if not in all.
	only suiteKind
}

// suiteKind tells a suite that runs alone, and has the time to wait for what takes
// long, from one that does not.
type suiteKind int

// The kinds.
const (
	anySuite suiteKind = iota
	aloneSuite
	quickSuite
)

// ifAlone is for what shows only where there is time for it.
func ifAlone(g sign) sign { g.only = aloneSuite; return g }

// ifQuick is for what shows where there is not.
func ifQuick(g sign) sign { g.only = quickSuite; return g }

// shownBy picks the signs of a suite.
func (s *faultSuite) shownBy(signs []sign) []sign {
	not := aloneSuite
	if s.alone {
		not = quickSuite
	}
	return slices.DeleteFunc(slices.Clone(signs), func(g sign) bool { return g.only == not })
}

// view is a status beside an earlier one.
type view struct {
	// before is what was said before the deed. from is what counts are compared
	// with: the same, or nothing where another process answers.
	before, from, now status.Status
}

// counted means that a count is larger than it was.
func counted[T cmp.Ordered](text string, of func(*status.Status) T) sign {
	return sign{text: text + " counted", shows: func(v view) bool { return of(&v.now) > of(&v.from) }}
}

// told means that something is said.
func told(text string, is func(*status.Status) bool) sign {
	return sign{text: text, shows: func(v view) bool { return is(&v.now) }}
}

// failed means that a condition of readiness does not hold, or did not for a time
// that was too short to be met with.
func failed(name string) sign {
	return sign{text: name + " failed", shows: func(v view) bool {
		for i, c := range v.now.Conditions {
			if c.Name == name {
				return !c.OK || len(v.from.Conditions) > i && c.Since.After(v.from.Conditions[i].Since)
			}
		}
		return false
	}}
}

// unseen is for what a daemon cannot know of, and why.
func unseen(why string) sign {
	return sign{text: "nothing: " + why, shows: func(view) bool { return true }}
}

var (
	driftCounted     = counted("drift", func(s *status.Status) uint64 { return s.Loop.Drift })
	opsCounted       = counted("ops", func(s *status.Status) uint64 { return s.Loop.Ops })
	doubtCounted     = counted("dumps after doubt", func(s *status.Status) uint64 { return s.Loop.Dumps.Doubt })
	changeCounted    = counted("changes", func(s *status.Status) uint64 { return s.Store.Changes })
	listingCounted   = counted("listings", func(s *status.Status) uint64 { return s.Store.Listings })
	outageCounted    = counted("outages", func(s *status.Status) uint64 { return s.Store.Outages })
	lossCounted      = counted("lease losses", func(s *status.Status) uint64 { return s.Lease.Losses })
	storeStale       = told("store stale", func(s *status.Status) bool { return s.Store.State == status.Stale && s.Store.Outage != nil })
	fromSaved        = told("going by what was saved", func(s *status.Status) bool { return s.Store.Saved })
	itWaits          = told("what it waits for", func(s *status.Status) bool { return s.Waiting != nil && !s.Up })
	peersHeld        = told("peers held", func(s *status.Status) bool { return s.Peers.Held > 0 })
	holdExpired      = counted("expired holds", func(s *status.Status) int { return s.Peers.Expired })
	holdReturned     = counted("held peers that returned", func(s *status.Status) int { return s.Peers.Returned })
	rulesHealed      = counted("rules put back", func(s *status.Status) uint64 { return s.Firewall.Heals })
	ruleInTheWay     = told("the rule in the way", func(s *status.Status) bool { return len(s.Firewall.Findings) > 0 })
	settingsRestored = counted("settings put back", func(s *status.Status) uint64 { return s.Host.Restored })
	fileRestored     = counted("subnet file put back", func(s *status.Status) uint64 { return s.SubnetFile.Restored })
	fewerPeers       = sign{text: "fewer peers", shows: func(v view) bool { return v.now.Up && v.now.Peers.Count < v.before.Peers.Count }}
	anotherDaemon    = sign{text: "another process", shows: func(v view) bool { return v.now.Daemon.PID != v.before.Daemon.PID }}
	movesCounted     = counted("moves", func(s *status.Status) uint64 { return s.UnderlayMoves })
)

// deed is what is done to a host and what the host's daemon must show of it. It is
// made by shows alone, so that no fault is without.
type deed struct {
	act   func(*testing.T, *Lab, *Host) error
	signs []sign
}

// shows says what a daemon must show of an act, all of it.
func shows(act func(*testing.T, *Lab, *Host) error, one sign, more ...sign) deed {
	return deed{act, append([]sign{one}, more...)}
}

// drifts is for what is mended as drift.
func drifts(act func(*testing.T, *Lab, *Host) error) deed { return shows(act, driftCounted) }

const (
	// lookEvery is how often a daemon is asked.
	lookEvery = 10 * time.Millisecond
	// wellAgain bounds the time until nothing of a fault shows any more. An entry
	// that was fought for must be left alone for half a minute.
	wellAgain = 45 * time.Second
)

// look asks a host's daemon how it is, all the time.
type look struct {
	host   *Host
	client *status.Client
	before status.Status
	signs  []sign
	seen   []bool
	last   status.Status
	stop   chan struct{}
	ended  chan struct{}
}

// startLook waits until the daemon says that all is well, and looks from then on.
func startLook(t *testing.T, h *Host, signs []sign) *look {
	t.Helper()
	k := newLook(t, h, signs)
	k.begin(t)
	return k
}

// newLook waits until the daemon says that all is well, and asks nothing more before
// it is to begin.
func newLook(t *testing.T, h *Host, signs []sign) *look {
	t.Helper()
	if len(signs) == 0 {
		t.Fatal("it is not said what shows the fault")
	}
	k := &look{
		host: h, client: status.NewClient(filepath.Join(h.Dir, "run")), signs: signs, seen: make([]bool, len(signs)),
		stop: make(chan struct{}), ended: make(chan struct{}),
	}
	t.Cleanup(k.client.Close)
	k.well(t, "before the fault")
	k.before = k.last
	clear(k.seen) // What was there before shows no fault.
	return k
}

// begin has it look all the time.
func (k *look) begin(t *testing.T) {
	go func() {
		defer close(k.ended)
		for {
			select {
			case <-k.stop:
				return
			case <-time.After(lookEvery):
			}
			if now, err := k.client.Status(t.Context()); err == nil { // The daemon may be away.
				k.note(now)
			}
		}
	}()
}

func (k *look) note(now status.Status) {
	v := view{k.before, k.before, now}
	if now.Daemon.PID != k.before.Daemon.PID {
		v.from = status.Status{}
	}
	for i, s := range k.signs {
		k.seen[i] = k.seen[i] || s.shows(v)
	}
	k.last = now
}

// well waits until nothing is amiss any more.
func (k *look) well(t *testing.T, when string) {
	t.Helper()
	var err error
	_, in := timeUntil(wellAgain, func() bool {
		var now status.Status
		if now, err = k.client.Status(t.Context()); err != nil {
			return false
		}
		k.note(now)
		return len(amiss(now)) == 0
	})
	if !in {
		t.Errorf("%s %s says: %s (%v)", when, k.host.Name, strings.Join(amiss(k.last), "; "), err)
	}
}

// amiss lists what a status has of trouble that lasts.
func amiss(s status.Status) (out []string) {
	for _, c := range s.Conditions {
		if !c.OK {
			out = append(out, c.Name+": "+c.Reason)
		}
	}
	for what, is := range map[string]bool{
		"it waits": s.Waiting != nil, "store " + string(s.Store.State): s.Store.State != status.Current, "an outage": s.Store.Outage != nil,
		fmt.Sprintf("%d peers held", s.Peers.Held): s.Peers.Held != 0, fmt.Sprintf("%d failing, %d fought", s.Loop.Failing, s.Loop.Fought): s.Loop.Failing+s.Loop.Fought != 0,
		"firewall: " + s.Firewall.Problem: s.Firewall.Problem != "", fmt.Sprintf("findings %v", s.Firewall.Findings): len(s.Firewall.Findings) != 0,
	} {
		if is {
			out = append(out, what)
		}
	}
	slices.Sort(out)
	return out
}

// shown is what a daemon showed of a fault. It comes of end alone, and no line of
// the suite's is without.
type shown struct{ text string }

// lateSign bounds the time until a count shows what has been mended already.
const lateSign = 5 * time.Second

// end waits until nothing shows of the fault any more. What was to show must have
// been seen.
func (k *look) end(t *testing.T) shown {
	t.Helper()
	close(k.stop)
	<-k.ended
	timeUntil(lateSign, func() bool {
		if now, err := k.client.Status(t.Context()); err == nil {
			k.note(now)
		}
		return !slices.Contains(k.seen, false)
	})
	k.well(t, "after the fault")
	var texts []string
	for i, s := range k.signs {
		if texts = append(texts, s.text); !k.seen[i] {
			t.Errorf("the status of %s did not show: %s", k.host.Name, s.text)
		}
	}
	return shown{strings.Join(texts, ", ")}
}

// TestLook: what does not show is found missing, and a new process counts from
// nothing.
func TestLook(t *testing.T) {
	at := func(pid int, drift uint64) status.Status {
		return status.Status{Daemon: status.Daemon{PID: pid}, Loop: status.Loop{Drift: drift}, Conditions: []status.Condition{{Name: status.DeviceRight, OK: drift%2 == 0}}}
	}
	blinked := at(1, 6)
	blinked.Conditions[0].Since = time.Now()
	for name, tc := range map[string]struct {
		sign sign
		now  []status.Status
		want bool
	}{
		"count stays":              {driftCounted, []status.Status{at(1, 4), at(1, 4)}, false},
		"count grows":              {driftCounted, []status.Status{at(1, 4), at(1, 5)}, true},
		"new process, nothing":     {driftCounted, []status.Status{at(2, 0)}, false},
		"new process, a count":     {driftCounted, []status.Status{at(2, 1)}, true},
		"another process":          {anotherDaemon, []status.Status{at(2, 0)}, true},
		"the same process":         {anotherDaemon, []status.Status{at(1, 9)}, false},
		"condition holds":          {failed(status.DeviceRight), []status.Status{at(1, 4)}, false},
		"condition fails for once": {failed(status.DeviceRight), []status.Status{at(1, 4), at(1, 5), at(1, 6)}, true},
		"condition failed":         {failed(status.DeviceRight), []status.Status{blinked}, true},
		"another condition fails":  {failed(status.StoreKnown), []status.Status{at(1, 5)}, false},
	} {
		k := &look{before: at(1, 4), signs: []sign{tc.sign}, seen: make([]bool, 1)}
		for _, now := range tc.now {
			k.note(now)
		}
		if k.seen[0] != tc.want {
			t.Errorf("%s: %t", name, k.seen[0])
		}
	}
}
