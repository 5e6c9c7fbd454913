package subnet

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func request(node string) Request {
	return Request{
		Self:    Identity{Node: node, PublicIP: PerFamily[netip.Addr]{netip.MustParseAddr("10.99.0.1")}},
		Backend: "vxlan",
		Endpoints: PerFamily[Endpoint]{
			{netip.MustParseAddr("10.99.0.1"), 1, mustMAC("02:00:00:00:00:01"), false},
		},
	}
}

func held(subnet, node, public string, id, created int64) Lease {
	return Lease{
		Subnets: Subnets{netip.MustParsePrefix(subnet)}, Node: node, Backend: "vxlan",
		Endpoints: PerFamily[Endpoint]{{netip.MustParseAddr(public), 1, mustMAC("02:00:00:00:00:02"), false}},
		ID:        id, Created: created, Modified: created,
	}
}

func TestChoose(t *testing.T) {
	four := `{"Network":"10.5.0.0/22","SubnetMin":"10.5.0.0"}`
	previous := func(r Request, s string) Request { r.Previous[V4] = netip.MustParsePrefix(s); return r }
	only := func(r Request) Request { r.OnlyPrevious = true; return r }
	for name, tc := range map[string]struct {
		config string
		req    Request
		seen   Listing
		want   string // the subnet chosen
		write  bool
		id     int64
		modRev int64
	}{
		"own record by name, address changed": {
			four, request("a"),
			Listing{Leases: []Lease{held("10.5.2.0/24", "a", "10.99.0.7", 5, 3), held("10.5.3.0/24", "", "10.99.0.1", 6, 2)}},
			"10.5.2.0/24", true, 5, 3,
		},
		"own record of flannel's by address": {
			four, request("a"), Listing{Leases: []Lease{held("10.5.2.0/24", "", "10.99.0.1", 5, 3)}},
			"10.5.2.0/24", true, 5, 3,
		},
		"another's record with our address is not ours": {
			`{"Network":"10.5.0.0/16","SubnetMin":"10.5.2.0","SubnetMax":"10.5.3.0"}`, request("a"),
			Listing{Leases: []Lease{held("10.5.2.0/24", "b", "10.99.0.1", 5, 3)}}, "10.5.3.0/24", true, 0, 0,
		},
		"a living lease before a reservation": {
			four, request("a"), Listing{Leases: []Lease{held("10.5.2.0/24", "a", "10.99.0.1", 0, 1), held("10.5.3.0/24", "a", "10.99.0.1", 4, 9)}},
			"10.5.3.0/24", true, 4, 9,
		},
		"a reservation by name before one by address": {
			four, request("a"), Listing{Leases: []Lease{held("10.5.2.0/24", "", "10.99.0.1", 0, 1), held("10.5.3.0/24", "a", "10.99.0.9", 0, 9)}},
			"10.5.3.0/24", true, 0, 9,
		},
		"a reservation outside Min and Max": {
			`{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0"}`, request("a"), Listing{Leases: []Lease{held("10.5.2.0/24", "a", "10.99.0.1", 0, 1)}},
			"10.5.2.0/24", true, 0, 1,
		},
		"the previous subnet if it is free": {four, previous(request("a"), "10.5.1.0/24"), Listing{}, "10.5.1.0/24", true, 0, 0},
		"not the previous subnet of another network": {
			`{"Network":"10.5.0.0/16","SubnetMin":"10.5.3.0","SubnetMax":"10.5.3.0"}`,
			previous(request("a"), "10.6.1.0/24"), Listing{}, "10.5.3.0/24", true, 0, 0,
		},
		"the only one left, a bad record counted as held": {
			four, request("a"),
			Listing{Leases: []Lease{held("10.5.0.0/24", "b", "10.99.0.2", 1, 1), held("10.5.1.0/24", "c", "10.99.0.3", 2, 2)}, Bad: []BadRecord{{Key: "10.5.2.0-24"}, {Key: "junk"}}},
			"10.5.3.0/24", true, 0, 0,
		},
		"a wider record holds all it covers": {
			four, request("a"), Listing{Leases: []Lease{held("10.5.0.0/23", "b", "10.99.0.2", 1, 1), held("10.5.3.128/25", "c", "10.99.0.3", 2, 2)}},
			"10.5.2.0/24", true, 0, 0,
		},
		"the previous one, not a reservation, while it is served": {
			four, only(previous(request("a"), "10.5.1.0/24")), Listing{Leases: []Lease{held("10.5.2.0/24", "", "10.99.0.1", 0, 1)}},
			"10.5.1.0/24", true, 0, 0,
		},
		"the previous one of two own records, though it is younger": {
			four, previous(request("a"), "10.5.1.0/24"),
			Listing{Leases: []Lease{held("10.5.2.0/24", "a", "10.99.0.1", 4, 1), held("10.5.1.0/24", "a", "10.99.0.1", 5, 9)}}, "10.5.1.0/24", true, 5, 9,
		},
		"the previous one where there is another own record only": {
			four, previous(request("a"), "10.5.1.0/24"), Listing{Leases: []Lease{held("10.5.2.0/24", "a", "10.99.0.1", 4, 1)}}, "10.5.1.0/24", true, 0, 0,
		},
		"the previous one of two own records while it is served": {
			four, only(previous(request("a"), "10.5.1.0/24")),
			Listing{Leases: []Lease{held("10.5.2.0/24", "a", "10.99.0.1", 4, 1), held("10.5.1.0/24", "a", "10.99.0.1", 5, 9)}}, "10.5.1.0/24", true, 5, 9,
		},
		"only the previous": {four, only(previous(request("a"), "10.5.1.0/24")), Listing{}, "10.5.1.0/24", true, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, write, err := choose(mustConfig(t, tc.config), tc.req, tc.seen)
			if err != nil {
				t.Fatal(err)
			}
			if got.Subnets.String() != tc.want || write != tc.write || got.ID != tc.id || got.Modified != tc.modRev {
				t.Errorf("chose %s write=%t id=%d at=%d", got.Subnets, write, got.ID, got.Modified)
			}
			if got.Node != tc.req.Self.Node || got.Endpoints != tc.req.Endpoints {
				t.Errorf("claims %+v", got)
			}
		})
	}
}

