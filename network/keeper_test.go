package network

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/subnet"
)

// TestSnapshotIsWrittenSeldom: at once after a claim, otherwise every ten
// seconds at most, and when the node ends.
func TestSnapshotIsWrittenSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		revision := int64(0)
		k := newKeeper(dir, zap.NewNop(), nil, *testSnapshot(1), func() (string, int64, subnet.SavedPeers) {
			revision++
			return "E", revision, subnet.SavedPeers{}
		})
		writes := func(want int64) {
			t.Helper()
			synctest.Wait()
			if s, err := readSnapshot(dir); err != nil || s.Revision != want {
				t.Errorf("written %v times, want %d (%v)", s, want, err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { k.run(ctx); done <- nil }()
		writes(1)
		for range 100 { // 9.9 s.
			time.Sleep(99 * time.Millisecond)
			k.changed()
		}
		writes(1)
		time.Sleep(time.Second)
		writes(2)
		time.Sleep(time.Hour)
		writes(2)
		k.claimed(subnet.Lease{ID: 7})
		writes(3)
		k.renewed(time.Now().Add(time.Hour)) // The first of the new lease.
		writes(4)
		if s, _ := readSnapshot(dir); !s.Expires.Equal(time.Now().Add(time.Hour-5*time.Minute)) || s.Lease.ID != 7 {
			t.Errorf("saved %+v", s)
		}
		k.changed()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		writes(5)
	})
}

func TestSnapshotThatCannotBeWrittenIsSaidOnce(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k := newKeeper(dir, zap.New(core), nil, *testSnapshot(1), func() (string, int64, subnet.SavedPeers) { return "", 0, subnet.SavedPeers{} })
	for range 3 {
		k.save(t.Context())
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	k.save(t.Context())
	if logs.Len() != 2 {
		t.Errorf("said %v", logs.All())
	}
}

// disk stands for one that answers when it is told to.
type disk struct {
	asked  chan *snapshot
	answer chan error
}

// onDisk is a keeper with a disk, and what it logs.
func onDisk() (*keeper, disk, *observer.ObservedLogs) {
	core, logs := observer.New(zap.DebugLevel)
	k := newKeeper("", zap.New(core), nil, *testSnapshot(1), func() (string, int64, subnet.SavedPeers) { return "E", 1, subnet.SavedPeers{} })
	d := disk{make(chan *snapshot), make(chan error)}
	k.write = func(s *snapshot) error {
		d.asked <- s
		return <-d.answer
	}
	return k, d, logs
}

// TestStalledDiskHoldsUpNobody: the lease is renewed and peers change while a
// write hangs, and the node ends after two seconds, saying so.
func TestStalledDiskHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, d, logs := onDisk()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { k.run(ctx); done <- nil }()
		<-d.asked
		free := make(chan struct{})
		go func() {
			defer close(free)
			k.renewed(time.Now().Add(time.Hour))
			k.claimed(subnet.Lease{ID: 7})
			k.changed()
		}()
		select {
		case <-free:
		case <-time.After(time.Hour): // By the test's own clock: as soon as all else waits.
			t.Fatal("a renewal waits for the disk")
		}
		time.Sleep(time.Hour)
		cancel()
		began := time.Now()
		if err := <-done; err != nil || time.Since(began) != lastWrite {
			t.Errorf("it ended after %s: %v", time.Since(began), err)
		}
		if logs.FilterMessage("snapshot not saved: the disk under --state-dir does not answer").Len() != 1 || logs.Len() != 1 {
			t.Errorf("said %v", logs.All())
		}
		d.answer <- nil
	})
}

// TestStalledDiskThatComesBack: what changed meanwhile is written then.
func TestStalledDiskThatComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, d, _ := onDisk()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { k.run(ctx); done <- nil }()
		<-d.asked
		k.claimed(subnet.Lease{ID: 7})
		time.Sleep(time.Minute)
		d.answer <- nil
		if s := <-d.asked; s.Lease.ID != 7 {
			t.Errorf("written %+v", s)
		}
		d.answer <- nil
		cancel()
		if err := <-done; err != nil { // And nothing is left to be written.
			t.Error(err)
		}
	})
}

// TestLastWrite is made where something changed, and is waited for.
func TestLastWrite(t *testing.T) {
	for name, change := range map[string]func(*keeper){
		"nothing": nil,
		"peers":   (*keeper).changed,
		"lease":   func(k *keeper) { k.claimed(subnet.Lease{ID: 7}) },
		"renewal": func(k *keeper) { k.renewed(time.Now().Add(time.Hour)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k, d, _ := onDisk()
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { k.run(ctx); done <- nil }()
				<-d.asked
				d.answer <- nil
				synctest.Wait()
				if change != nil {
					change(k)
				}
				cancel()
				if change != nil {
					<-d.asked
					time.Sleep(time.Second)
					d.answer <- nil
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestWhatIsSavedIsNotWrittenAgain: so that what the store tells first is, at once.
func TestWhatIsSavedIsNotWrittenAgain(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*snapshot)
		want   bool
	}{
		"the same":       {func(*snapshot) {}, false},
		"another lease":  {func(s *snapshot) { s.Lease.ID++ }, true},
		"record changed": {func(s *snapshot) { s.Lease.Modified++ }, true},
		"another config": {func(s *snapshot) { s.Config = []byte("{}") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				saved, now := testSnapshot(1), *testSnapshot(1)
				tc.change(&now)
				now.Expires = time.Time{}
				var writes []*snapshot
				k := newKeeper("", zap.NewNop(), saved, now, func() (string, int64, subnet.SavedPeers) { return "E", 1, subnet.SavedPeers{} })
				k.write = func(s *snapshot) error { writes = append(writes, s); return nil }
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { k.run(ctx); done <- nil }()
				synctest.Wait()
				if len(writes) > 0 != tc.want {
					t.Errorf("written %d times", len(writes))
				}
				if !tc.want {
					k.changed()
					synctest.Wait()
					if len(writes) != 1 || !writes[0].Expires.Equal(saved.Expires) {
						t.Errorf("what changed first is not written at once: %+v", writes)
					}
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestFailedWriteIsTriedAgain though nothing else changed.
func TestFailedWriteIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, d, logs := onDisk()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { k.run(ctx); done <- nil }()
		for _, answer := range []error{errors.New("full"), errors.New("full"), nil} {
			<-d.asked
			d.answer <- answer
		}
		time.Sleep(time.Hour)
		if logs.Len() != 2 {
			t.Errorf("said %v", logs.All())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
