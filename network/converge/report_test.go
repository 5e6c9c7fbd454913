package converge

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
)

// total adds up a field of the lines with a message.
func total(logs *observer.ObservedLogs, message, field string) (lines int, sum int64) {
	for _, line := range logs.FilterMessage(message).All() {
		n, _ := line.ContextMap()[field].(int64)
		lines, sum = lines+1, sum+n
	}
	return lines, sum
}

// TestStormIsSummedUp: peers that come and entries that are deleted, ten times a
// second for a minute, make a line each sayEvery, of which the first is there at
// once and all together tell all.
func TestStormIsSummedUp(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		const peers = 400
		l.Update(1, nil, farOwed(peers))
		time.Sleep(sayEvery)
		synctest.Wait()
		logs.TakeAll()
		const times = 600
		for i := range times {
			fake.Hand(func(s *backend.State) { s.Drop(far(i % peers)[i/peers]) })
			l.Update(int64(i), nil, far(peers+i))
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			if i == 0 && logs.Len() != 2 {
				t.Errorf("at once: %v", logs.All())
			}
		}
		time.Sleep(sayEvery)
		synctest.Wait()
		for message, want := range map[string]struct {
			field string
			sum   int64
		}{"forwarding state changed": {"added", 4 * times}, "drift mended": {"entries", times}} {
			if lines, sum := total(logs, message, want.field); lines < 2 || lines > 8 || sum != want.sum {
				t.Errorf("%q: %d lines tell of %d, want %d", message, lines, sum, want.sum)
			}
		}
		if n := logs.Len(); n > 16 {
			t.Errorf("%d lines in all", n)
		}
	})
}

// TestWhatWaitsIsSaidAtTheEnd of the loop's life.
func TestWhatWaitsIsSaidAtTheEnd(t *testing.T) {
	fake := backendtest.NewFake()
	var logs *observer.ObservedLogs
	loop(t, fake, func(l *Loop, seen *observer.ObservedLogs) {
		logs = seen
		l.Update(1, nil, owed(2))
		settle()
		l.Update(2, nil, peer(3))
		settle()
	})
	if lines, sum := total(logs, "forwarding state changed", "added"); lines != 2 || sum != 9 {
		t.Errorf("%d lines tell of %d", lines, sum)
	}
}

// TestFailuresInTurnAreCounted: entries that fail and are made in turn.
func TestFailuresInTurnAreCounted(t *testing.T) {
	fake := backendtest.NewFake()
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(0, nil, owed(2))
		settle()
		logs.TakeAll()
		for i := range 100 {
			fake.FailOps(func(op backend.Op) error {
				if op.Entry == peer(3)[0] {
					return syscall.ENOMEM
				}
				return nil
			})
			l.Update(int64(2*i+1), nil, peer(3))
			settle()
			fake.FailOps(nil)
			time.Sleep(4 * time.Second)
			synctest.Wait()
			l.Update(int64(2*i+2), peer(3), nil)
			settle()
		}
		// Ten minutes, in which it is named once more at most.
		if named, _ := total(logs, "change failed, will be tried again", ""); named < 1 || named > 2 {
			t.Errorf("named %d times", named)
		}
		lines, again := total(logs, "more changes failed or wait for those that did", "failed")
		ended, made := total(logs, "changes that failed have been made", "changes")
		if lines > 62 || ended > 62 || again < 97 || made < 297 {
			t.Errorf("%d lines tell of %d more failures, %d lines that %d were made", lines, again, ended, made)
		}
		if n := logs.Len(); n > 200 {
			t.Errorf("%d lines in all", n)
		}
	})
}

// TestManyFailuresAreCounted: each of many peers, one after another.
func TestManyFailuresAreCounted(t *testing.T) {
	fake := backendtest.NewFake()
	fake.FailOps(func(op backend.Op) error {
		if op.Entry.Kind() == backend.KindFDB {
			return syscall.ENOMEM
		}
		return nil
	})
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(0, nil, owed())
		for i := range 2000 {
			l.Update(int64(i+1), nil, far(i))
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		settle()
		named, _ := total(logs, "change failed, will be tried again", "")
		if named > 3*mostSaid || named < mostSaid || logs.Len() > 4*mostSaid {
			t.Errorf("%d are named, %d lines in all", named, logs.Len())
		}
	})
}

// TestWhatIsNoLongerWantedWasNotMade: a failing entry that is wanted no more is
// not said to have been made, and one that its owner changes is no new failure.
func TestWhatIsNoLongerWantedWasNotMade(t *testing.T) {
	fake := backendtest.NewFake()
	fake.Stand(peer(3)[3])
	loop(t, fake, func(l *Loop, logs *observer.ObservedLogs) {
		l.Update(1, nil, owed(2, 3))
		time.Sleep(10 * time.Minute) // Its pause is long by then.
		synctest.Wait()
		l.Update(2, peer(3), nil)
		time.Sleep(3 * mostRest)
		synctest.Wait()
		made, _ := total(logs, "changes that failed have been made", "")
		lines, gone := total(logs, "changes that failed are no longer wanted", "changes")
		if made != 0 || lines != 1 || gone != 1 || l.Stats().Failing != 0 {
			t.Errorf("%d lines that it was made, %d that %d are not wanted: %v", made, lines, gone, logs.All())
		}
		// A delete that fails is made, or is not to be.
		fake.FailOps(func(op backend.Op) error {
			if op.Verb == backend.Delete {
				return syscall.EBUSY
			}
			return nil
		})
		l.Update(3, peer(2), nil)
		time.Sleep(sayEvery)
		synctest.Wait()
		if l.Stats().Failing != 4 {
			t.Errorf("stats: %+v", l.Stats())
		}
		fake.Hand(func(s *backend.State) { s.Drop(peer(2)[3]) }) // So another makes one of the changes.
		fake.FailOps(nil)
		time.Sleep(2 * longestRetry)
		synctest.Wait()
		if lines, made := total(logs, "changes that failed have been made", "changes"); lines != 1 || made != 4 {
			t.Errorf("%d lines that %d were made", lines, made)
		}
		holds(t, fake, owed()...)
	})
}
