package kernel

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

var peerPrefix = netip.MustParsePrefix("10.250.0.1/24")

// FuzzNoMessagePanics hands any bytes to all that reads messages.
func FuzzNoMessagePanics(f *testing.F) {
	w := builder{}
	for _, typ := range []uint16{unix.RTM_NEWLINK, unix.RTM_NEWROUTE, unix.RTM_NEWNEIGH, unix.RTM_NEWADDR, unix.RTM_NEWNEXTHOP, unix.NLMSG_ERROR} {
		w.reset()
		w.begin(typ, 0, 1, 16)
		w.u32(1, 7)
		w.end()
		f.Add(w.b)
		f.Add(w.b[:len(w.b)-3])
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		e := newEvents(nil, func(string) bool { return true })
		k := &Kernel{byNexthop: map[fdbKey]struct{}{}}
		for m := range messages(b) {
			e.doubt = false
			e.ours[linkIndex(m.body)] = "ripstop.1"
			e.read(k, m)
			_ = answer(m)
			l, _ := parseLink(m.body)
			_ = l.device()
			_, _ = parseAddress(m.body)
			n, _ := parseNeighbour(m.body)
			_ = n.fdb("")
			_, _ = parseNexthop(m.body)
			r, _ := parseRoute(m.body)
			_ = r.route(backend.Nexthop{}, "")
			_ = r.devices()
		}
	})
}

func TestAttributesAllocateNothing(t *testing.T) {
	w := builder{}
	w.begin(unix.RTM_NEWROUTE, 0, 1, sizeRouteMessage)[0] = unix.AF_INET
	w.addr(unix.RTA_DST, netip.MustParseAddr("10.0.0.0"))
	w.u32(attrRouteNexthopID, 7)
	w.end()
	got := routeMessage{}
	if n := testing.AllocsPerRun(100, func() {
		for m := range messages(w.b) {
			got, _ = parseRoute(m.body)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if got.nexthop != 7 {
		t.Errorf("nexthop %d", got.nexthop)
	}
}

func TestNexthopNumbersGoAround(t *testing.T) {
	var h nexthopIDs
	h.takenByAnother(firstID)
	h.takenByAnother(7) // Not of our range, so of no interest.
	h.last = lastID - 1
	if a, b := h.free(), h.free(); a != lastID || b != firstID+1 {
		t.Fatalf("numbers %#x, %#x", a, b)
	}
}
