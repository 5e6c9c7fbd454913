package etcd

import (
	"path/filepath"
	"testing"
	"time"
)

// TestRestoredBackupIsAnotherStore: where it is of before something that was
// told, it is found out within two seconds, whatever was written to it since.
// What it lacks may never have been taken back, so the peers are held.
func TestRestoredBackupIsAnotherStore(t *testing.T) {
	t.Parallel()
	passed := func(o *sight) { o.elsewhere(40) }
	for name, tc := range map[string]struct {
		// What is done before and after the backup, and once it is restored.
		before, after, restored func(*sight)
		// Which peers there are and which are held; "" for no listing.
		want string
	}{
		"revision behind": {
			after: func(o *sight) { o.join(3) }, want: "n2:n3",
		},
		"revision behind what was heard alone": {
			after: func(o *sight) { o.elsewhere(10); o.checked() },
			want:  "n2:",
		},
		"revision passed": {
			after: func(o *sight) { o.join(3) }, restored: passed, want: "n2:n3",
		},
		"claimed again": {
			after:    func(o *sight) { o.join(3, 4) },
			restored: func(o *sight) { o.join(4); passed(o) }, want: "n2 n4:n3",
		},
		"claimed again at the same revision": {
			after:    func(o *sight) { o.join(3) },
			restored: func(o *sight) { o.join(3); passed(o) }, want: "n2 n3:",
		},
		"the one that came last left again": {
			after:    func(o *sight) { o.join(3, 4); o.leave(4) },
			restored: passed, want: "n2:n3",
		},
		"own record is lost": {
			before: func(o *sight) { o.leave(1) }, after: func(o *sight) { o.join(1); o.holds() },
			restored: passed, want: "n2:",
		},
		"compacted": {
			after:    func(o *sight) { o.join(3) },
			restored: func(o *sight) { o.join(3); passed(o); o.compact() }, want: "n2 n3:",
		},
		"compacted, and own record is lost": {
			before: func(o *sight) { o.leave(1) }, after: func(o *sight) { o.join(3, 1); o.holds() },
			restored: func(o *sight) { passed(o); o.compact() }, want: "n2:n3",
		},
		"all that was told is in it": {
			before: func(o *sight) { o.join(3) }, after: func(*sight) {}, restored: passed,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := observe(t, 1, 2)
			backup := filepath.Join(t.TempDir(), "backup")
			if tc.before != nil {
				tc.before(o)
			}
			o.must(o.srv.Backup(t.Context(), backup))
			tc.after(o)
			o.caughtUp()
			o.checked()
			told := o.soFar()
			o.link.Cut(true)
			o.must(o.srv.Restore(t.Context(), backup))
			if tc.restored != nil {
				tc.restored(o)
			}
			o.link.Cut(false)
			began := time.Now()
			if tc.want == "" {
				o.checked()
				if more := o.since(told); len(more) != 0 {
					t.Errorf("told %+v", more)
				}
				return
			}
			c := o.listed(told)
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("found after %s", took)
			}
			if got := o.peers(); got != tc.want {
				t.Errorf("peers %s, want %s, after %+v", got, tc.want, c)
			}
		})
	}
}

// TestAnotherClusterIDIsAnotherStore though the epoch is the same and the
// revision larger.
func TestAnotherClusterIDIsAnotherStore(t *testing.T) {
	t.Parallel()
	o := observe(t)
	epoch, err := o.hand.c.Get(t.Context(), o.store.epochKey())
	o.must(err)
	told := o.soFar()
	o.link.Cut(true)
	o.must(o.srv.Renew(t.Context(), "another"))
	_, err = o.hand.c.Put(t.Context(), o.store.epochKey(), string(epoch.Kvs[0].Value))
	o.must(err)
	o.elsewhere(10)
	o.link.Cut(false)
	if c := o.listed(told); !c.Different {
		t.Errorf("told %+v", c)
	}
}

// TestOwnRecordLostIsNoOtherStore: it ended because nobody renewed it, as when
// the daemon is stopped for long, or an operator deleted it. The peers that left
// meanwhile are gone, and none is held.
func TestOwnRecordLostIsNoOtherStore(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*sight){
		"gone":       func(o *sight) { o.leave(1, 3) },
		"made anew":  func(o *sight) { o.leave(1, 3); o.join(1) },
		"in a cut":   func(o *sight) { o.link.Cut(true); o.leave(1, 3); o.link.Cut(false) },
		"and joined": func(o *sight) { o.link.Cut(true); o.join(5); o.leave(1, 3, 5); o.join(6); o.link.Cut(false) },
		"all alone": func(o *sight) {
			o.link.Cut(true)
			o.leave(1, 2, 3, 4)
			o.join(2, 4)
			o.link.Cut(false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := observe(t, 2, 3, 4, 1)
			o.holds()
			told := o.soFar()
			lose(o)
			o.listed(told)
			o.caughtUp()
			for _, c := range o.since(told) {
				if c.Different {
					t.Errorf("told %+v", c)
				}
			}
			want := map[bool]string{false: "n2 n4:", true: "n2 n4 n6:"}[name == "and joined"]
			if got := o.peers(); got != want {
				t.Errorf("peers %s, want %s", got, want)
			}
		})
	}
}
