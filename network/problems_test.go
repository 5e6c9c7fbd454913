package network

import (
	"fmt"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// told reports what changed in what is passed over.
func (p *problems) told(now time.Time, was, is map[string]string) {
	var changed []string
	for key := range was {
		if is[key] == "" {
			changed = append(changed, key)
		}
	}
	for key, why := range is {
		if was[key] != why {
			changed = append(changed, key)
		}
	}
	p.report(now, changed, func(key string) string { return is[key] }, len(is))
}

// TestTogglingRecordIsSaidNowAndThen: one that turns good and bad with each change
// has ever fewer lines, and the last says what is so. Another is said at once.
func TestTogglingRecordIsSaidNowAndThen(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	p, now := newProblems(zap.New(core)), time.Unix(1e9, 0)
	var was map[string]string
	for i := range 36_000 { // An hour.
		records := map[string]string{"steady": "broken"}
		if i%2 == 0 {
			records["toggling"] = "broken"
		}
		p.told(now, was, records)
		was = records
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
			p.told(now, was, want)
			was = want
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
	if p.told(now, was, nil); len(p.said)+len(p.waiting) != 0 {
		t.Errorf("left over: %v, %v", p.said, p.waiting)
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
	var was map[string]string
	for range 50 {
		p.told(now, was, records)
		was = records
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
