package converge

import (
	"context"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
)

// DefaultAuditEvery is the mean time between audits.
const DefaultAuditEvery = 5 * time.Minute

// longestConfirm bounds the time after which what an audit found is looked for
// again. The kernel announces some changes when they are through, seconds after
// a dump can see them: a device with many routes takes as long to go down.
const longestConfirm = 5 * time.Second

// AuditEvery sets the mean time between audits. It is called before Run.
func (l *Loop) AuditEvery(d time.Duration) { l.auditEvery = d }

// Among many peers an audit takes a good part of a second, so that it comes more
// seldom there: it may take one part in auditShare of a processor, but comes at
// least once in longestAudit if it is to come as often as that.
const (
	auditShare   = 3000
	longestAudit = time.Hour
)

func (l *Loop) planAudit(now time.Time) {
	every := max(l.auditEvery, min(auditShare*l.auditTook, longestAudit))
	l.audit = now.Add(every/2 + rand.N(every))
}

// audited notes what an audit took, with the comparison that follows on it.
func (p *pass) audited() {
	p.auditTook = time.Since(p.now)
	if p.suspected == nil {
		p.planAudit(p.now)
	}
}

// auditNow compares the mirror with the kernel. What is announced while the
// kernel is read may be in the dump or not and is no finding, nor is what is
// announced before a second audit that confirms the first.
func (p *pass) auditNow(ctx context.Context) {
	suspected := p.suspected
	p.suspected, p.audits = nil, true
	p.planAudit(p.now)
	have, err := p.dump(ctx)
	if err != nil { // The mirror is as sound as before, and is looked at again soon.
		p.suspected, p.audit, p.noDump, p.audits = suspected, p.dumpAgain, "", false
		return
	}
	changes, lost := p.kernel.Changes()
	if lost {
		p.doubt()
		return
	}
	p.correct(changes)
	if _, lost := have.Correct(changes); lost || p.unread != none {
		p.doubt()
		return
	}
	differ := p.differences(have, changes)
	switch {
	case len(differ) == 0: // The mirror is right, and was compared with what is wanted as it changed.
		p.count(func(s *Stats) { s.Dumps.Audit++ })
		return
	case suspected == nil:
		p.suspected = differ
		p.audit = p.now.Add(min(p.auditEvery/4, longestConfirm))
		return
	}
	found, first := 0, ""
	for id := range differ {
		if _, ok := suspected[id]; !ok {
			continue
		}
		if found++; found == 1 {
			first = id.String()
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

// differences has the identities of the entries in which the mirror differs from
// a dump and of which none of the changes tells.
func (p *pass) differences(have *backend.State, changes []backend.Change) map[backend.Entry]struct{} {
	out := map[backend.Entry]struct{}{}
	for e := range have.All() {
		if !p.have.Has(e) {
			out[backend.Identity(e)] = struct{}{}
		}
	}
	for e := range p.have.All() {
		if _, ok := have.At(e); !ok {
			out[backend.Identity(e)] = struct{}{}
		}
	}
	for _, c := range changes {
		delete(out, backend.Identity(c.Entry))
	}
	return out
}
