package converge

import (
	"container/heap"
	"time"

	"github.com/ripstop-net/ripstop/backend"
)

// agenda says which entries are to be looked at when. An entry may be in it
// more than once.
type agenda struct{ items items }

type item struct {
	at time.Time
	id backend.Entry
}

func (a *agenda) add(at time.Time, id backend.Entry) { heap.Push(&a.items, item{at, id}) }

// due takes out what is due, an entry at a time.
func (a *agenda) due(now time.Time) (id backend.Entry, ok bool) {
	if len(a.items) == 0 || a.items[0].at.After(now) {
		return nil, false
	}
	return heap.Pop(&a.items).(item).id, true
}

// next returns when the next entry is due, the zero time if none is.
func (a *agenda) next() time.Time {
	if len(a.items) == 0 {
		return time.Time{}
	}
	return a.items[0].at
}

type items []item

func (h items) Len() int           { return len(h) }
func (h items) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h items) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *items) Push(x any)        { *h = append(*h, x.(item)) }
func (h *items) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = item{}
	*h = (*h)[:last]
	return x
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// earlier returns the earlier of two times, of which the zero one means never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
