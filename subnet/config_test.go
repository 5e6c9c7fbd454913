package subnet

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func mustConfig(t testing.TB, text string) Config {
	t.Helper()
	c, err := ParseConfig([]byte(text))
	if err != nil {
		t.Fatalf("config %s: %v", text, err)
	}
	return c
}

// The three family modes that tests use throughout.
var modes = map[string]string{
	"ipv4": `{"Network": "10.5.0.0/16"}`,
	"ipv6": `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:10:5::/48"}`,
	"dual": `{"EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:10:5::/48"}`,
}

func TestParseConfigFillsInFlannelsDefaults(t *testing.T) {
	v4 := func(network string, length int, lowest, highest string) Range {
		return Range{netip.MustParsePrefix(network), length, netip.MustParseAddr(lowest), netip.MustParseAddr(highest)}
	}
	for name, tc := range map[string]struct {
		text   string
		want   PerFamily[Range]
		sizes  [2]uint64
		typ    string
		option string
	}{
		"a /16": {
			text: modes["ipv4"], want: PerFamily[Range]{v4("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0")},
			sizes: [2]uint64{255}, typ: "vxlan", option: "{}",
		},
		"a /22 still has /24s": {
			text: `{"Network":"10.5.0.0/22"}`, want: PerFamily[Range]{v4("10.5.0.0/22", 24, "10.5.1.0", "10.5.3.0")},
			sizes: [2]uint64{3}, typ: "vxlan", option: "{}",
		},
		"a /23 is split in four": {
			text: `{"Network":"10.5.0.0/23"}`, want: PerFamily[Range]{v4("10.5.0.0/23", 25, "10.5.0.128", "10.5.1.128")},
			sizes: [2]uint64{3}, typ: "vxlan", option: "{}",
		},
		"keys in any case, unknown ones, host bits": {
			text:  `{"network":"10.5.7.9/16","SUBNETLEN":26,"Colour":"red","Backend":{"Type":"host-gw", "x": 1}}`,
			want:  PerFamily[Range]{v4("10.5.0.0/16", 26, "10.5.0.64", "10.5.255.192")},
			sizes: [2]uint64{1023}, typ: "host-gw", option: `{"Type":"host-gw","x":1}`,
		},
		"bounds": {
			text:  `{"Network":"10.5.0.0/16","SubnetMin":"10.5.0.0","SubnetMax":"10.5.3.0","Backend":null}`,
			want:  PerFamily[Range]{v4("10.5.0.0/16", 24, "10.5.0.0", "10.5.3.0")},
			sizes: [2]uint64{4}, typ: "vxlan", option: "{}",
		},
		"both families": {
			text: modes["dual"],
			want: PerFamily[Range]{
				v4("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"), v4("fd00:10:5::/48", 64, "fd00:10:5:1::", "fd00:10:5:ffff::"),
			},
			sizes: [2]uint64{255, 65535}, typ: "vxlan", option: "{}",
		},
		"IPv6 alone, a long prefix": {
			text:  `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/120","Network":"ignored"}`,
			want:  PerFamily[Range]{V6: v4("fd00::/120", 122, "fd00::40", "fd00::c0")},
			sizes: [2]uint64{0, 3}, typ: "vxlan", option: "{}",
		},
		"more subnets than can be counted": {
			text:  `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/8","IPv6SubnetLen":120}`,
			want:  PerFamily[Range]{V6: v4("fd00::/8", 120, "fd00::100", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ff00")},
			sizes: [2]uint64{0, 1 << 62}, typ: "vxlan", option: "{}",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := mustConfig(t, tc.text)
			if c.Ranges != tc.want {
				t.Errorf("ranges\n got %v\nwant %v", c.Ranges, tc.want)
			}
			if c.Backend != (Backend{tc.typ, tc.option}) {
				t.Errorf("backend %v", c.Backend)
			}
			for _, f := range c.Families() {
				if got := c.Ranges[f].Size(); got != tc.sizes[f] {
					t.Errorf("%s: %d subnets, want %d", f, got, tc.sizes[f])
				}
			}
		})
	}
}

func TestParseConfigRefusesAndNamesTheKey(t *testing.T) {
	for text, want := range map[string]string{
		``:                          "not a JSON object",
		`null`:                      "not a JSON object",
		`["10.5.0.0/16"]`:           "not a JSON object",
		`{"Network":"10.5.0.0`:      "not valid JSON",
		`{"Network":"x"} {}`:        "more text after",
		`{}`:                        "Network is missing",
		`{"Network":""}`:            "Network is missing",
		`{"Network":17}`:            "not valid JSON",
		`{"Network":"10.5.0.0"}`:    "Network:",
		`{"Network":"fd00::/48"}`:   "not an IPv4 prefix",
		`{"Network":"10.5.0.0/29"}`: "too small",
		`{"Network":"0.0.0.0/0"}`:   "not a range of unicast",
		`{"Network":"224.0.0.0/8"}`: "not a range of unicast",
		`{"Network":"127.0.0.0/8"}`: "not a range of unicast",
		`{"Network":"10.5.0.0/16","SubnetLen":31}`:                                                  "SubnetLen: 31 is outside 18 to 30",
		`{"Network":"10.5.0.0/16","SubnetLen":17}`:                                                  "SubnetLen: 17 is outside",
		`{"Network":"10.5.0.0/16","SubnetLen":-1}`:                                                  "SubnetLen: -1 is outside",
		`{"Network":"10.5.0.0/16","SubnetMin":"10.6.0.0"}`:                                          "SubnetMin:",
		`{"Network":"10.5.0.0/16","SubnetMin":"10.5.0.1"}`:                                          "SubnetMin: 10.5.0.1 is not the first address",
		`{"Network":"10.5.0.0/16","SubnetMax":"no"}`:                                                "SubnetMax:",
		`{"Network":"10.5.0.0/16","SubnetMin":"10.5.9.0","SubnetMax":"10.5.8.0"}`:                   "SubnetMin 10.5.9.0 is above SubnetMax",
		`{"EnableIPv4":false}`:                                                                      "enable one",
		`{"EnableIPv4":false,"EnableIPv6":true}`:                                                    "IPv6Network is missing",
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/125"}`:                         "too small",
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"ff00::/8"}`:                           "not a range of unicast",
		`{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48","IPv6SubnetLen":127}`: "IPv6SubnetLen: 127",
		`{"Network":"10.5.0.0/16","Backend":"vxlan"}`:                                               "Backend:",
		`{"Network":"10.5.0.0/16","Backend":{"VNI":7}}`:                                             "Backend: Type is missing",
		`{"Network":"` + strings.Repeat("x", 70000) + `"}`:                                          "bytes are more than",
	} {
		_, err := ParseConfig([]byte(text))
		if !errors.Is(err, ErrMalformedConfig) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: got %v, want %q in it", text, err, want)
		}
	}
}

