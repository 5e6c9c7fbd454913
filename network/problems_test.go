package network

import (
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// TestTogglingRecordIsSaidNowAndThen: one that turns good and bad with each change
// has ever fewer lines, and the last says what is so. Another is said at once.
func TestTogglingRecordIsSaidNowAndThen(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	p, now := newProblems(zap.New(core)), time.Unix(1e9, 0)
	for i := range 36_000 { // An hour.
		records := map[string]string{"steady": "broken"}
		if i%2 == 0 {
			records["toggling"] = "broken"
		}
		p.report(now, records)
		if i == 0 && logs.Len() != 2 {
			t.Errorf("at once: %v", logs.All())
		}
		now = now.Add(100 * time.Millisecond)
	}
	if n := logs.Len(); n < 6 || n > 16 {
		t.Errorf("%d lines", n)
	}
	for _, want := range []map[string]string{{"toggling": "broken otherwise"}, {}} {
		logs.TakeAll()
		for range 60 {
			now = now.Add(30 * time.Second)
			p.report(now, want)
		}
		said := 0
		for _, line := range logs.All() {
			if line.ContextMap()["key"] == "toggling" {
				said++
			}
		}
		if said != 1 {
			t.Errorf("said %d times that it is %v: %v", said, want, logs.All())
		}
	}
	now = now.Add(2 * longestSilence)
	if p.report(now, nil); len(p.said) != 0 {
		t.Errorf("left over: %v", p.said)
	}
}

// TestManyRecordsAreSaidByAndBy: those for which there was no room at first are
// counted, and said when there is.
func TestManyRecordsAreSaidByAndBy(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	p, now := newProblems(zap.New(core)), time.Unix(1e9, 0)
	records := map[string]string{}
	for i := range 35 {
		records[fmt.Sprint(i)] = "broken"
	}
	for range 50 {
		p.report(now, records)
		now = now.Add(time.Second)
	}
	if n := logs.FilterMessage("record passed over").Len(); n != len(records) {
		t.Errorf("%d of %d were said", n, len(records))
	}
	more := logs.FilterMessage("more records like these").All()
	if len(more) != 3 || more[0].ContextMap()["records"] != int64(25) || more[2].ContextMap()["records"] != int64(5) {
		t.Errorf("of more: %v", more)
	}
}
