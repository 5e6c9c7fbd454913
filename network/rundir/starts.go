package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// mostStarts bounds the file of starts; more of them tell no more.
const mostStarts = 32

// Start is one of a daemon, and how that ended.
type Start struct {
	At  time.Time
	End End
}

// End is how a daemon ended; the zero value is that it runs, or ended by itself.
type End string

// A daemon that is told to end before it was ready does not serve: who told it may be one
// who looks after it and found it so. One that was ready was told so by hand.
const (
	ToldUnready End = "told-to-end-before-it-was-ready"
	ToldReady   End = "told-to-end"
)

// steady is for how long a daemon is ready that does stay up.
const steady = time.Minute

// StartsPath is the file in a run folder with the starts: a line each. It tells a daemon
// that ends again and again from one that is away for a moment.
func StartsPath(dir string) string { return filepath.Join(dir, "starts") }

// Began notes a start. It is for who has the lock.
func Began(dir string, at time.Time) error {
	all, err := Starts(dir)
	if err != nil {
		return err
	}
	all = append(all, Start{At: at})
	if err := writeStarts(dir, all[max(0, len(all)-mostStarts):]); err != nil {
		return fmt.Errorf("note that this daemon started: %w", err)
	}
	return nil
}

// Ended notes that the daemon was told to end, having been ready for some time, or 0 for
// never. Where that was a while, the starts up to it are no trouble, and are forgotten. Else
// they are kept: a restart by hand mends no loop.
func Ended(dir string, ready time.Duration) error {
	if err := ended(dir, ready); err != nil {
		return fmt.Errorf("note that this daemon was told to end: %w", err)
	}
	return nil
}

func ended(dir string, ready time.Duration) error {
	if ready >= steady {
		if err := os.Remove(StartsPath(dir)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	all, err := Starts(dir)
	if err != nil || len(all) == 0 {
		return err
	}
	last := &all[len(all)-1]
	if last.End = ToldUnready; ready > 0 {
		last.End = ToldReady
	}
	return writeStarts(dir, all)
}

func writeStarts(dir string, all []Start) error {
	var text strings.Builder
	for _, s := range all {
		text.WriteString(strings.TrimSpace(s.At.UTC().Format(time.RFC3339)+" "+string(s.End)) + "\n")
	}
	return renameio.WriteFile(StartsPath(dir), []byte(text.String()), 0o600)
}

// Starts are those noted, the oldest first. A line that is none is passed over.
func Starts(dir string) (all []Start, err error) {
	text, err := os.ReadFile(StartsPath(dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read when daemons started: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		at, end, _ := strings.Cut(strings.TrimSpace(line), " ")
		if t, err := time.Parse(time.RFC3339, at); err == nil {
			all = append(all, Start{At: t, End: End(end)})
		}
	}
	return all, nil
}
