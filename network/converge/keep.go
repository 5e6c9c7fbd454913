package converge

import (
	"net/netip"
	"slices"

	"github.com/ripstop-net/ripstop/backend"
)

// Keep names the subnets of which it is not known what they owe: the entries that
// supply them and that nobody owes are not deleted. It replaces what was named
// before. What is kept is not mended: nobody knows whether it should be there.
func (l *Loop) Keep(subnets ...netip.Prefix) {
	keep := make(map[netip.Prefix]struct{}, len(subnets))
	for _, p := range subnets {
		keep[p] = struct{}{}
	}
	l.mu.Lock()
	for p := range l.keep {
		if _, still := keep[p]; !still {
			l.letGo = append(l.letGo, p)
		}
	}
	l.keep = keep
	l.mu.Unlock()
	l.wake()
}

// letsGo tells whether anything may have been kept that is to go now. It is
// called with the lock.
func (p *pass) letsGo() bool {
	supplied := slices.ContainsFunc(p.letGo, func(dst netip.Prefix) bool { return len(p.have.Supply(dst)) > 0 })
	p.letGo = nil
	return supplied
}

// keeping leaves out the deletes of what is kept. It is called with the lock.
func (p *pass) keeping(ops []backend.Op) []backend.Op {
	if len(p.keep) == 0 || len(ops) == 0 {
		return ops
	}
	kept := map[backend.Entry]struct{}{}
	for dst := range p.keep {
		for _, e := range p.have.Supply(dst) {
			kept[backend.Identity(e)] = struct{}{}
		}
	}
	return slices.DeleteFunc(ops, func(op backend.Op) bool {
		_, ok := kept[backend.Identity(op.Entry)]
		return ok && op.Verb == backend.Delete
	})
}
