package backend

import (
	"net/netip"
	"slices"
	"testing"
)

func TestSupplyIsWhatIsThere(t *testing.T) {
	base, mac := netip.MustParseAddr("10.5.2.0"), MAC{2, 0, 0, 0, 0, 2}
	via := Nexthop{Dev: "ripstop.1", Gateway: base}
	all := []Entry{
		Route{Dst: netip.PrefixFrom(base, 24), Via: via}, via, Neighbour{Dev: "ripstop.1", IP: base, MAC: mac},
		FDB{Dev: "ripstop.1", MAC: mac, Remote: netip.MustParseAddr("192.0.2.2")},
	}
	other := FDB{Dev: "ripstop.1", MAC: MAC{2, 0, 0, 0, 0, 3}, Remote: netip.MustParseAddr("192.0.2.3")}
	for name, tc := range map[string]struct {
		without, want []Entry
	}{
		"all":            {nil, all},
		"no FDB entry":   {all[3:], all[:3]},
		"no neighbour":   {all[2:3], all[:2]},
		"no nexthop":     {all[1:2], []Entry{all[0], all[2], all[3]}},
		"no route to it": {all[:1], nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewState(append(all, other, Route{Dst: netip.PrefixFrom(base, 25), Via: via})...)
			for _, e := range tc.without {
				s.Drop(e)
			}
			if got := s.Supply(netip.PrefixFrom(base, 24)); !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}
