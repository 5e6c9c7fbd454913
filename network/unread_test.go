package network

import (
	"net/netip"
	"os"
	"testing"

	"github.com/ripstop-net/ripstop/subnet"
)

// TestInvariant3UnreadableRecordOutlivesARestart: a node that remembers nothing,
// for its snapshot is gone too, leaves what the kernel has for the subnet.
func TestInvariant3UnreadableRecordOutlivesARestart(t *testing.T) {
	r := newRig(t)
	second, third, fourth := r.join(2), r.join(3), r.join(4)
	f := &fakeFirewall{rig: r, try: make(chan struct{}), let: map[netip.Addr]int{}}
	close(f.try)
	r.firewall = f
	careful := func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.careful) > 0 && f.careful[len(f.careful)-1]
	}
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
	if !r.reaches(second) || !r.reaches(third) || r.reaches(fourth) || !careful() {
		t.Errorf("firewall careful %t, the kernel has\n%s", careful(), r.kernel.State())
	}
	// It is on another machine by now.
	second.Endpoints[subnet.V4].MAC[1] = 9
	r.store.Put(second.Subnets.Key(), second.Record(), true)
	r.store.Delete(third.Subnets.Key())
	r.eventually("the third left, with all that it had", func() bool { return !r.reaches(third) && r.kernel.State().Len() == 2+4 })
	r.eventually("the firewall is no longer careful", func() bool { return !careful() })
	if !r.reaches(second) {
		t.Errorf("the kernel has\n%s", r.kernel.State())
	}
	restart(func() {})
	if ops := r.kernel.Ops(); len(ops) != 0 {
		t.Errorf("something was left of what was kept: %v", ops)
	}
}
