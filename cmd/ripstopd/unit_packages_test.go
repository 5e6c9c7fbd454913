//go:build packages

package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRealSystemdTakesDockersDropIn, on a unit such as Docker's.
func TestRealSystemdTakesDockersDropIn(t *testing.T) {
	dir := t.TempDir()
	dropIn := strings.NewReplacer("/usr/bin/ripstop ", os.Args[0]+" ", "/usr/bin/dockerd ", os.Args[0]+" ").Replace(readFile(t, filepath.Join(unitDir, "docker.service.d/ripstop.conf")))
	for file, text := range map[string]string{
		"docker.service":                "[Service]\nType=notify\nExecStart=" + os.Args[0] + " -H fd://\n",
		"docker.service.d/ripstop.conf": dropIn,
		"ripstopd.service":              "[Service]\nExecStart=" + os.Args[0] + "\n",
	} {
		path := filepath.Join(dir, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "systemd-analyze", "verify", filepath.Join(dir, "docker.service"))
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), dir) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

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
