package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// fakeFirewall notes what it is told, and whether a peer's route was there before
// its address was let in.
type fakeFirewall struct {
	rig *rig
	try chan struct{} // Run calls tried when this is closed.

	mu    sync.Mutex
	began int
	// flannels is what Begin was told of them each time.
	flannels []bool
	port     uint16
	ranges   subnet.Subnets
	at       subnet.PerFamily[[]netip.Addr]
	ats      []string // What at was, each after another, for IPv4.
	let      map[netip.Addr]int
	careful  []bool
	late     []netip.Addr
	report   status.Firewall
}

func (f *fakeFirewall) Begin(ranges, _ subnet.Subnets, _ subnet.PerFamily[string], at subnet.PerFamily[[]netip.Addr], _ uint32, port uint16, flannels bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.began++
	f.flannels = append(f.flannels, flannels)
	f.port, f.ranges, f.at = port, ranges, at
	if now := fmt.Sprint(at[subnet.V4]); len(f.ats) == 0 || f.ats[len(f.ats)-1] != now {
		f.ats = append(f.ats, now)
	}
}

// places are where peers were said to send to, one after another, since forget.
func (f *fakeFirewall) places() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ats)
}

func (f *fakeFirewall) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ats = nil
}

func (f *fakeFirewall) Update(release, owe []netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range owe {
		f.let[a]++
		if f.rig.sends(a) && f.let[a] == 1 {
			f.late = append(f.late, a)
		}
	}
	for _, a := range release {
		if f.let[a]--; f.let[a] == 0 {
			delete(f.let, a)
		}
	}
}

func (f *fakeFirewall) SetCareful(careful bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.careful = append(f.careful, careful)
}

func (f *fakeFirewall) Run(ctx context.Context, tried func()) error {
	select {
	case <-f.try:
		tried()
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

func (f *fakeFirewall) Report(context.Context) status.Firewall {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.report
}

func (f *fakeFirewall) tells(report status.Firewall) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.report = report
}

func (f *fakeFirewall) lets(addrs ...string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.let) == len(addrs) && !slices.ContainsFunc(addrs, func(a string) bool { return f.let[netip.MustParseAddr(a)] != 1 })
}

// lent is how many peers an address is let in for.
func (f *fakeFirewall) lent(addr string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.let[netip.MustParseAddr(addr)]
}

// sends tells whether the kernel has an FDB entry to a peer.
func (r *rig) sends(to netip.Addr) bool {
	for e := range r.kernel.State().OfKind(backend.KindFDB) {
		if e.(backend.FDB).Remote == to {
			return true
		}
	}
	return false
}

// A peer's address is let in before anything is sent to it, follows its record,
// and the node is ready only once the rules have been tried.
func TestFirewallFollowsThePeers(t *testing.T) {
	r := newRig(t)
	r.tune = func(n *Node) { n.movedGrace = 5 * time.Second }
	r.join(7)
	f := &fakeFirewall{rig: r, try: make(chan struct{}), let: map[netip.Addr]int{}}
	r.firewall = f
	r.start()
	r.eventually("the first peer is let in", func() bool { return f.lets("10.99.0.7") })
	r.eventually("the first peer is sent to", func() bool { return r.sends(netip.MustParseAddr("10.99.0.7")) })
	select {
	case <-r.node.Ready():
		t.Error("ready before the firewall's first attempt")
	case <-time.After(50 * time.Millisecond):
	}
	close(f.try)
	r.ready()
	moved := r.join(8)
	r.eventually("the second peer is let in", func() bool { return f.lets("10.99.0.7", "10.99.0.8") })
	moved.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr("10.99.0.88")
	r.store.Put(moved.Subnets.Key(), moved.Record(), true)
	r.eventually("the new address is let in beside the old one", func() bool { return f.lets("10.99.0.7", "10.99.0.8", "10.99.0.88") })
	r.eventually("the new address is sent to", func() bool { return r.sends(netip.MustParseAddr("10.99.0.88")) })
	r.eventually("the new address alone is let in", func() bool { return f.lets("10.99.0.7", "10.99.0.88") })
	r.store.Delete(moved.Subnets.Key())
	r.eventually("the peer that left is not let in", func() bool { return f.lets("10.99.0.7") })
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.late) != 0 {
		t.Errorf("sent to before they were let in: %v", f.late)
	}
	if f.began != 1 || f.port != 8472 || f.ranges[subnet.V4] != netip.MustParsePrefix("10.5.0.0/16") || f.ranges[subnet.V6].IsValid() {
		t.Errorf("begun %d times with port %d and ranges %v", f.began, f.port, f.ranges)
	}
}

// While peers may be missing, as in a start from the snapshot, the firewall is
// told so, and when that is over.
func TestFirewallIsCarefulAsLongAsPeersMayBeMissing(t *testing.T) {
	r := newRig(t)
	r.join(7)
	r.start()
	r.ready()
	r.savesItsLease()
	r.stop()
	f := &fakeFirewall{rig: r, try: make(chan struct{}), let: map[netip.Addr]int{}}
	close(f.try)
	r.firewall = f
	r.store.Away(true)
	r.start()
	r.ready()
	careful := func(want ...bool) func() bool {
		return func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			return slices.Equal(f.careful, want)
		}
	}
	if !careful(true)() || !f.lets("10.99.0.7") {
		t.Errorf("careful %v, lets %v", f.careful, f.let)
	}
	r.store.Away(false)
	r.eventually("the firewall may take peers out again", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.careful) > 1 && !f.careful[len(f.careful)-1]
	})
}