func TestUnknownConfigKeysFindsASpellingMistake(t *testing.T) {
	got := UnknownConfigKeys([]byte(`{"network":"10.5.0.0/16","SubnetLenght":26,"EnableIpv6":true,"A":1}`))
	if len(got) != 2 || got[0] != "A" || got[1] != "SubnetLenght" {
		t.Errorf("got %v", got)
	}
}

func TestRangeAtVisitsWhatCheckAllows(t *testing.T) {
	for name, text := range modes {
		c := mustConfig(t, text)
		for _, f := range c.Families() {
			r := c.Ranges[f]
			if got := r.At(0).Addr(); got != r.Min {
				t.Errorf("%s: first subnet %s, want %s", name, got, r.Min)
			}
			if got := r.At(r.Size() - 1).Addr(); got != r.Max {
				t.Errorf("%s: last subnet %s, want %s", name, got, r.Max)
			}
			for _, i := range []uint64{0, 1, r.Size() / 2, r.Size() - 1} {
				if err := r.Check(r.At(i)); err != nil {
					t.Errorf("%s: %d: %v", name, i, err)
				}
			}
			if err := r.Check(r.Network); err == nil {
				t.Errorf("%s: the whole network passes as a subnet", name)
			}
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	for _, text := range modes {
		f.Add([]byte(text))
	}
	f.Add([]byte(`{"Network":"10.5.0.0/28","SubnetLen":30,"Backend":{"Type":"vxlan","VNI":3}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil {
			if !errors.Is(err, ErrMalformedConfig) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		for _, fam := range c.Families() {
			r := c.Ranges[fam]
			for _, i := range []uint64{0, r.Size() - 1} {
				if err := r.Check(r.At(i)); err != nil {
					t.Fatalf("%s: subnet %d of %d: %v", data, i, r.Size(), err)
				}
			}
		}
	})
}
