package converge

import "time"

// sayEvery is the least time between two lines about one matter. The first is
// said at once, what comes until the next is summed up in that.
const sayEvery = 10 * time.Second

// matter is what there are lines about now and then.
type matter struct {
	write   func()
	pending bool
	// after is when the next line may be written.
	after time.Time
}

func (m *matter) say(now time.Time) {
	if m.pending && !m.after.After(now) {
		m.pending, m.after = false, now.Add(sayEvery)
		m.write()
	}
}
