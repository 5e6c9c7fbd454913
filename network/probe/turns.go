package probe

import (
	"context"
	"math/rand/v2"

	"github.com/ripstop-net/ripstop/subnet"
)

// Peers gives peers by numbers below a bound, which may grow and shrink. Not each
// number is a peer's.
type Peers interface {
	Bound() int
	At(n int) (subnet.Lease, bool)
	// Obstacle names what on this host is known to be in the way of what a peer's host
	// sends, "" for nothing. It is asked for those that do not answer.
	Obstacle(ctx context.Context, peer subnet.Lease, f subnet.Family) string
}

// turns goes through all numbers in an order that is drawn for each round, so that
// each peer's turn comes once in it, at the same cost however many there are.
type turns struct {
	// The numbers of a round are below bound; at is the next, step the way to the one
	// after it, which has no divisor in common with bound, and left how many remain.
	bound, at, step, left int
}

// mostLooks bounds the numbers that are looked at for one turn: there may be many
// that are nobody's, after a network shrank.
const mostLooks = 4096

// next returns the peers of the next turn, at most so many, that answer questions.
func (t *turns) next(peers Peers, count int) []subnet.Lease {
	var out []subnet.Lease
	begun := false
	for looks := 0; looks < mostLooks && len(out) < count; looks++ {
		if t.left == 0 {
			if begun || len(out) > 0 || !t.begin(peers.Bound()) {
				break // No peer has two turns in one.
			}
			begun = true
		}
		n := t.at
		t.at, t.left = (t.at+t.step)%t.bound, t.left-1
		if l, ok := peers.At(n); ok && l.EchoPort != 0 {
			out = append(out, l)
		}
	}
	return out
}

// begin draws the order of a round.
func (t *turns) begin(bound int) bool {
	if *t = (turns{bound: bound, left: bound}); bound == 0 {
		return false
	}
	t.at, t.step = rand.IntN(bound), 1
	for range 64 { // About two in three have no divisor in common.
		if step := 1 + rand.IntN(bound); divisor(step, bound) == 1 {
			t.step = step
			break
		}
	}
	return true
}

func divisor(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
