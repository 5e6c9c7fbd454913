package kernel

import (
	"iter"
	"maps"
	"math"
	"net/netip"
	"slices"

	"github.com/ripstop-net/ripstop/backend"
)

// The numbers of our nexthop objects come from a range that is far from where
// others begin to count (zebra at 1, the kernel at 1 for objects that name
// none).
const (
	firstID = 0x52000000
	lastID  = 0x52ffffff
)

// nexthopIDs knows the numbers of nexthop objects: of ours from the last Dump
// and our own changes, and of others' those that fall in our range. Of the tens
// of thousands that are ours it keeps addresses as bytes and devices by number.
type nexthopIDs struct {
	devices []string
	four    numbers[[4]byte]
	six     numbers[[16]byte]
	// strays have their number in themselves.
	strays map[uint32]backend.Nexthop
	others map[uint32]struct{}
	last   uint32
	// narrow are the objects through which IPv4 routes with metrics were met or
	// made. The kernel takes such a route's insides for any other through the
	// object that asks for no metrics (fib_find_info_nh compares none): one that
	// is to have none must say so.
	narrow map[uint32]struct{}
}

// numbers has the numbers of the nexthops of one family, in both directions.
type numbers[A [4]byte | [16]byte] struct {
	ids  map[gateway[A]]uint32
	ours map[uint32]gateway[A]
}

// gateway is a nexthop: an address on a device.
type gateway[A [4]byte | [16]byte] struct {
	ip  A
	dev uint16
}

func (n *numbers[A]) set(g gateway[A], id uint32) {
	if n.ids == nil {
		n.ids, n.ours = map[gateway[A]]uint32{}, map[uint32]gateway[A]{}
	}
	if old, ok := n.ids[g]; ok {
		delete(n.ours, old)
	}
	n.ids[g], n.ours[id] = id, g
}

func (n *numbers[A]) remove(g gateway[A]) {
	if id, ok := n.ids[g]; ok {
		delete(n.ids, g)
		delete(n.ours, id)
	}
}

func (h *nexthopIDs) reset() { *h = nexthopIDs{last: h.last} }

// device is the number of a device, which is given one if it has none and give
// says so.
func (h *nexthopIDs) device(name string, give bool) (number uint16, ok bool) {
	at := slices.Index(h.devices, name)
	if at < 0 && give && len(h.devices) < math.MaxUint16 {
		at = len(h.devices)
		h.devices = append(h.devices, name)
	}
	return uint16(at), at >= 0
}

// add notes an object of ours that a dump or an event shows and returns its entry, which is
// a stray if it is a second of its kind or of no form that we make.
func (h *nexthopIDs) add(hop backend.Nexthop, plain bool, id uint32) backend.Nexthop {
	if !plain || h.id(hop) != 0 {
		hop.Stray = id
	}
	h.set(hop, id)
	return hop
}

func (h *nexthopIDs) set(hop backend.Nexthop, id uint32) {
	dev, ok := h.device(hop.Dev, hop.Stray == 0)
	switch {
	case hop.Stray != 0 || !ok:
		if h.strays == nil {
			h.strays = map[uint32]backend.Nexthop{}
		}
		h.strays[id] = hop
	case hop.Gateway.Is4():
		h.four.set(gateway[[4]byte]{hop.Gateway.As4(), dev}, id)
	default:
		h.six.set(gateway[[16]byte]{hop.Gateway.As16(), dev}, id)
	}
}

// takenByAnother notes that a number is another's.
func (h *nexthopIDs) takenByAnother(id uint32) {
	if id < firstID || id > lastID {
		return
	}
	if h.others == nil {
		h.others = map[uint32]struct{}{}
	}
	h.others[id] = struct{}{}
}

// met notes a route through an object, which may be 0 for none.
func (h *nexthopIDs) met(r backend.Route, id uint32) {
	if id == 0 || r.MTU == 0 && !r.Odd || !r.Dst.Addr().Is4() {
		return
	}
	if h.narrow == nil {
		h.narrow = map[uint32]struct{}{}
	}
	h.narrow[id] = struct{}{}
}

// id returns the number of hop, 0 if it is not known to have one.
func (h *nexthopIDs) id(hop backend.Nexthop) uint32 {
	if hop.Stray != 0 {
		return hop.Stray
	}
	dev, ok := h.device(hop.Dev, false)
	switch {
	case !ok || !hop.Gateway.IsValid():
		return 0
	case hop.Gateway.Is4():
		return h.four.ids[gateway[[4]byte]{hop.Gateway.As4(), dev}]
	default:
		return h.six.ids[gateway[[16]byte]{hop.Gateway.As16(), dev}]
	}
}

// hop returns the one of ours that has a number, the zero Nexthop if there is none.
func (h *nexthopIDs) hop(id uint32) (hop backend.Nexthop, ok bool) {
	if g, ok := h.four.ours[id]; ok {
		return backend.Nexthop{Dev: h.devices[g.dev], Gateway: netip.AddrFrom4(g.ip)}, true
	}
	if g, ok := h.six.ours[id]; ok {
		return backend.Nexthop{Dev: h.devices[g.dev], Gateway: netip.AddrFrom16(g.ip)}, true
	}
	hop, ok = h.strays[id]
	return hop, ok
}

func (h *nexthopIDs) remove(hop backend.Nexthop) {
	dev, ok := h.device(hop.Dev, false)
	switch {
	case hop.Stray != 0:
		delete(h.strays, hop.Stray)
	case !ok || !hop.Gateway.IsValid():
	case hop.Gateway.Is4():
		h.four.remove(gateway[[4]byte]{hop.Gateway.As4(), dev})
	default:
		h.six.remove(gateway[[16]byte]{hop.Gateway.As16(), dev})
	}
}

// removeOn forgets those on a device that is gone: the kernel has removed them
// (nexthop_flush_dev).
func (h *nexthopIDs) removeOn(dev string) {
	for _, ids := range []iter.Seq[uint32]{maps.Keys(h.four.ours), maps.Keys(h.six.ours), maps.Keys(h.strays)} {
		for id := range ids {
			if hop, _ := h.hop(id); hop.Dev == dev {
				h.remove(hop)
			}
		}
	}
}

// free returns a number that is not known to be taken, not the same one twice
// until all have been tried.
func (h *nexthopIDs) free() uint32 {
	for range lastID - firstID + 1 {
		h.last++
		if h.last < firstID || h.last > lastID {
			h.last = firstID
		}
		_, ours := h.hop(h.last)
		_, others := h.others[h.last]
		if !ours && !others {
			break
		}
	}
	return h.last
}
