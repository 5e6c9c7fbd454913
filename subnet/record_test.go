package subnet

import (
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func mustMAC(s string) MAC {
	m, err := ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return m
}

// samples are flannel's own records, byte for byte, and what they mean.
var samples = []struct {
	name, key, value string
	lease            Lease
}{
	{
		name: "ipv4", key: "10.5.87.0-24",
		value: `{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"d6:95:53:df:61:d5"}}`,
		lease: Lease{
			Subnets: Subnets{netip.MustParsePrefix("10.5.87.0/24")}, Backend: "vxlan",
			Endpoints: PerFamily[Endpoint]{{netip.MustParseAddr("10.99.0.1"), 1, mustMAC("d6:95:53:df:61:d5"), false}},
		},
	},
	{
		name: "dual", key: "10.5.5.0-24&fd00:10:5:1f::-64",
		value: `{"PublicIP":"10.99.0.1","PublicIPv6":"fd99::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"d6:95:53:df:61:d5"},"BackendV6Data":{"VNI":1,"VtepMAC":"d6:95:53:df:61:d6"}}`,
		lease: Lease{
			Subnets: Subnets{netip.MustParsePrefix("10.5.5.0/24"), netip.MustParsePrefix("fd00:10:5:1f::/64")}, Backend: "vxlan",
			Endpoints: PerFamily[Endpoint]{
				{netip.MustParseAddr("10.99.0.1"), 1, mustMAC("d6:95:53:df:61:d5"), false},
				{netip.MustParseAddr("fd99::1"), 1, mustMAC("d6:95:53:df:61:d6"), false},
			},
		},
	},
	{
		name: "ipv6", key: "0.0.0.0-0&fd00:10:5:1f::-64",
		value: `{"PublicIP":"0.0.0.0","PublicIPv6":"fd99::1","BackendType":"vxlan","BackendV6Data":{"VNI":1,"VtepMAC":"d6:95:53:df:61:d6"}}`,
		lease: Lease{
			Subnets: Subnets{V6: netip.MustParsePrefix("fd00:10:5:1f::/64")}, Backend: "vxlan",
			Endpoints: PerFamily[Endpoint]{V6: {netip.MustParseAddr("fd99::1"), 1, mustMAC("d6:95:53:df:61:d6"), false}},
		},
	},
	{
		name: "host-gw", key: "10.5.87.0-24", value: `{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"host-gw"}`,
		lease: Lease{
			Subnets: Subnets{netip.MustParsePrefix("10.5.87.0/24")}, Backend: "host-gw",
			Endpoints: PerFamily[Endpoint]{{PublicIP: netip.MustParseAddr("10.99.0.1")}},
		},
	},
}

func TestRecordsAreFlannelsToTheByte(t *testing.T) {
	for _, s := range samples {
		t.Run(s.name, func(t *testing.T) {
			got, err := ParseRecord(s.key, []byte(s.value))
			if err != nil || got != s.lease {
				t.Fatalf("read %+v, %v\nwant %+v", got, err, s.lease)
			}
			if string(got.Record()) != s.value || got.Subnets.Key() != s.key {
				t.Errorf("written\n%s %s\nwant\n%s %s", got.Subnets.Key(), got.Record(), s.key, s.value)
			}
		})
	}
}

// TestRecordAddsOurKeysAfterFlannels is the golden of what we write.
func TestRecordAddsOurKeysAfterFlannels(t *testing.T) {
	for translated, ours := range map[PerFamily[bool]]string{
		{}:            `,"Node":"node-a","MTU":1450,"EchoPort":8473}`,
		{true, false}: `,"Node":"node-a","MTU":1450,"Translated":true,"EchoPort":8473}`,
		{false, true}: `,"Node":"node-a","MTU":1450,"TranslatedV6":true,"EchoPort":8473}`,
		{true, true}:  `,"Node":"node-a","MTU":1450,"Translated":true,"TranslatedV6":true,"EchoPort":8473}`,
	} {
		l := samples[1].lease
		want := strings.TrimSuffix(samples[1].value, "}") + ours
		l.Node, l.MTU, l.EchoPort = "node-a", 1450, 8473
		for f := range translated {
			l.Endpoints[f].Translated = translated[f]
		}
		if got := string(l.Record()); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if _, ok := scanRecord([]byte(want)); !ok {
			t.Errorf("%s is left to encoding/json", want)
		}
		back, err := ParseRecord(l.Subnets.Key(), []byte(want))
		if err != nil || back != l {
			t.Errorf("read back %+v, %v", back, err)
		}
		var packed packedLease
		if packed.set(l); packed.lease() != l {
			t.Errorf("packed it is %+v", packed.lease())
		}
	}
}

func TestParseRecordTakesWhatFlannelTakes(t *testing.T) {
	for name, tc := range map[string]struct {
		value string
		want  Lease
	}{
		"keys in another case, unknown ones, no VNI": {
			`{"publicip":"10.99.0.1","Colour":"red","backendtype":"vxlan","BackendData":{"VtepMAC":"D6:95:53:DF:61:D5","x":1}}`,
			Lease{Backend: "vxlan", Endpoints: PerFamily[Endpoint]{{netip.MustParseAddr("10.99.0.1"), 0, mustMAC("d6:95:53:df:61:d5"), false}}},
		},
		"a reservation by address": {
			`{"PublicIP":"10.99.0.1"}`, Lease{Endpoints: PerFamily[Endpoint]{{PublicIP: netip.MustParseAddr("10.99.0.1")}}},
		},
		"no IPv4 address, as flannel writes it": {`{"PublicIP":"0.0.0.0","Node":"node-a"}`, Lease{Node: "node-a"}},
		"a reservation by name":                 {`{"Node":"node-a"}`, Lease{Node: "node-a"}},
		"another backend's data": {
			`{"PublicIP":"10.99.0.1","BackendType":"wireguard","BackendData":{"PublicKey":"k"}}`,
			Lease{Backend: "wireguard", Endpoints: PerFamily[Endpoint]{{PublicIP: netip.MustParseAddr("10.99.0.1")}}},
		},
	} {
		tc.want.Subnets = samples[0].lease.Subnets
		got, err := ParseRecord(samples[0].key, []byte(tc.value))
		if err != nil || got != tc.want {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, tc.want)
		}
	}
}

