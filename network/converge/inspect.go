package converge

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ripstop-net/ripstop/backend"
)

// Beat returns nil once the loop has come between two passes: it lives. Else it
// returns ctx's error.
func (l *Loop) Beat(ctx context.Context) error { return l.ask(ctx, func() {}) }

// ask has the loop call f between two passes, where all that is Run's own may be
// read. f must be short.
func (l *Loop) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case l.asked <- func() { defer close(done); f() }:
		<-done // The loop is at it.
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Fact is what the loop knows of an entry.
type Fact struct {
	// Present tells whether the kernel has exactly this entry.
	Present bool
	// Failing is why it cannot be had, Foreign whether somebody else's thing is in
	// the way, Fought whether an outside hand undoes it again and again.
	Failing         string
	Foreign, Fought bool
}

// Facts tells of entries as of one moment between two passes, in their order.
func (l *Loop) Facts(ctx context.Context, entries []backend.Entry) ([]Fact, error) {
	out := make([]Fact, len(entries))
	err := l.ask(ctx, func() {
		for i, e := range entries {
			id := backend.Identity(e)
			f := &out[i]
			f.Present = l.have != nil && l.have.Has(e)
			if known, ok := l.failing.entries[id]; ok {
				f.Failing, f.Foreign = known.text, known.blocked
			}
			if known, ok := l.fights.entries[id]; ok {
				f.Fought = known.said
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("ask the loop: %w", err)
	}
	return out, nil
}

// Report is how things stood after the last pass.
type Report struct {
	Stats
	// Ended is when that pass did, Took how long it took; Times counts all.
	Ended time.Time
	Took  time.Duration
	Times Times
	// Wanted is the number of entries that the kernel is to have.
	Wanted int
	// Devices are the node's own. Problems has the first of what fails and is
	// fought for; Unread says why the kernel cannot be read.
	Devices  []DeviceReport
	Problems []Problem
	Unread   string
}

// DeviceReport is a device as it is wanted.
type DeviceReport struct {
	Device    backend.Device
	Addresses []backend.Address
	// Problem says how device or addresses differ; "" if they do not.
	Problem string
}

// Problem is an entry that fails or is fought for.
type Problem struct {
	Entry           backend.Entry
	Reason          string
	Foreign, Fought bool
}

// passBounds are those of Times, in ascending order.
var passBounds = [...]time.Duration{
	time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond,
	300 * time.Millisecond, time.Second, 3 * time.Second, 10 * time.Second,
}

// Times counts passes by what they took.
type Times struct {
	Count uint64
	Sum   time.Duration
	// Within has, for each bound, how many took no longer.
	Within [len(passBounds)]uint64
}

// Bounds returns those of Within.
func (Times) Bounds() []time.Duration { return slices.Clone(passBounds[:]) }

func (t *Times) add(took time.Duration) {
	t.Count++
	t.Sum += took
	for i, bound := range passBounds {
		if took <= bound {
			t.Within[i]++
		}
	}
}

// Report returns the latest. It waits for no pass.
func (l *Loop) Report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.latest
	r.Stats = l.stats
	return r // Its slices are made anew with every pass.
}

// Bounds on what a report lists, and on what is looked at for it: it is made
// after every pass.
const (
	mostProblems = 10
	mostLookedAt = 512
)

// note makes the report of a pass that began at the given time.
func (l *Loop) note(began time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &l.latest
	r.Ended = time.Now()
	r.Took = r.Ended.Sub(began)
	r.Times.add(r.Took)
	r.Wanted = l.ledger.Want().Len()
	r.Devices, r.Problems, r.Unread = l.devices(), l.problems(), ""
	if l.noDump != "" {
		r.Unread = "kernel cannot be read: " + l.noDump
	}
}

// wanted is the entry that is wanted with an identity, or else the kernel's.
func (l *Loop) wanted(id backend.Entry) backend.Entry {
	if e, ok := l.wantAt(id); ok {
		return e
	}
	if l.have != nil {
		if e, ok := l.have.At(id); ok {
			return e
		}
	}
	return id
}

func (l *Loop) devices() []DeviceReport {
	var out []DeviceReport
	for e := range l.ledger.Want().OfKind(backend.KindDevice) {
		d := DeviceReport{Device: e.(backend.Device), Problem: l.wrong(e)}
		for e := range l.ledger.Want().OfKind(backend.KindAddress) {
			if e.On() != d.Device.Name {
				continue
			}
			d.Addresses = append(d.Addresses, e.(backend.Address))
			if d.Problem == "" {
				d.Problem = l.wrong(e)
			}
		}
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b DeviceReport) int { return a.Device.Local.Compare(b.Device.Local) }) // IPv4 first.
	return out
}

// wrong says how one of the node's own entries differs from what is wanted.
func (l *Loop) wrong(e backend.Entry) string {
	if l.have == nil {
		return "the kernel has not been read yet"
	}
	if l.have.Has(e) {
		return ""
	}
	at, there := l.have.At(e)
	text := "is missing"
	if a, ok := e.(backend.Address); ok {
		text = fmt.Sprintf("address %s is missing", a.Prefix)
	}
	if d, ok := at.(backend.Device); ok && there {
		text = "differs: " + d.String()
		if d.Down {
			text = "is down"
		}
	}
	id := backend.Identity(e)
	if f, ok := l.failing.entries[id]; ok {
		text += ": " + f.text
	}
	if f, ok := l.fights.entries[id]; ok && f.said {
		text += fmt.Sprintf(": an outside hand (%s) does it again and again, %d times so far", l.fights.name(f.by), f.times)
	}
	return text
}

// problems lists some of what fails, what waits for it last, and some of what is
// fought for.
func (l *Loop) problems() []Problem {
	var out, waiting []Problem
	looked := 0
	for id, f := range l.failing.entries {
		if looked++; looked > mostLookedAt || len(out) == mostProblems {
			break
		}
		p := Problem{Entry: l.wanted(id), Reason: f.text, Foreign: f.blocked}
		if !f.waits {
			out = append(out, p)
		} else if len(waiting) < mostProblems {
			waiting = append(waiting, p)
		}
	}
	out = append(out, waiting[:min(len(waiting), mostProblems-len(out))]...)
	if l.fights.fought > 0 {
		fought, looked := 0, 0
		for id, f := range l.fights.entries {
			if looked++; looked > mostLookedAt || fought == mostProblems {
				break
			}
			if f.said {
				fought++
				out = append(out, Problem{Entry: l.wanted(id), Fought: true, Reason: fmt.Sprintf("an outside hand (%s) undid it %d times", l.fights.name(f.by), f.times)})
			}
		}
	}
	slices.SortFunc(out, func(a, b Problem) int { return cmp.Compare(a.Entry.Kind(), b.Entry.Kind()) })
	return out
}
