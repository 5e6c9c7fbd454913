package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity says how bad a verdict is.
type Severity int

// The severities, the lightest first.
const (
	// OK: it is as it should be.
	OK Severity = iota
	// Note: it works, and is worth knowing. A healthy node may have some.
	Note
	// Warning: it works, and will not for long, or not for all.
	Warning
	// Failure: pods cannot talk, or the node cannot go on.
	Failure
)

var severities = [...]string{"ok", "note", "warning", "failure"}

// String is the severity in a word, as JSON has it.
func (s Severity) String() string {
	if s < OK || s > Failure {
		return fmt.Sprintf("severity %d", int(s))
	}
	return severities[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Severity) UnmarshalText(text []byte) error {
	at := slices.Index(severities[:], string(text))
	if at < 0 {
		return fmt.Errorf("%q is none of %s", text, strings.Join(severities[:], ", "))
	}
	*s = Severity(at)
	return nil
}

// Verdict is what a check has to say about one thing.
type Verdict struct {
	// Check is the id of the check, which stays the same from version to version:
	// "device", "entries", "path/underlay".
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	// Peer and Family are what it is about, empty for the node as a whole.
	Peer   string `json:"peer,omitempty"`
	Family string `json:"family,omitempty"`
	// Summary is the verdict in one sentence, without a full stop.
	Summary string `json:"summary"`
	// Evidence is what was seen, a line each.
	Evidence []string `json:"evidence,omitempty"`
	// Remedy is what to do: sentences, and command lines, which begin with
	// [CommandMark].
	Remedy []string `json:"remedy,omitempty"`
}

// CommandMark begins a remedy that can be given to a shell as it is.
const CommandMark = "$ "

// Command makes a remedy of a command line.
func Command(format string, args ...any) string { return CommandMark + fmt.Sprintf(format, args...) }

// Sort puts the worst first, and of one severity what came first: checks run in an
// order in which causes come before what they cause.
func Sort(verdicts []Verdict) {
	slices.SortStableFunc(verdicts, func(a, b Verdict) int { return cmp.Compare(b.Severity, a.Severity) })
}

// Worst is the worst severity of all, OK where there is none.
func Worst(verdicts []Verdict) Severity {
	worst := OK
	for _, v := range verdicts {
		worst = max(worst, v.Severity)
	}
	return worst
}

// The codes with which a program ends that had to say so much. 1 is that of its own
// errors: then nothing was found out.
const (
	ExitWell     = 0
	ExitWarnings = 2
	ExitFailures = 3
)

// ExitCode is that of a severity; notes are well.
func (s Severity) ExitCode() int {
	switch {
	case s >= Failure:
		return ExitFailures
	case s == Warning:
		return ExitWarnings
	}
	return ExitWell
}
