package network

import (
	"os"
	"testing"

	"github.com/ripstop-net/ripstop/subnet"
)

// TestInvariant3UnreadableRecordOutlivesARestart: a node that remembers nothing,
// for its snapshot is gone too, leaves what the kernel has for the subnet.
func TestInvariant3UnreadableRecordOutlivesARestart(t *testing.T) {
	r := newRig(t)
	second, third, fourth := r.join(2), r.join(3), r.join(4)
	r.start()
	r.ready()
	restart := func(meanwhile func()) {
		t.Helper()
		r.stop()
		meanwhile()
		if err := os.RemoveAll(r.opts.StateDir); err != nil {
			t.Fatal(err)
		}
		r.kernel.Ops()
		r.start()
		r.ready()
	}
	r.store.Put(second.Subnets.Key(), []byte("{"), true)
	r.store.Put(third.Subnets.Key(), []byte("{"), true)
	r.eventually("it is said", func() bool { return r.said(second.Subnets.Key()) && r.said(third.Subnets.Key()) })
	restart(func() { r.store.Delete(fourth.Subnets.Key()) })
	if !r.reaches(second) || !r.reaches(third) || r.reaches(fourth) {
		t.Errorf("the kernel has\n%s", r.kernel.State())
	}
	// It is on another machine by now.
	second.Endpoints[subnet.V4].MAC[1] = 9
	r.store.Put(second.Subnets.Key(), second.Record(), true)
	r.store.Delete(third.Subnets.Key())
	r.eventually("the third left", func() bool { return !r.reaches(third) })
	if !r.reaches(second) {
		t.Errorf("the kernel has\n%s", r.kernel.State())
	}
	restart(func() {})
	if ops := r.kernel.Ops(); len(ops) != 0 {
		t.Errorf("something was left of what was kept: %v", ops)
	}
}
