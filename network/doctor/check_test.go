package doctor

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestChecksThatHangAreVerdicts: whatever one check does, the others are told of.
func TestChecksThatHangAreVerdicts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		well := func(id string) Check {
			return Check{ID: id, Run: func(context.Context) []Verdict { return []Verdict{{Check: id, Summary: "well"}} }}
		}
		slow := Check{ID: "slow", Limit: time.Second, Run: func(ctx context.Context) []Verdict {
			<-ctx.Done()
			return []Verdict{{Check: "slow", Summary: "ended in time"}}
		}}
		stuck := Check{ID: "stuck", Title: "a mount", Run: func(context.Context) []Verdict { <-release; return nil }}
		broken := Check{ID: "broken", Run: func(context.Context) []Verdict { panic("at the disco") }}
		var began []string
		at := time.Now()
		got := Run(t.Context(), []Check{well("a"), slow, stuck, broken, well("b")}, func(c Check) { began = append(began, c.ID) })
		if took := time.Since(at); took != time.Second+DefaultLimit+patience {
			t.Errorf("took %s", took)
		}
		var lines []string
		for _, v := range got {
			lines = append(lines, v.Check+": "+v.Summary)
		}
		want := "a: well\nslow: ended in time\nstuck: the check did not end within 5s: what it asks does not answer\nbroken: the check came to no end: it has a fault of its own\nb: well"
		if text := strings.Join(lines, "\n"); text != want {
			t.Errorf("got\n%s\nwant\n%s", text, want)
		}
		if strings.Join(began, " ") != "a slow stuck broken b" {
			t.Errorf("told of %v", began)
		}
	})
}

// TestNoCheckAfterTheEnd: Ctrl-C ends it without a word about checks that had no time.
func TestNoCheckAfterTheEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	first := Check{ID: "first", Run: func(ctx context.Context) []Verdict { cancel(); <-ctx.Done(); return nil }}
	second := Check{ID: "second", Run: func(context.Context) []Verdict { t.Error("begun"); return nil }}
	if got := Run(ctx, []Check{first, second}, nil); len(got) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestVerdicts(t *testing.T) {
	all := []Verdict{{Check: "a"}, {Check: "b", Severity: Warning}, {Check: "c", Severity: Failure}, {Check: "d", Severity: Note}, {Check: "e", Severity: Failure}}
	Sort(all)
	var order []string
	for _, v := range all {
		order = append(order, v.Check)
	}
	if strings.Join(order, "") != "cebda" {
		t.Errorf("order %v", order)
	}
	for s, code := range map[Severity]int{OK: 0, Note: 0, Warning: 2, Failure: 3} {
		if got := Worst([]Verdict{{}, {Severity: s}}).ExitCode(); got != code {
			t.Errorf("%s: exit code %d", s, got)
		}
	}
	text, err := json.Marshal(all[0])
	if err != nil || string(text) != `{"check":"c","severity":"failure","summary":""}` {
		t.Errorf("JSON %s %v", text, err)
	}
	var back Verdict
	if err := json.Unmarshal(text, &back); err != nil || back.Severity != Failure {
		t.Errorf("read back: %+v %v", back, err)
	}
	if json.Unmarshal([]byte(`{"severity":"bad"}`), &back) == nil {
		t.Error("an unknown severity was taken")
	}
}
