package network

import (
	"os"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// lives tells whether the daemon has not ended.
func (r *rig) lives() bool { return len(r.done) == 0 }

// TestRefusalEndsNoNodeThatServes: what etcd refuses ends a start, and no daemon whose
// pods talk. It goes on, says why once, and writes when it may.
func TestRefusalEndsNoNodeThatServes(t *testing.T) {
	for name, lose := range map[string]func(r *rig, key string){
		"its record is deleted":   func(r *rig, key string) { r.store.Delete(key) },
		"its presence has lapsed": func(r *rig, _ string) { r.store.Vanish("node1") },
		"both, and the store is compacted": func(r *rig, key string) {
			r.store.Delete(key)
			r.store.Vanish("node1")
			r.store.Compact()
		},
		"its address changes": func(r *rig, _ string) { r.renumber("10.99.0.9") },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			peer := r.join(2)
			r.start()
			r.ready()
			key, _ := r.own()
			r.store.Refuse(true)
			lose(r, key)
			r.eventually("it says that it waits", func() bool { return r.said("store refuses") })
			r.stays("it lives and reaches its peer", func() bool { return r.lives() && r.reaches(peer) })
			if n := r.count("waiting"); n > 2 { // For the name and for the lease.
				t.Errorf("said %d times that it waits: %v", n, r.logs.All())
			}
			r.store.Refuse(false)
			r.eventually("its record is there again", func() bool {
				_, there := r.store.Record(key)
				return there
			})
			r.eventually("it is known as living", func() bool {
				_, known, err := r.store.Known(t.Context(), subnet.Living{Node: "node1", Token: "another"})
				return err == nil && known
			})
		})
	}
}

// TestStartWhileTheStoreRefuses: a node that was part of the network comes up with the
// lease that it had, and takes it up as soon as it may.
func TestStartWhileTheStoreRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		refuse func(*rig)
		says   string
	}{
		"everything": {func(r *rig) { r.store.Refuse(true) }, "starting with what was saved"},
		"to write":   {func(r *rig) { r.store.RefuseWrites(true) }, comingMessage},
		"to write, and what was listed at first is old by then": {func(r *rig) {
			r.store.RefuseWrites(true)
			r.host.lag.Store(int64(listingLasts + 500*time.Millisecond)) // The first look takes that.
			time.AfterFunc(time.Second, func() { r.host.lag.Store(0) })
		}, comingMessage},
	} {
		for _, boot := range []bool{false, true} {
			where := name
			if boot {
				where += ", after a boot"
			}
			t.Run(where, func(t *testing.T) {
				r := newRig(t)
				peer := r.join(2)
				r.start()
				r.ready()
				r.savesItsLease()
				key, _ := r.own()
				file, err := os.ReadFile(r.opts.SubnetFile)
				if err != nil {
					t.Fatal(err)
				}
				r.stop()
				if boot {
					r.reboots()
					r.store.Vanish("node1")
				}
				tc.refuse(r)
				r.start()
				r.eventuallyIn(30*time.Second, "it is ready", func() bool { return r.node.NotReady() == nil || !r.lives() })
				r.ready()
				r.eventually("its lease is kept alive meanwhile", func() bool { return r.node.Status().Lease.Renewals > 0 })
				if now, err := os.ReadFile(r.opts.SubnetFile); err != nil || string(now) != string(file) || !r.reaches(peer) || !r.said(tc.says) {
					t.Errorf("came up with %s (%v), was %s: %v", now, err, file, r.logs.All())
				}
				r.stays("it lives", r.lives)
				r.store.Refuse(false)
				r.store.RefuseWrites(false)
				r.eventually("it is known as living", func() bool {
					_, known, err := r.store.Known(t.Context(), subnet.Living{Node: "node1", Token: "another"})
					return err == nil && known
				})
				if k, _ := r.own(); k != key {
					t.Errorf("holds %s then", k)
				}
			})
		}
	}
}
