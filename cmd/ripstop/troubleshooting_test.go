package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ripstop-net/ripstop/network/doctor/path"
)

// TestTroubleshootingHasEveryCheck of the doctor, and none that there is not.
func TestTroubleshootingHasEveryCheck(t *testing.T) {
	page, err := os.ReadFile("../../Documentation/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, named []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_/-]+)` \\| ").FindAllStringSubmatch(string(page), -1) {
		listed = append(listed, m[1])
	}
	if ids := checkIDs(); !slices.Equal(listed, ids) {
		t.Errorf("the page lists\n%q, the doctor has\n%q", listed, ids)
	}
	for _, row := range regexp.MustCompile("(?m)^\\| [A-Z][^|]* \\| (`[^|]*) \\|").FindAllStringSubmatch(string(page), -1) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			named = append(named, m[1])
		}
	}
	for _, id := range path.Checks {
		if !strings.Contains(string(page), "\n| "+id+" | ") {
			t.Errorf("nothing is said of verdicts of %s", id)
		}
	}
	for _, id := range checkIDs() {
		if !slices.Contains(named, id) {
			t.Errorf("no symptom leads to the check %q", id)
		}
	}
	for _, id := range named {
		if !slices.Contains(checkIDs(), id) {
			t.Errorf("a symptom leads to %q, which is no check", id)
		}
	}
}
