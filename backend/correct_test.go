package backend

import (
	"net/netip"
	"testing"
)

func correctPeer(n byte) []Entry {
	base, mac := testAddr(0, 5, int(n)), MAC{2, 0, 0, 0, 0, n}
	via := Nexthop{Dev: "ripstop.1", Gateway: base}
	return []Entry{
		FDB{Dev: "ripstop.1", MAC: mac, Remote: testAddr(0, 99, int(n))}, Neighbour{Dev: "ripstop.1", IP: base, MAC: mac},
		via, Route{Dst: netip.PrefixFrom(base, 24), Via: via},
	}
}

func TestCorrectTellsNewsOnly(t *testing.T) {
	s := NewState(append(correctPeer(1), correctPeer(2)...)...)
	p, moved := correctPeer(1), correctPeer(1)[0].(FDB)
	moved.Remote = testAddr(0, 99, 77)
	for name, tc := range map[string]struct {
		change []Change
		news   int
	}{
		"echo of an add":           {[]Change{{Entry: p[0]}, {Entry: p[3]}}, 0},
		"echo of a delete":         {[]Change{{Entry: correctPeer(3)[2], Gone: true}}, 0},
		"gone and back":            {[]Change{{Entry: p[3], Gone: true}, {Entry: p[3]}}, 2},
		"moved":                    {[]Change{{Entry: moved}}, 1},
		"gone, by identity":        {[]Change{{Entry: p[0], Gone: true}}, 1},
		"a nexthop with its route": {[]Change{{Entry: p[2], Gone: true, By: 7}}, 2},
		"the route went first":     {[]Change{{Entry: p[3], Gone: true}, {Entry: p[2], Gone: true}}, 2},
	} {
		mirror := s.Clone()
		news, doubt := mirror.Correct(tc.change)
		if doubt || len(news) != tc.news {
			t.Errorf("%s: news %v, doubt %t", name, news, doubt)
		}
		for _, c := range news[max(0, len(news)-1):] {
			if mirror.Has(c.Entry) == c.Gone {
				t.Errorf("%s: the mirror does not follow %v", name, c)
			}
		}
	}
}

func TestCorrectDoubtsWhereReadingIsCheaper(t *testing.T) {
	s := &State{}
	var gone []Change
	for n := range byte(mostFlushed + 1) {
		for _, e := range correctPeer(n) {
			s.Put(e)
		}
		gone = append(gone, Change{Entry: correctPeer(n)[2], Gone: true})
	}
	if _, doubt := s.Clone().Correct(gone[1:]); doubt {
		t.Error("doubt too early")
	}
	if _, doubt := s.Correct(gone); !doubt {
		t.Error("no doubt")
	}
}

func TestIdentityIsOneValueForWhatTheKernelHoldsOnce(t *testing.T) {
	device := Device{Name: "ripstop.1", MTU: 1450}
	route := correctPeer(1)[3].(Route)
	for _, e := range append(correctPeer(1), device, Address{"ripstop.1", netip.MustParsePrefix("10.5.0.0/32")}, FDB{Dev: "ripstop.1", Remote: testAddr(0, 99, 1)}) {
		if at, ok := NewState(e).At(Identity(e)); !ok || at != e || Identity(Identity(e)) != Identity(e) {
			t.Errorf("%s is not found by its identity %s", e, Identity(e))
		}
	}
	other := route
	other.Via = correctPeer(2)[2].(Nexthop)
	if Identity(route) != Identity(other) || Identity(correctPeer(1)[0]) == Identity(correctPeer(2)[0]) {
		t.Error("identities differ where they are one, or do not where they are two")
	}
	if a, b := (FDB{Dev: "ripstop.1", Remote: testAddr(0, 99, 1)}), (FDB{Dev: "ripstop.1", Remote: testAddr(0, 99, 2)}); Identity(a) == Identity(b) {
		t.Error("several destinations of the zero MAC are one identity")
	}
}

// TestPlainRouteOutlivesANexthopOfItsGateway: it does not lead through the object.
func TestPlainRouteOutlivesANexthopOfItsGateway(t *testing.T) {
	p := correctPeer(1)
	via := p[2].(Nexthop)
	s, left := NewState(p...), NewState(p[:2]...)
	for n := range 20 {
		plain := Route{Dst: testSubnet(0, 9+n), Plain: true, Via: via}
		s.Put(plain)
		left.Put(plain)
	}
	mirror := s.Clone()
	if news, doubt := mirror.Correct([]Change{{Entry: via, Gone: true}}); doubt || len(news) != 2 || !mirror.Equal(left) {
		t.Errorf("news %v, doubt %t, left is\n%s", news, doubt, mirror)
	}
	if s.Apply(Op{Delete, via}); !s.Equal(left) {
		t.Errorf("left is\n%s", s)
	}
}