func TestChooseWritesNothingWhenTheRecordIsRight(t *testing.T) {
	req := request("a")
	own := req.lease(Subnets{netip.MustParsePrefix("10.5.2.0/24")})
	own.ID, own.Created, own.Modified = 7, 3, 4
	got, write, err := choose(mustConfig(t, modes["ipv4"]), req, Listing{Leases: []Lease{own}})
	if err != nil || write || got != own {
		t.Errorf("got %+v write=%t %v", got, write, err)
	}
}

func TestChooseRefuses(t *testing.T) {
	four := `{"Network":"10.5.0.0/22","SubnetMin":"10.5.0.0"}`
	all := Listing{Leases: []Lease{
		held("10.5.3.0/24", "node-e", "10.99.0.5", 4, 4), held("10.5.0.0/24", "node-b", "10.99.0.2", 1, 1),
		held("10.5.2.0/24", "", "10.99.0.4", 3, 3), held("10.5.1.0/24", "node-c", "10.99.0.3", 2, 2),
	}}
	t.Run("exhausted", func(t *testing.T) {
		_, _, err := choose(mustConfig(t, four), request("a"), all)
		var exhausted *ExhaustedError
		const want = "no free IPv4 subnet: all 4 of length /24 from 10.5.0.0 to 10.5.3.0 in 10.5.0.0/22 are held: " +
			"10.5.0.0/24 by node-b (10.99.0.2), 10.5.1.0/24 by node-c (10.99.0.3), 10.5.2.0/24 by 10.99.0.4, 10.5.3.0/24 by node-e (10.99.0.5)"
		if !errors.As(err, &exhausted) || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	})
	t.Run("stranded", func(t *testing.T) {
		for _, cfg := range []string{`{"Network":"10.6.0.0/16"}`, `{"Network":"10.5.0.0/16","SubnetLen":25}`, modes["dual"], modes["ipv6"]} {
			_, _, err := choose(mustConfig(t, cfg), request("node-b"), all)
			var stranded *StrandedError
			if !errors.As(err, &stranded) || !strings.Contains(err.Error(), "10.5.0.0-24") {
				t.Errorf("%s: got %v", cfg, err)
			}
		}
	})
	t.Run("taken", func(t *testing.T) {
		// A node is never renumbered while its old subnet may be in use.
		for _, only := range []bool{true, false} {
			req := request("a")
			req.Previous[V4], req.OnlyPrevious = netip.MustParsePrefix("10.5.1.0/24"), only
			for by, seen := range map[string]Listing{"node-c (10.99.0.3)": {Leases: all.Leases[3:]}, "a record that cannot be read": {Bad: []BadRecord{{Key: "10.5.1.0-24"}}}} {
				_, _, err := choose(mustConfig(t, four), req, seen)
				var taken *TakenError
				if !errors.As(err, &taken) || taken.By != by {
					t.Errorf("only=%t: got %v", only, err)
				}
			}
		}
	})
}

