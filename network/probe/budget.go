package probe

import "time"

// An echo reads so many datagrams a second in the long run, and so many at once:
// enough for a thousand nodes of which each asks this one every other second, and
// for a doctor's burst. What comes beyond that fills the socket's buffer, where the
// kernel drops the rest, at no cost of the daemon's.
const (
	budgetPerSecond = 500
	budgetAtOnce    = 128
	budgetRefill    = 32 // How many are waited for once it is used up.
)

// budget counts what may be read still. The zero budget is full.
type budget struct {
	left float64
	last time.Time // When left was right.
}

// take uses one up, and says how long to wait before.
func (b *budget) take(now time.Time) (pause time.Duration) {
	if b.last.IsZero() {
		b.left, b.last = budgetAtOnce, now
	}
	if grown := now.Sub(b.last); grown > 0 {
		b.left, b.last = min(budgetAtOnce, b.left+grown.Seconds()*budgetPerSecond), now
	}
	if b.left < 1 {
		pause = time.Duration((budgetRefill - b.left) / budgetPerSecond * float64(time.Second))
	}
	b.left--
	return pause
}
