package firewall

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestAddressesCount compares them with a map; an IPv4 address is another than
// the same mapped into IPv6.
func TestAddressesCount(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	s, model := newAddresses(), map[netip.Addr]uint32{}
	draw := func() netip.Addr {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(20))})
		if r.IntN(2) == 0 {
			return netip.AddrFrom16(a.As16())
		}
		return a
	}
	for range 2000 {
		a, n := draw(), uint32(r.IntN(3))
		s.set(a, n)
		if model[a] = n; n == 0 {
			delete(model, a)
		}
		if a = draw(); s.count(a) != model[a] || s.has(a) != (model[a] > 0) || s.len() != len(model) {
			t.Fatalf("%s: %d of %d, want %d of %d", a, s.count(a), s.len(), model[a], len(model))
		}
	}
	seen, again := map[netip.Addr]uint32{}, newAddresses()
	for a := range s.all() {
		seen[a] = s.count(a)
		again.set(a, s.count(a))
	}
	if !maps.Equal(seen, model) || !again.equal(s) {
		t.Errorf("visited %v, want %v", seen, model)
	}
	if again.set(draw(), 9); again.equal(s) {
		t.Error("equal to another")
	}
}
