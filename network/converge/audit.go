package converge

import (
	"context"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
)

// auditNow compares the mirror with the kernel. What is announced while the
// kernel is read may be in the dump or not and is no finding.
func (p *pass) auditNow(ctx context.Context) {
	p.planAudit(p.now)
	have, err := p.dump(ctx)
	if err != nil {
		return
	}
	changes, lost := p.kernel.Changes()
	if lost {
		p.unread = doubt
		p.failing.freedAll(p.now)
		return
	}
	p.correct(changes)
	if _, lost := have.Correct(changes); lost || p.unread != none {
		p.unread = doubt
		return
	}
	announced := map[backend.Entry]struct{}{}
	for _, c := range changes {
		announced[backend.Identity(c.Entry)] = struct{}{}
	}
	found, first := 0, ""
	find := func(e backend.Entry) {
		if _, ok := announced[backend.Identity(e)]; ok {
			return
		}
		if found++; found == 1 {
			first = e.String()
		}
	}
	for e := range have.All() {
		if !p.have.Has(e) {
			find(e)
		}
	}
	for e := range p.have.All() {
		if _, ok := have.At(e); !ok {
			find(e)
		}
	}
	p.have, p.whole = have, true
	p.count(func(s *Stats) {
		s.Dumps.Audit++
		s.Findings += uint64(found)
	})
	if found > 0 {
		p.log.Warn("audit found changes that the kernel had not announced", zap.Int("entries", found), zap.String("first", first))
	}
}
