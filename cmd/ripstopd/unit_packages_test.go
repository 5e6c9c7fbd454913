//go:build packages

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRealSystemdTakesTheUnit: systemd finds no fault with it, and an exposure of 3.0
// at most.
func TestRealSystemdTakesTheUnit(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ripstopd.service")
	// systemd looks for the program, which need not be installed here.
	unit := strings.ReplaceAll(readFile(t, filepath.Join(unitDir, "ripstopd.service")), "ExecStart=/usr/bin/ripstopd", "ExecStart="+os.Args[0])
	if err := os.WriteFile(file, []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-analyze", "verify", file).CombinedOutput()
	if err != nil || strings.Contains(string(out), "ripstopd.service") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err = exec.CommandContext(t.Context(), "systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=30", file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Overall exposure level") {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
}
