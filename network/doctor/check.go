package doctor

import (
	"context"
	"fmt"
	"time"
)

// Check is one thing that is looked at.
type Check struct {
	// ID is that of its verdicts, or the part of theirs before the first slash.
	ID string
	// Title says in a few words what is looked at, for whoever waits.
	Title string
	// Limit bounds the time that it may take; 0 is [DefaultLimit].
	Limit time.Duration
	// Run looks and judges. It changes nothing. Where there is nothing to say it
	// returns none. It is to end with its ctx; one that does not is left behind.
	Run func(ctx context.Context) []Verdict
}

// DefaultLimit is more than any check of a node takes that is not stuck.
const DefaultLimit = 5 * time.Second

// patience is how long a check may take to notice that its time is over.
const patience = 200 * time.Millisecond

// Run runs checks one after another and returns all verdicts in their order. A
// check that does not end in time, or panics, is a verdict itself, so that whatever
// hangs, the rest is told. began is told which one is at work. After the end of ctx
// no further check is begun.
func Run(ctx context.Context, checks []Check, began func(Check)) []Verdict {
	var all []Verdict
	for _, c := range checks {
		if ctx.Err() != nil {
			break
		}
		if began != nil {
			began(c)
		}
		all = append(all, runOne(ctx, c)...)
	}
	return all
}

func runOne(ctx context.Context, c Check) []Verdict {
	limit := c.Limit
	if limit == 0 {
		limit = DefaultLimit
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	done := make(chan []Verdict, 1) // With room, so that who comes late is gone all the same.
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- []Verdict{{
					Check: c.ID, Severity: Warning, Summary: "the check came to no end: it has a fault of its own",
					Evidence: []string{fmt.Sprint(p)}, Remedy: []string{"Report it; what it looks at is not known."},
				}}
			}
		}()
		done <- c.Run(limited)
	}()
	select {
	case verdicts := <-done:
		return verdicts
	case <-limited.Done():
	}
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case verdicts := <-done:
		return verdicts
	case <-late.C:
	}
	if ctx.Err() != nil {
		return nil
	}
	return []Verdict{{
		Check: c.ID, Severity: Warning, Summary: fmt.Sprintf("the check did not end within %s: what it asks does not answer", limit),
		Evidence: []string{"it looks at: " + c.Title}, Remedy: []string{"Look for what holds it up: a network file system that is away, a kernel that is busy, a program that is stopped."},
	}}
}
