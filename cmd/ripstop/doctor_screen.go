package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/network/status"
)

var severityColours = map[doctor.Severity]colour{doctor.OK: green, doctor.Note: plain, doctor.Warning: yellow, doctor.Failure: red}

// showVerdicts writes verdicts for people: what is wrong with all that is known of it,
// what is well in a line each. They are sorted.
func showVerdicts(s screen, verdicts []doctor.Verdict, wide bool) {
	counts := map[doctor.Severity]int{}
	for _, v := range verdicts {
		counts[v.Severity]++
		head := v.Check
		for _, about := range []string{v.Peer, v.Family} {
			if about != "" {
				head += ", " + about
			}
		}
		if v.Severity == doctor.OK && !wide {
			s.field("ok", green, head+": "+v.Summary)
			continue
		}
		s.field(v.Severity.String(), severityColours[v.Severity], head+": "+v.Summary)
		for _, line := range v.Evidence {
			s.field("", plain, "seen: "+line)
		}
		for i, line := range v.Remedy {
			if command, ok := strings.CutPrefix(line, doctor.CommandMark); ok {
				lead := "    "
				if i == 0 { // Else it stands under what was seen, as if it were a part of that.
					lead = "do: "
				}
				// Not wrapped: it is to be copied.
				fmt.Fprintf(s.to, "%12s%s%s\n", "", lead, s.paint(bold, command))
				continue
			}
			s.field("", plain, "do: "+line)
		}
		if v.Severity > doctor.OK {
			fmt.Fprintln(s.to)
		}
	}
	fmt.Fprintln(s.to, sum(counts))
}

// sum is the last line. It says that all is well only where nothing else was said.
func sum(counts map[doctor.Severity]int) string {
	notes := status.Count(counts[doctor.Note], "note", "notes")
	switch {
	case counts[doctor.Failure]+counts[doctor.Warning] > 0:
		text := status.Count(counts[doctor.Failure], "failure", "failures") + ", " + status.Count(counts[doctor.Warning], "warning", "warnings")
		if counts[doctor.Note] > 0 {
			text += ", " + notes
		}
		return text
	case counts[doctor.Note] > 0:
		return "nothing is broken, by all that was looked at; " + notes + " above"
	}
	return "all is well"
}

// progress says on a terminal which check is at work, in a line that goes away.
type progress struct {
	to    io.Writer
	shown bool
}

func newProgress(to io.Writer) *progress {
	if f, ok := to.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return &progress{}
	}
	return &progress{to: to}
}

func (p *progress) began(c doctor.Check) {
	if p.to != nil {
		fmt.Fprintf(p.to, "\r\x1b[Klooking at %s …", c.Title)
		p.shown = true
	}
}

func (p *progress) done() {
	if p.shown {
		fmt.Fprint(p.to, "\r\x1b[K")
	}
}
