package lab

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// mostKernel bounds what a fault is given for the kernel's own time, until it is
// known how much of that there was.
const mostKernel = 2 * time.Second

// lockWatch measures for how long the kernel lets nobody change a host's network.
//
// It is for the carrier that a hand takes from a VXLAN device (IFLA_PROTO_DOWN). The
// kernel announces that at once (do_setlink), and a moment later, from a work queue
// (linkwatch_do_dev), drops the device's nexthop objects one by one, each with a walk
// through all routes (__remove_nexthop_fib, fib_flush), the RTNL lock held: with
// 10,000 peers 0.45 to 0.7 s (Linux 6.18, two busy cores). A daemon can win nothing
// there: a hand that gave the carrier back in the very moment after it was taken was in
// most tries too late, and waited for the same lock.
type lockWatch struct {
	stop, ended chan struct{}
	longest     time.Duration
	err         error
}

// lockEvery is how often the lock is asked for. The kernel may have it for so long
// before that shows, which goes at the daemon's expense.
const lockEvery = 5 * time.Millisecond

// watchLock asks for the lock from now on, by a change that changes nothing and is
// not announced: lo gets the MTU that it has (netif_set_mtu_ext).
func watchLock(t *testing.T, h *Host) *lockWatch {
	t.Helper()
	w := &lockWatch{stop: make(chan struct{}), ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		w.err = h.Namespace.netlink(func(n *netlink.Handle) error {
			lo, err := n.LinkByName("lo")
			for err == nil {
				select {
				case <-w.stop:
					return nil
				case <-time.After(lockEvery):
				}
				began := time.Now()
				err = n.LinkSetMTU(lo, lo.Attrs().MTU)
				w.longest = max(w.longest, time.Since(began))
			}
			return err
		})
	}()
	return w
}

// end gives the longest time that somebody waited for the lock; 0 where nobody looked.
func (w *lockWatch) end(t *testing.T) time.Duration {
	t.Helper()
	if w == nil {
		return 0
	}
	close(w.stop)
	<-w.ended
	if w.err != nil {
		t.Fatal(w.err)
	}
	return min(w.longest, mostKernel)
}
