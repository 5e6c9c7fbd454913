package firewall

import (
	"iter"
	"maps"
	"net/netip"
)

// addresses counts addresses. There are tens of thousands, so each takes a few
// bytes, without a pointer for the garbage collector.
type addresses struct {
	four map[[4]byte]uint32
	six  map[[16]byte]uint32
}

func newAddresses() *addresses {
	return &addresses{four: map[[4]byte]uint32{}, six: map[[16]byte]uint32{}}
}

// count is how often an address is there.
func (s *addresses) count(a netip.Addr) uint32 {
	if a.Is4() {
		return s.four[a.As4()]
	}
	return s.six[a.As16()]
}

func (s *addresses) has(a netip.Addr) bool { return s.count(a) > 0 }

// set says how often an address is there.
func (s *addresses) set(a netip.Addr, n uint32) {
	switch {
	case a.Is4() && n > 0:
		s.four[a.As4()] = n
	case a.Is4():
		delete(s.four, a.As4())
	case n > 0:
		s.six[a.As16()] = n
	default:
		delete(s.six, a.As16())
	}
}

// len is the number of different addresses.
func (s *addresses) len() int { return len(s.four) + len(s.six) }

// all visits each address once.
func (s *addresses) all() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a := range s.four {
			if !yield(netip.AddrFrom4(a)) {
				return
			}
		}
		for a := range s.six {
			if !yield(netip.AddrFrom16(a)) {
				return
			}
		}
	}
}

func (s *addresses) equal(o *addresses) bool {
	return maps.Equal(s.four, o.four) && maps.Equal(s.six, o.six)
}
