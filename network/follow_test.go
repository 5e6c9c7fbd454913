package network

import "testing"

// TestOtherStoreIsSavedAtOnce: a daemon that is killed just after its store became
// another must not know the old one at its start.
func TestOtherStoreIsSavedAtOnce(t *testing.T) {
	r := newRig(t)
	r.start()
	r.ready()
	r.savesItsLease()
	r.store.NewEpoch()
	seen, err := r.store.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r.eventually("the snapshot is of the new store", func() bool {
		s, err := readSnapshot(r.opts.StateDir)
		return err == nil && s != nil && s.Epoch == seen.Epoch
	})
}
