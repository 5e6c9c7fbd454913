package subnet

import "maps"

// passed knows the records that are passed over.
type passed struct {
	// bad are the records that could not be read and refused the leases that are
	// no peers, by key, with the reasons.
	bad, refused map[string]string
	// news are the keys of which either has changed since NewProblems was asked,
	// and newBad says that the keys of bad have since NewUnread was.
	news   map[string]struct{}
	newBad bool
}

func newPassed() passed {
	return passed{bad: map[string]string{}, refused: map[string]string{}, news: map[string]struct{}{}}
}

// setBad notes why a record cannot be read, "" that it is not so.
func (p *passed) setBad(key, why string) {
	_, was := p.bad[key]
	p.set(p.bad, key, why)
	p.newBad = p.newBad || was != (why != "")
}

// isBad tells whether the record of a lease cannot be read. It makes a key only
// where there is one that cannot.
func (p *passed) isBad(s Subnets) bool {
	if len(p.bad) == 0 {
		return false
	}
	_, bad := p.bad[s.Key()]
	return bad
}

// setRefused notes why a lease is no peer, "" that it is not so.
func (p *passed) setRefused(key, why string) { p.set(p.refused, key, why) }

func (p *passed) set(in map[string]string, key, why string) {
	if in[key] == why {
		return
	}
	if p.news[key] = struct{}{}; why == "" {
		delete(in, key)
	} else {
		in[key] = why
	}
}

// readAllBut notes that no other records than these cannot be read.
func (p *passed) readAllBut(bad []BadRecord) {
	if len(p.bad) == 0 {
		return
	}
	still := make(map[string]struct{}, len(bad))
	for _, b := range bad {
		still[b.Key] = struct{}{}
	}
	for key := range p.bad {
		if _, ok := still[key]; !ok {
			p.setBad(key, "")
		}
	}
}

// Problems says which records are passed over, by key, and why. It costs as
// much as there are problems.
func (p *passed) Problems() map[string]string {
	out := maps.Clone(p.refused)
	maps.Copy(out, p.bad)
	return out
}

// Problem says why the record of a key is passed over, "" if it is not.
func (p *passed) Problem(key string) string {
	if why := p.bad[key]; why != "" {
		return why
	}
	return p.refused[key]
}

// NewProblems lists the keys of which Problem may say something else than when it
// was asked last, in no order.
func (p *passed) NewProblems() []string {
	if len(p.news) == 0 {
		return nil
	}
	keys := make([]string, 0, len(p.news))
	for key := range p.news {
		keys = append(keys, key)
	}
	p.news = map[string]struct{}{} // A map does not shrink.
	return keys
}

// NewUnread tells whether Unread may list others than when it was asked last.
func (p *passed) NewUnread() bool {
	is := p.newBad
	p.newBad = false
	return is
}

// Passed is the number of records that Problems tells of.
func (p *passed) Passed() int { return len(p.bad) + len(p.refused) }

// SomeProblems is a part of Problems, of at most so many records.
func (p *passed) SomeProblems(most int) map[string]string {
	out := map[string]string{}
	for _, of := range []map[string]string{p.bad, p.refused} {
		for key, why := range of {
			if len(out) == most {
				return out
			}
			out[key] = why
		}
	}
	return out
}
