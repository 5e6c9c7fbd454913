package subnet

import "container/heap"

// Count is the number of peers.
func (m *Mirror) Count() int { return m.peers }

// Epoch names the life of the store that the mirror shows.
func (m *Mirror) Epoch() string { return m.epoch }

// Page lists, in the order of their subnets, the first peers after the given
// subnets that match, at most so many, and tells whether there are more. It
// copies little more than it returns.
func (m *Mirror) Page(after Subnets, limit int, match func(Lease) bool) (page []Saved, more bool) {
	first, from := &latestFirst{}, after.pack()
	for _, l := range m.leases.all() {
		if !l.peer || after != (Subnets{}) && l.key.compare(from) <= 0 {
			continue
		}
		full := first.Len() > limit // One beyond the limit tells that there are more.
		if full && l.key.compare((*first)[0].key) >= 0 || !match(l.lease()) {
			continue
		}
		if full {
			(*first)[0] = l
			heap.Fix(first, 0)
			continue
		}
		heap.Push(first, l)
	}
	if more = first.Len() > limit; more {
		heap.Pop(first)
	}
	page = make([]Saved, first.Len())
	for i := len(page) - 1; i >= 0; i-- {
		l := heap.Pop(first).(*packedLease).lease()
		page[i] = Saved{Lease: l, Held: m.held(l.Subnets)}
	}
	return page, more
}

// latestFirst is a heap with the greatest at its head.
type latestFirst []*packedLease

func (h latestFirst) Len() int           { return len(h) }
func (h latestFirst) Less(i, j int) bool { return h[i].key.compare(h[j].key) > 0 }
func (h latestFirst) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *latestFirst) Push(x any)        { *h = append(*h, x.(*packedLease)) }
func (h *latestFirst) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}
