//go:build packages

package prometheus

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func promtool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestRealPromtool takes the rules, sees each fire and be silent in its time, and takes
// the board's queries as rules.
func TestRealPromtool(t *testing.T) {
	promtool(t, "check", "rules", "ripstop.rules.yml")
	promtool(t, "test", "rules", "ripstop.rules.test.yml")
	var board struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	if err := json.Unmarshal([]byte(read(t, "board.json")), &board); err != nil {
		t.Fatal(err)
	}
	text := "groups:\n- name: board\n  rules:\n"
	for i, p := range board.Panels {
		text += fmt.Sprintf("  - {record: 'panel:%d', expr: %q}\n", i, p.Targets[0].Expr)
	}
	path := filepath.Join(t.TempDir(), "board.yml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", path)
}
