package rundir

import (
	"errors"
	"os"
	"slices"
	"testing"
	"time"
)

// TestStartsAreCounted until one that stayed up was told to end, and no more than so many are kept.
func TestStartsAreCounted(t *testing.T) {
	dir := t.TempDir()
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	begin := func(n int) {
		t.Helper()
		for i := range n {
			if err := Began(dir, began.Add(time.Duration(i)*time.Second)); err != nil {
				t.Fatal(err)
			}
		}
	}
	has := func(want int) (all []Start) {
		t.Helper()
		all, err := Starts(dir)
		if err != nil || len(all) != want {
			t.Errorf("%v, %v; want %d", all, err, want)
		}
		return all
	}
	has(0)
	begin(3)
	if all := has(3); len(all) == 3 && !all[2].At.Equal(began.Add(2*time.Second)) {
		t.Errorf("the last was at %s", all[2].At)
	}
	begin(2 * mostStarts)
	if all := has(mostStarts); !all[0].At.Equal(began.Add(mostStarts * time.Second)) {
		t.Errorf("the first kept was at %s", all[0].At)
	}
	for range 2 {
		if err := Ended(dir, time.Hour); err != nil {
			t.Fatal(err)
		}
		has(0)
	}
	if err := os.WriteFile(StartsPath(dir), []byte("junk\n\n2026-03-01T12:00:00Z\n2026-03-01T"), 0o600); err != nil {
		t.Fatal(err)
	}
	has(1)
}

// TestEnd of a daemon that is told to: the starts before are forgotten only where it was
// ready for a while.
func TestEnd(t *testing.T) {
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, tc := range map[string]struct {
		ready time.Duration
		want  []End
	}{
		"never ready":         {0, []End{"", ToldUnready, ""}},
		"ready for a moment":  {1, []End{"", ToldReady, ""}},
		"not for long enough": {steady - 1, []End{"", ToldReady, ""}},
		"for long enough":     {steady, []End{""}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			// Where nothing is noted, there is nothing to say of.
			if err := errors.Join(Ended(dir, tc.ready), Began(dir, began), Began(dir, began), Ended(dir, tc.ready), Began(dir, began)); err != nil {
				t.Fatal(err)
			}
			all, err := Starts(dir)
			var got []End
			for _, s := range all {
				got = append(got, s.End)
				if !s.At.Equal(began) {
					t.Errorf("one at %s", s.At)
				}
			}
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("%v, %q; want %q", err, got, tc.want)
			}
		})
	}
}
