package backend

// mostFlushed bounds the walks through all routes in one correction.
const mostFlushed = 32

// Correct brings a mirror of the kernel up to date with what the kernel
// announced, and returns what of it was news to the mirror: the echo of an op
// that was noted in the mirror is not. The IPv4 routes that went silently with a
// nexthop (nexthop_flush, fib_flush) are among the news. Where so many nexthops
// went that reading the kernel is cheaper, it says doubt.
func (s *State) Correct(changes []Change) (news []Change, doubt bool) {
	flushed := 0
	for _, c := range changes {
		if c.Freed {
			continue
		}
		if !c.Gone {
			if !s.Has(c.Entry) {
				s.Put(c.Entry)
				news = append(news, c)
			}
			continue
		}
		at, ok := s.At(c.Entry)
		if !ok {
			continue
		}
		news = append(news, c)
		if via, ok := at.(Nexthop); ok && s.usersOf(via) > 0 {
			if flushed++; flushed > mostFlushed {
				return news, true
			}
			for _, r := range s.dropRoutes(s.usersOf(via), func(r Route) bool { return r.through(via) }) {
				news = append(news, Change{Entry: r, Gone: true, By: c.By})
			}
		}
		s.Drop(at)
	}
	return news, false
}
