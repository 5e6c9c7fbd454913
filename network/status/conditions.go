package status

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// Condition is one thing that must hold for a node to be ready.
type Condition struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// Reason says why it does not hold; where it does, what is worth knowing all
	// the same.
	Reason string `json:"reason,omitempty"`
	// Since is when OK last changed.
	Since time.Time `json:"since,omitzero"`
}

// The names of the conditions, in the order in which a start meets them.
const (
	// Started: the node has what it waits for at a start.
	Started = "started"
	// LeaseHeld: the store keeps the subnets for this node.
	LeaseHeld = "lease"
	// Undisputed: nobody else lives under this node's name, address or subnet.
	Undisputed = "undisputed"
	// UnderlayThere: the host has the interfaces and addresses of the underlay.
	UnderlayThere = "underlay"
	// StoreKnown: the copy of the store is current, or knowingly stale.
	StoreKnown = "store"
	// Forwarding: the host forwards what pods send and get.
	Forwarding = "forwarding"
	// DeviceRight: devices and addresses are as wanted.
	DeviceRight = "device"
	// EntriesRight: the last pass left no entry that fails or is fought for.
	EntriesRight = "entries"
	// SubnetFile: the subnet file is there.
	SubnetFile = "subnet-file"
)

// Names lists the conditions.
var Names = []string{Started, LeaseHeld, Undisputed, UnderlayThere, StoreKnown, Forwarding, DeviceRight, EntriesRight, SubnetFile}

// Judge makes the conditions of a status, without Since. fileProblem says what
// is wrong with the subnet file, which nothing else in the status tells.
func Judge(s Status, now time.Time, fileProblem string) []Condition {
	out := make([]Condition, 0, len(Names))
	add := func(name, problem, note string) {
		c := Condition{Name: name, OK: problem == "", Reason: problem}
		if c.OK {
			c.Reason = note
		}
		out = append(out, c)
	}
	waiting := ""
	if s.Waiting != nil {
		waiting = "waits for " + s.Waiting.For
		if !s.Waiting.Since.IsZero() {
			waiting += " since " + clock(s.Waiting.Since)
		}
		waiting += ": " + s.Waiting.Reason
	}
	switch {
	case s.Up:
		add(Started, "", waiting)
	case waiting == "":
		add(Started, "the node is coming up", "")
	default:
		add(Started, waiting, "")
	}
	add(LeaseHeld, leaseProblem(s.Lease, now), "")
	add(Undisputed, s.Trouble, "")
	add(UnderlayThere, underlayProblem(s.Underlay), "")
	problem, note := storeProblem(s.Store, now)
	add(StoreKnown, problem, note)
	add(Forwarding, forwardingProblem(s), "")
	add(DeviceRight, deviceProblem(s), "")
	add(EntriesRight, entriesProblem(s.Loop), "")
	add(SubnetFile, fileProblem, "")
	return out
}

func leaseProblem(l Lease, now time.Time) string {
	switch {
	case !l.Held && l.Problem == "":
		return "no lease is held yet"
	case !l.Held:
		return l.Problem
	case !l.Reservation && !l.Expires.IsZero() && !now.Before(l.Expires):
		return "it was not renewed and may have run out at " + clock(l.Expires)
	}
	return ""
}

func storeProblem(s Store, now time.Time) (problem, note string) {
	switch s.State {
	case Current:
		return "", s.Config
	case Stale:
		why := "the store is away"
		if s.Outage != nil {
			why = fmt.Sprintf("the store is away since %s: %s", clock(s.Outage.Since), s.Outage.Reason)
		}
		from := fmt.Sprintf("revision %d", s.Revision)
		if s.Saved {
			from = "what was saved, of " + from
		}
		return "", fmt.Sprintf("knowingly stale: goes by %s; %s", from, why)
	case Silent:
		return fmt.Sprintf("the store was last heard at %s, and nothing says why it is silent", clock(s.Heard)), ""
	}
	return "the store has not been listed yet", ""
}

func underlayProblem(underlay []Underlay) string {
	var all []string
	for _, u := range underlay {
		if u.Problem != "" {
			all = append(all, fmt.Sprintf("%s: %s; going on with %s on %s", u.Family, u.Problem, u.Address, u.Interface))
		}
	}
	return strings.Join(all, "; ")
}

// deviceProblem is empty for a node that is up and needs no device: host-gw and
// alloc do without.
func deviceProblem(s Status) string {
	if len(s.Devices) == 0 && !s.Up {
		return "there is no device yet"
	}
	var all []string
	for _, d := range s.Devices {
		switch {
		case d.Right:
		case d.Problem == "":
			all = append(all, d.Name+" is not as it should be")
		default:
			all = append(all, d.Name+": "+d.Problem)
		}
	}
	return strings.Join(all, "; ")
}

func entriesProblem(l Loop) string {
	var all []string
	first := func(fought bool) string {
		for _, p := range l.Problems {
			if p.Fought == fought {
				return fmt.Sprintf(": %s: %s", p.Entry, p.Reason)
			}
		}
		return ""
	}
	switch {
	case l.Passes == 0:
		return "no pass has been made yet"
	case l.Unread != "":
		all = append(all, l.Unread)
	}
	if l.Failing > 0 {
		all = append(all, fmt.Sprintf("%s cannot be had%s", Count(l.Failing, "entry", "entries"), first(false)))
	}
	if l.Fought > 0 {
		all = append(all, fmt.Sprintf("%s again and again undone by an outside hand%s", Count(l.Fought, "entry is", "entries are"), first(true)))
	}
	return strings.Join(all, "; ")
}

// Count is a number of things, in words for people.
func Count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func clock(t time.Time) string { return t.Format(time.RFC3339) }

// Met tells whether all hold.
func Met(conditions []Condition) bool {
	for _, c := range conditions {
		if !c.OK {
			return false
		}
	}
	return len(conditions) > 0
}

// Serves tells whether a node's own part is done: it has its lease and its device, and
// pods can be started. A node can serve that is not ready, as where one entry fails.
func Serves(conditions []Condition) bool {
	met := 0
	for _, c := range conditions {
		switch c.Name {
		case Started, LeaseHeld, DeviceRight, SubnetFile:
			if !c.OK {
				return false
			}
			met++
		}
	}
	return met == 4
}

// Text lists conditions a line each, as a probe's answer.
func Text(conditions []Condition) string {
	var b strings.Builder
	for _, c := range conditions {
		mark, text := "-", "failed"
		if c.OK {
			mark, text = "+", "ok"
		}
		fmt.Fprintf(&b, "[%s]%s %s", mark, c.Name, text)
		if c.Reason != "" {
			b.WriteString(": " + c.Reason)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// Tracker remembers since when each condition is as it is. It is safe for
// concurrent use.
type Tracker struct {
	mu   sync.Mutex
	last map[string]Condition
}

// Note fills in Since, as of now.
func (t *Tracker) Note(conditions []Condition, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil {
		t.last = map[string]Condition{}
	}
	for i := range conditions {
		c := &conditions[i]
		c.Since = now
		if old, ok := t.last[c.Name]; ok && old.OK == c.OK {
			c.Since = old.Since
		}
		t.last[c.Name] = *c
	}
}
