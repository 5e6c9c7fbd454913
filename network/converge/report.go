package converge

import (
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
)

// namedDrift is how many entries a line about drift names.
const namedDrift = 3

// report logs what changed, once for what was wanted and once for what an
// outside hand had done.
func (p *pass) report(ops []backend.Op, failed map[backend.Entry]struct{}) {
	var count, mended [3]int
	var first []string
	silent := 0
	for _, op := range ops {
		id := backend.Identity(op.Entry)
		if _, ok := failed[id]; ok {
			continue
		}
		if _, ok := p.drifted[id]; !ok {
			count[op.Verb]++
			continue
		}
		if p.alone(id) {
			p.fights.mended(id, p.look[id], p.now)
		}
		if p.fights.said(id) {
			silent++
			continue
		}
		if mended[op.Verb]++; len(first) < namedDrift {
			first = append(first, op.String())
		}
	}
	p.fights.sayMore()
	if n := mended[0] + mended[1] + mended[2]; n+silent > 0 {
		p.count(func(s *Stats) { s.Drift += uint64(n + silent) })
		if n > 0 {
			p.log.Info("drift mended", zap.Int("entries", n), zap.Strings("first", first), zap.Duration("took", time.Since(p.now)))
		}
	}
	if count[0]+count[1]+count[2] > 0 {
		p.log.Info("forwarding state changed", zap.Int("added", count[backend.Add]), zap.Int("replaced", count[backend.Replace]),
			zap.Int("deleted", count[backend.Delete]), zap.Int("failed", len(failed)), zap.Duration("took", time.Since(p.now)))
	}
}