func TestParseRecordRefuses(t *testing.T) {
	good := samples[0].value
	for _, tc := range []struct{ key, value, want string }{
		{"junk", good, "key is no subnet"},
		{"", good, "key is no subnet"},
		{"10.5.87.0", good, "key is no subnet"},
		{"10.5.87.0-24/x", good, "key contradicts itself"},
		{"10.5.87.0-x", good, "key contradicts itself"},
		{"10.5.87.0-33", good, "key contradicts itself"},
		{"10.5.87.3-24", good, "key contradicts itself: 10.5.87.3 is not the base"},
		{"10.5.87.0-024", good, "plain form"},
		{"10.5.87.0-+24", good, "plain form"},
		{"fd00::-64", good, "key is no subnet"},
		{"10.5.87.0-24&", good, "key is no subnet"},
		{"10.5.87.0-24&10.5.88.0-24", good, "key is no subnet"},
		{"10.5.87.0-24&fd00:0::-64", good, "plain form"},
		{"10.5.87.0-24&FD00::-64", good, "plain form"},
		{"10.5.87.0-24&fd00::%eth0-64", good, "key is no subnet"},
		{"10.5.87.0-24", ``, "not a JSON object"},
		{"10.5.87.0-24", `null`, "not a JSON object"},
		{"10.5.87.0-24", good + "{}", "more text after"},
		{"10.5.87.0-24", `{"PublicIP":7}`, "not valid JSON"},
		{"10.5.87.0-24", `{"PublicIP":"fd99::1"}`, "PublicIP:"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","PublicIPv6":"10.99.0.1"}`, "PublicIPv6:"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","PublicIPv6":"fd99::1%eth0"}`, "PublicIPv6:"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","PublicIPv6":"::ffff:10.0.0.1"}`, "PublicIPv6:"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"d6:95:53"}}`, "VtepMAC"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","BackendType":"vxlan","BackendData":{"VNI":1}}`, "VtepMAC is missing"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","BackendType":"vxlan","BackendData":{"VNI":-1,"VtepMAC":"d6:95:53:df:61:d5"}}`, "BackendData"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","BackendType":"vxlan","BackendData":"x"}`, "BackendData"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","Node":"a/b"}`, "node name"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","MTU":"1450"}`, "MTU"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","MTU":1450.5}`, "MTU"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","MTU":-1}`, "MTU: -1 is outside IPv4's 576 to 65535"},
		{"10.5.87.0-24", `{"PublicIP":"10.99.0.1","MTU":99999999999999999999}`, "MTU"},
	} {
		if l, err := ParseRecord(tc.key, []byte(tc.value)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %s: got %+v, %v; want %q", tc.key, tc.value, l, err, tc.want)
		}
	}
}

