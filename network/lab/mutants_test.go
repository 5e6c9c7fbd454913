//go:build mutants

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestMutantsAreCaught makes daemons that do all but one thing and has the walk and
// the fault suite run with each: what they do not notice there, they would not
// notice if it broke.
func TestMutantsAreCaught(t *testing.T) {
	var walks, direct []string
	for _, m := range mutants {
		walks, direct = append(walks, m.walks...), append(direct, m.direct...)
	}
	for test, faults := range map[string][]string{"TestWalk": walks, "TestWalkDirect": direct} {
		if out, ok := runWith(t, "", walkArgs(test, strings.Join(faults, "|"))...); !ok {
			t.Fatalf("%s fails without any mutant:\n%s", test, out)
		}
	}
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			overlay := m.overlay(t)
			for _, faults := range m.walks {
				m.try(t, "TestWalk: "+faults, overlay, walkArgs("TestWalk", faults)...)
			}
			for _, faults := range m.direct {
				m.try(t, "TestWalkDirect: "+faults, overlay, walkArgs("TestWalkDirect", faults)...)
			}
			for _, test := range m.tests {
				args := []string{"."}
				if folder, name, ok := strings.Cut(test, "."); ok {
					args, test = []string{"../../" + folder}, name
				}
				m.try(t, test, overlay, append(args, "-run=^"+strings.ReplaceAll(regexp.QuoteMeta(test), "/", "$/^")+"$")...)
			}
		})
	}
}

// walkArgs are for a walk that is short, and long enough for each of a few faults
// to come to each family and to hosts with audits and without.
func walkArgs(test, faults string) []string {
	return []string{".", "-run=^" + test + "$", "-args", "-walk.only=" + faults, "-walk.steps=12", "-walk.seed=1", "-walk.limit=8s"}
}

// overlay writes the mutated file and what tells the go command to use it.
func (m mutant) overlay(t *testing.T) string {
	t.Helper()
	text := m.text(t)
	dir := t.TempDir()
	mutated, overlay := filepath.Join(dir, "mutated.go"), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {m.path(t): mutated}})
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{mutated: text, overlay: list} {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return overlay
}

// reason is what a walk or a test says that went wrong.
var reason = regexp.MustCompile(`(?m)^\s+\w+_test\.go:\d+: (` + strings.Join([]string{
	`seed \d+, step \d+: .*`, `not within .*`, `not healed after .*`, `no answer for .*`, `.* lost packets .*`, `\d+ of \d+ pairs do not talk.*`,
	`the kernel announced .*`, `the peer was (?:not )?held .*`,
}, "|") + `)$`)

func (m mutant) try(t *testing.T, test, overlay string, args ...string) {
	t.Helper()
	began := time.Now()
	out, ok := runWith(t, overlay, args...)
	name, _, _ := strings.Cut(test, ": ")
	switch why := reason.FindStringSubmatch(out); {
	case ok:
		t.Errorf("%s does not notice it", test)
	case !strings.Contains(out, "--- FAIL: "+name+" ") || strings.HasPrefix(name, "TestWalk") && why == nil:
		t.Errorf("%s fails otherwise than by noticing it:\n%s", test, out)
	default:
		t.Logf("%s notices it after %s: %.200s", test, time.Since(began).Round(time.Second), strings.Join(why[min(1, len(why)):], ""))
	}
}

// runWith runs tests of this package with an overlay, which the daemon that they
// build has as well, and tells whether they pass.
func runWith(t *testing.T, overlay string, args ...string) (out string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-count=1", "-timeout=4m"}, args...)...)
	cmd.Env = os.Environ()
	if overlay != "" {
		cmd.Env = append(cmd.Env, strings.TrimSpace("GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+overlay))
	}
	text, err := cmd.CombinedOutput()
	if bytes.Contains(text, []byte("[build failed]")) || bytes.Contains(text, []byte("build ripstopd:")) {
		t.Fatalf("it cannot be built:\n%s", text)
	}
	return string(text), err == nil
}
