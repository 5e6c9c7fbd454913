package subnet

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
)

// TestLeasesArePackedWithoutLoss: of both families, one, and none.
func TestLeasesArePackedWithoutLoss(t *testing.T) {
	four, six := netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:5::/64")
	at4 := Endpoint{netip.MustParseAddr("192.0.2.1"), 1<<32 - 1, MAC{2, 0, 0, 0, 0, 1}, false}
	at6 := Endpoint{netip.MustParseAddr("2001:db8::1"), 2, MAC{2, 0, 0, 0, 0, 2}, false}
	for _, l := range []Lease{
		{}, {Subnets: Subnets{four}}, {Subnets: Subnets{V6: six}}, {Subnets: Subnets{four, six}},
		{Subnets: Subnets{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}},
		{Subnets: Subnets{netip.MustParsePrefix("10.5.1.9/32"), netip.MustParsePrefix("::1/128")}},
		{
			Subnets: Subnets{four, six}, Node: "n1", Backend: "vxlan", MTU: MaxMTU, EchoPort: 65535, Endpoints: PerFamily[Endpoint]{at4, at6},
			ID: -1, Created: 1 << 40, Modified: 1 << 41,
		},
		{Subnets: Subnets{four}, Backend: "host-gw", Endpoints: PerFamily[Endpoint]{{PublicIP: at4.PublicIP}, {MAC: at6.MAC}}},
	} {
		var p packedLease
		p.set(l)
		if got := p.lease(); got != l {
			t.Errorf("got  %+v\nwant %+v", got, l)
		}
	}
}

// TestLeaseTableIsAMap of leases by their subnets.
func TestLeaseTableIsAMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	table := newLeaseTable()
	model := map[Subnets]Lease{}
	for range 20_000 {
		l := peerLease(2)
		l.Subnets[V4], l.Created = addrPrefix(r.IntN(1000)), r.Int64()
		id, ok := table.id(l.Subnets)
		if had := model[l.Subnets]; ok != (had.Subnets != Subnets{}) || ok && table.at(id).lease() != had {
			t.Fatalf("there %v, want %+v", ok, had)
		}
		if ok {
			table.drop(id)
			delete(model, l.Subnets)
		}
		if r.IntN(2) == 0 {
			table.put(l)
			model[l.Subnets] = l
		}
		if table.len() != len(model) {
			t.Fatalf("%d leases, want %d", table.len(), len(model))
		}
	}
	seen := 0
	for id, l := range table.all() {
		if seen++; l.lease() != model[l.key.subnets()] || table.at(id) != l {
			t.Fatalf("%+v, want %+v", l.lease(), model[l.key.subnets()])
		}
	}
	if seen != len(model) {
		t.Errorf("visited %d leases, want %d", seen, len(model))
	}
}

// TestLeasesAreOrderedBySubnets: those without an IPv4 subnet first.
func TestLeasesAreOrderedBySubnets(t *testing.T) {
	p := netip.MustParsePrefix
	want := []Subnets{
		{V6: p("fd00::/64")}, {V6: p("fd00:0:0:1::/64")}, {p("9.0.0.0/8")}, {p("10.5.1.0/24")}, {p("10.5.1.0/25")},
		{p("10.5.1.0/25"), p("fd00::/64")}, {p("10.5.1.0/25"), p("fd00::/65")}, {p("10.6.0.0/16")},
	}
	var keys []leaseKey
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(len(want)) {
		keys = append(keys, want[i].pack())
	}
	slices.SortFunc(keys, leaseKey.compare)
	for i, k := range keys {
		if k.subnets() != want[i] {
			t.Errorf("%d is %s, want %s", i, k.subnets(), want[i])
		}
	}
}

// TestIndexIsAMap of numbers by a key that clashes often, and moves about.
func TestIndexIsAMap(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, hashes := range []uint64{1, 7, 1 << 20} {
		keys, model := map[uint32]int{}, map[int]uint32{} // Both ways.
		hash := func(key int) uint64 { return uint64(key) * 0x9e3779b97f4a7c15 >> 13 % hashes }
		x := index{hash: func(n uint32) uint64 { return hash(keys[n]) }}
		for n := range uint32(3000) {
			key := r.IntN(200)
			is := func(n uint32) bool { return keys[n] == key }
			got, ok := x.find(hash(key), is)
			if want, there := model[key]; ok != there || ok && got != want {
				t.Fatalf("%d hashes: key %d gives %d %v, want %d %v", hashes, key, got, ok, want, there)
			}
			switch {
			case !ok:
				keys[n], model[key] = key, n
				x.add(hash(key), n)
			case r.IntN(3) == 0:
				keys[n] = key
				x.replace(hash(key), is, n)
				model[key] = n
			default:
				x.remove(hash(key), is)
				delete(model, key)
			}
			if x.used != len(model) {
				t.Fatalf("%d hashes: %d used, want %d", hashes, x.used, len(model))
			}
		}
		for key, want := range model {
			if got, ok := x.find(hash(key), func(n uint32) bool { return keys[n] == key }); !ok || got != want {
				t.Errorf("%d hashes: key %d gives %d %v, want %d", hashes, key, got, ok, want)
			}
		}
	}
}