// TestMTUBounds: what is written with an MTU is read back with it, if a node with
// the lease's families can have it, and is else no record that can be used.
func TestMTUBounds(t *testing.T) {
	for _, s := range samples {
		least := MinMTU[V4]
		if s.lease.Subnets[V6].IsValid() {
			least = MinMTU[V6]
		}
		for mtu := -70; mtu < MaxMTU+70; mtu++ {
			l := s.lease
			l.MTU = mtu
			got, err := ParseRecord(s.key, l.Record())
			if fits := mtu == 0 || mtu >= least && mtu <= MaxMTU; fits != (err == nil) || fits && got != l {
				t.Fatalf("%s: MTU %d: %+v, %v", s.name, mtu, got, err)
			}
		}
	}
}

// FuzzParseRecord: junk never panics, and what is read is written back so that
// it reads the same.
func FuzzParseRecord(f *testing.F) {
	for _, s := range samples {
		f.Add(s.key, []byte(s.value))
	}
	f.Add("10.5.87.0-24", []byte(`{"Node":"node-a","PublicIP":"10.99.0.1","MTU":1450}`))
	f.Add("10.5.87.0-24", []byte(`{"Node":"node-a","PublicIPv6":"::ffff:10.0.0.1"}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		l, err := ParseRecord(key, value)
		if err != nil {
			return
		}
		if l.Subnets.Key() != key {
			t.Fatalf("key %q read as that of %q", key, l.Subnets.Key())
		}
		again, err := ParseRecord(key, l.Record())
		if err != nil {
			t.Fatalf("own record %s: %v", l.Record(), err)
		}
		if l.Backend != "vxlan" {
			return // Another backend's data is not ours to carry on.
		}
		for _, fam := range Families {
			if l.Endpoints[fam].MAC == (MAC{}) {
				l.Endpoints[fam].VNI = 0 // Without a MAC nothing is written.
			}
		}
		if again != l {
			t.Fatalf("round trip\n was %+v\n now %+v", l, again)
		}
	})
}

// FuzzUsualFormIsReadAsAnyOther: what is read without encoding/json means what
// it means to encoding/json.
func FuzzUsualFormIsReadAsAnyOther(f *testing.F) {
	for _, s := range samples {
		f.Add([]byte(s.value))
		l := s.lease
		l.Node = "node-a"
		f.Add(l.Record())
		l.Endpoints[V4].Translated, l.Endpoints[V6].Translated = true, true
		f.Add(l.Record())
	}
	f.Add([]byte(`{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":01,"VtepMAC":"d6:95:53:df:61:d5"}}`))
	f.Add([]byte(`{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":4294967296,"VtepMAC":""}}`))
	f.Add([]byte(`{"PublicIP":"\u0031","PublicIPv6":null}`))
	f.Add([]byte("{\"PublicIP\":\"\xff\",\"PublicIPv6\":\"\"}"))
	f.Fuzz(func(t *testing.T, value []byte) {
		got, ok := scanRecord(value)
		if !ok {
			return
		}
		var want recordJSON
		if err := decodeOne(value, &want); err != nil {
			t.Fatalf("%q was read: %v", value, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%q\nread as %+v\nwant    %+v", value, got, want)
		}
		for _, data := range [][]byte{got.BackendData, got.BackendV6Data} {
			got, ok := scanVTEP(data)
			var want vtepJSON
			if err := decodeOne(data, &want); ok && (err != nil || got != want) {
				t.Fatalf("%q read as %+v, want %+v, %v", data, got, want, err)
			}
			m, ok := scanMAC(got.VtepMAC)
			if hw, err := net.ParseMAC(got.VtepMAC); ok && (err != nil || string(hw) != string(m[:])) {
				t.Fatalf("%q read as %s, want %s, %v", got.VtepMAC, m, hw, err)
			}
		}
	})
}

// TestRecordsAreReadWithFewAllocations: as they are written, without
// encoding/json, at a start of a node among tens of thousands.
func TestRecordsAreReadWithFewAllocations(t *testing.T) {
	l := samples[0].lease
	l.Node = "node-a"
	key, value := l.Subnets.Key(), l.Record()
	got := testing.AllocsPerRun(100, func() {
		if _, err := ParseRecord(key, value); err != nil {
			t.Fatal(err)
		}
	})
	if got > 6 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkParseRecord(b *testing.B) {
	l := samples[0].lease
	l.Node = "node-a"
	key, value := l.Subnets.Key(), l.Record()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRecord(key, value); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	l := samples[0].lease
	l.Node = "node-a"
	b.ReportAllocs()
	for b.Loop() {
		_ = l.Record()
	}
}
