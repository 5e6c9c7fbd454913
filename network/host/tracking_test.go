package host

import (
	"errors"
	"io/fs"
	"testing"
)

// TestTrackingIsAddedUp over processors, by the names of columns, in hexadecimal.
func TestTrackingIsAddedUp(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want Tracking
		odd  bool
	}{
		"Linux 6": {"entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n" +
			"00000007  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000001 0000000a 00000002 00000000  00000000 00000000 00000000 00000000\n" +
			"00000007  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000010 00000000 00000000  00000000 00000000 00000000 00000000\n", Tracking{26, 2, 1}, false},
		"other columns":    {"entries drop\n00000001 000000ff\n", Tracking{Dropped: 255}, false},
		"more than names":  {"drop\n1 2 3\n", Tracking{Dropped: 1}, false},
		"none of them":     {"entries found\n1 2\n", Tracking{}, true},
		"nothing":          {"", Tracking{}, true},
		"no hexadecimal":   {"drop\nmany\n", Tracking{}, true},
		"names and no row": {"drop early_drop insert_failed\n", Tracking{}, false},
	} {
		if got, err := parseTracking(c.text); got != c.want || (err != nil) != c.odd {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := (Proc{}).Tracking(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of this kernel: %v", err)
	}
}
