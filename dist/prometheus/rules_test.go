// Package prometheus tests the alert rules and the board for Grafana.
package prometheus

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func all(text, expression string) (out []string) {
	for _, m := range regexp.MustCompile(expression).FindAllStringSubmatch(text, -1) {
		out = append(out, m[1])
	}
	return out
}

// metrics are those that a daemon has: the page's table, which is held to the code.
func metrics(t *testing.T) []string {
	t.Helper()
	known := all(read(t, "../../Documentation/metrics.md"), "(?m)^\\| `(ripstop_\\w+)` \\|")
	if len(known) < 30 {
		t.Fatalf("the page has %d metrics", len(known))
	}
	return known
}

// TestEachMetricNamedExists in rules, their tests and the board: a rule on a metric that
// is not there never fires.
func TestEachMetricNamedExists(t *testing.T) {
	known := metrics(t)
	for _, file := range []string{"ripstop.rules.yml", "ripstop.rules.test.yml", "board.json"} {
		named := all(read(t, file), `\b(ripstop_\w+)`)
		if len(named) == 0 {
			t.Errorf("%s names no metric", file)
		}
		for _, name := range named {
			if !slices.Contains(known, strings.TrimSuffix(name, "_bucket")) {
				t.Errorf("%s names %s, which there is not", file, name)
			}
		}
	}
}

// TestEachAlertIsTestedAndDescribed: promtool runs the tests (TestRealPromtool).
func TestEachAlertIsTestedAndDescribed(t *testing.T) {
	rules, tests, page := read(t, "ripstop.rules.yml"), read(t, "ripstop.rules.test.yml"), read(t, "../../Documentation/metrics.md")
	alerts := all(rules, `alert: (\w+)`)
	described := all(page, "(?m)^\\| `(Ripstop\\w+)` \\|")
	if !slices.Equal(alerts, described) {
		t.Errorf("the rules have\n%q, the page\n%q", alerts, described)
	}
	for _, alert := range alerts {
		if !slices.Contains(all(tests, `eval_time: \S+\n +alertname: (\w+)`), alert) {
			t.Errorf("no test has %s fire", alert)
		}
		if !slices.Contains(all(tests, `alertname: (\w+), exp_alerts: \[\]`), alert) {
			t.Errorf("no test has %s silent", alert)
		}
	}
}

// TestBoard: it is what Grafana reads, and each panel has something to show.
func TestBoard(t *testing.T) {
	var board struct {
		Title  string
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "board.json")), &board); err != nil {
		t.Fatal(err)
	}
	if board.Title == "" || len(board.Panels) == 0 {
		t.Error("the board is empty")
	}
	for _, p := range board.Panels {
		if p.Title == "" || len(p.Targets) != 1 || !strings.Contains(p.Targets[0].Expr, "ripstop_") {
			t.Errorf("panel %+v", p)
		}
	}
}
