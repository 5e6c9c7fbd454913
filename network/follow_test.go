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

// TestEndOfHoldIsSavedAtOnce: nor that peers were held which have come back.
func TestEndOfHoldIsSavedAtOnce(t *testing.T) {
	r := newRig(t)
	second := r.join(2)
	r.start()
	r.ready()
	r.savesItsLease()
	value, _ := r.store.Record(second.Subnets.Key())
	saved := func(held bool) func() bool {
		return func() bool {
			s, err := readSnapshot(r.opts.StateDir)
			if err != nil || s == nil || s.Peers.Len() != 1 {
				return false
			}
			for p := range s.Peers.All() {
				return p.Held == held
			}
			return false
		}
	}
	r.store.Wipe()
	r.store.SetConfig([]byte(testConfig))
	r.eventually("it is saved that the peer is held", saved(true))
	r.savesItsLease() // No other cause to save is left.
	r.store.Put(second.Subnets.Key(), value, true)
	r.eventually("it is saved that it is not", saved(false))
}
