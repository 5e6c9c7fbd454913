package kernel

import "github.com/ripstop-net/ripstop/backend"

// The numbers of our nexthop objects come from a range that is far from where
// others begin to count (zebra at 1, the kernel at 1 for objects that name
// none).
const (
	firstID = 0x52000000
	lastID  = 0x52ffffff
)

// nexthopIDs knows the numbers of nexthop objects: of ours from the last Dump
// and our own changes, and of others' those that fall in our range.
type nexthopIDs struct {
	ids    map[backend.Nexthop]uint32
	ours   map[uint32]backend.Nexthop
	others map[uint32]struct{}
	last   uint32
	// narrow are the objects through which IPv4 routes with metrics were met or
	// made. The kernel takes such a route's insides for any other through the
	// object that asks for no metrics (fib_find_info_nh compares none): one that
	// is to have none must say so.
	narrow map[uint32]struct{}
}

func (h *nexthopIDs) reset() {
	*h = nexthopIDs{
		ids: map[backend.Nexthop]uint32{}, ours: map[uint32]backend.Nexthop{}, others: map[uint32]struct{}{},
		last: h.last, narrow: map[uint32]struct{}{},
	}
}

// add notes an object of ours that a dump or an event shows and returns its entry, which is
// a stray if it is a second of its kind or of no form that we make.
func (h *nexthopIDs) add(hop backend.Nexthop, plain bool, id uint32) backend.Nexthop {
	if _, second := h.ids[hop]; second || !plain {
		hop.Stray = id
	}
	h.set(hop, id)
	return hop
}

func (h *nexthopIDs) set(hop backend.Nexthop, id uint32) {
	if h.ids == nil {
		h.reset()
	}
	if old, ok := h.ids[hop]; ok {
		delete(h.ours, old)
	}
	h.ids[hop] = id
	h.ours[id] = hop
}

// takenByAnother notes that a number is another's.
func (h *nexthopIDs) takenByAnother(id uint32) {
	if id < firstID || id > lastID {
		return
	}
	if h.ids == nil {
		h.reset()
	}
	h.others[id] = struct{}{}
}

// met notes a route through an object, which may be 0 for none.
func (h *nexthopIDs) met(r backend.Route, id uint32) {
	if id == 0 || r.MTU == 0 && !r.Odd || !r.Dst.Addr().Is4() {
		return
	}
	if h.ids == nil {
		h.reset()
	}
	h.narrow[id] = struct{}{}
}

// id returns the number of hop, 0 if it is not known to have one.
func (h *nexthopIDs) id(hop backend.Nexthop) uint32 {
	if hop.Stray != 0 {
		return hop.Stray
	}
	return h.ids[hop]
}

func (h *nexthopIDs) remove(hop backend.Nexthop) {
	if id, ok := h.ids[hop]; ok {
		delete(h.ids, hop)
		delete(h.ours, id)
	}
}

// removeOn forgets those on a device that is gone: the kernel has removed them
// (nexthop_flush_dev).
func (h *nexthopIDs) removeOn(dev string) {
	for hop := range h.ids {
		if hop.Dev == dev {
			h.remove(hop)
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
		_, ours := h.ours[h.last]
		_, others := h.others[h.last]
		if !ours && !others {
			break
		}
	}
	return h.last
}