func TestStrandedNamesLeases(t *testing.T) {
	got := mustConfig(t, `{"Network":"10.5.0.0/16"}`).Stranded([]Lease{
		held("10.6.1.0/24", "node-b", "10.99.0.2", 1, 1), held("10.5.1.0/24", "node-c", "10.99.0.3", 1, 1), held("10.5.2.0/25", "", "10.99.0.4", 1, 1),
	})
	dual := mustConfig(t, modes["dual"]).Stranded([]Lease{held("10.5.1.0/24", "node-c", "10.99.0.3", 1, 1)})
	if len(dual) != 1 || !strings.Contains(dual[0].Reason, "no IPv6 subnet") {
		t.Errorf("a second family: %v", dual)
	}
	if len(got) != 2 || got[0].Key != "10.5.2.0-25" || got[1].Key != "10.6.1.0-24" || !strings.Contains(got[1].Reason, "node-b") {
		t.Errorf("got %v", got)
	}
}

func TestStanding(t *testing.T) {
	cfg, req := mustConfig(t, modes["ipv4"]), request("a")
	of := Subnets{netip.MustParsePrefix("10.5.2.0/24")}
	own := req.lease(of)
	own.ID, own.Created, own.Modified = 7, 3, 4
	other := req.lease(Subnets{netip.MustParsePrefix("10.5.3.0/24")})
	other.ID = 8
	moved, flannels := own, own
	moved.Endpoints[V4].PublicIP = netip.MustParseAddr("10.99.0.9")
	flannels.Node = ""
	for name, tc := range map[string]struct {
		seen Listing
		want Lease
	}{
		"as it is":            {Listing{Leases: []Lease{other, own}}, own},
		"none":                {Listing{}, Lease{}},
		"of another subnet":   {Listing{Leases: []Lease{other}}, Lease{}},
		"at another address":  {Listing{Leases: []Lease{moved}}, Lease{}},
		"not by name":         {Listing{Leases: []Lease{flannels}}, Lease{}},
		"another's":           {Listing{Leases: []Lease{held("10.5.2.0/24", "b", "10.99.0.2", 1, 1)}}, Lease{}},
		"that cannot be read": {Listing{Bad: []BadRecord{{Key: of.Key()}}}, Lease{}},
	} {
		if got, ok := req.Standing(cfg, tc.seen, of); ok != (tc.want != Lease{}) || ok && got != tc.want {
			t.Errorf("%s: %+v, %t", name, got, ok)
		}
	}
	if _, ok := req.Standing(mustConfig(t, `{"Network":"10.6.0.0/16"}`), Listing{Leases: []Lease{own}}, of); ok {
		t.Error("a lease stands that the config has no room for")
	}
}

func TestElsewhere(t *testing.T) {
	req := request("a")
	here, there := held("10.5.2.0/24", "a", "10.99.0.1", 1, 1), held("10.5.3.0/24", "a", "10.99.0.9", 2, 2)
	six := there
	six.Endpoints = PerFamily[Endpoint]{V6: {PublicIP: netip.MustParseAddr("fd99::9")}}
	for name, tc := range map[string]struct {
		leases []Lease
		want   bool
	}{
		"none":                  {nil, false},
		"here":                  {[]Lease{here}, false},
		"there":                 {[]Lease{there}, true},
		"here and there":        {[]Lease{there, here}, false},
		"another node's":        {[]Lease{held("10.5.3.0/24", "b", "10.99.0.9", 2, 2)}, false},
		"nobody's":              {[]Lease{held("10.5.3.0/24", "", "10.99.0.9", 2, 2)}, false},
		"in another family":     {[]Lease{six}, false},
		"there, beside another": {[]Lease{held("10.5.2.0/24", "b", "10.99.0.1", 1, 1), there}, true},
	} {
		if got, ok := req.Elsewhere(Listing{Leases: tc.leases}); ok != tc.want || ok && got != there {
			t.Errorf("%s: %+v, %t", name, got, ok)
		}
	}
}
