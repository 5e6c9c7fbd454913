package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/ripstop-net/ripstop/cmd/internal/ripstopd"
)

// TestPageOfFlannelsFlagsNamesOurs: what it names as ripstopd's is there, and each flag
// that has flannel's name is among them.
func TestPageOfFlannelsFlagsNamesOurs(t *testing.T) {
	page := readFile(t, "../../Documentation/migrating-from-flannel.md")
	flag := regexp.MustCompile("`--([a-z0-9-]+)`")
	ours, _ := ripstopd.Flags()
	rows := 0
	for line := range strings.Lines(page) {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !strings.Contains(cells[1], "`--") {
			continue
		}
		rows++
		named := map[string]bool{}
		for _, m := range flag.FindAllStringSubmatch(cells[2], -1) {
			named[m[1]] = true
			if ours.Lookup(m[1]) == nil {
				t.Errorf("ripstopd has no --%s", m[1])
			}
		}
		for _, m := range flag.FindAllStringSubmatch(cells[1], -1) {
			if ours.Lookup(m[1]) != nil && !named[m[1]] {
				t.Errorf("ripstopd has --%s, which the page does not say", m[1])
			}
		}
	}
	if rows < 10 {
		t.Errorf("the page has %d rows", rows)
	}
}
