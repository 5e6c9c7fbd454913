package underlay

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// wide is a host with everything that the rules go by.
func wide() Host {
	way := func(name, source string) backend.Way {
		return backend.Way{Interface: name, Source: netip.MustParseAddr(source)}
	}
	return Host{
		Interfaces: []backend.Interface{
			{Name: "lo", Up: true, MTU: 65536, Addresses: addrs("10.255.0.1")},
			{Name: "eth0", Up: true, MTU: 1500, Addresses: addrs("10.0.2.15", "fd02::15"), DefaultV4: true, DefaultV6: true},
			{Name: "eth1", Up: true, MTU: 9000, Addresses: addrs("192.168.1.2", "192.168.1.3", "fd99::2", "fd99::3")},
			{Name: "ens5", MTU: 1400, Addresses: addrs("172.16.0.5")},
			{Name: "ens6", Up: true, MTU: 1400, Addresses: addrs("172.16.0.6")},
			{Name: "tun0", Up: true, MTU: 1420},
		},
		Ways: map[netip.Addr]backend.Way{
			netip.MustParseAddr("192.168.1.9"): way("eth1", "192.168.1.3"),
			netip.MustParseAddr("192.168.7.7"): way("eth1", "10.255.0.1"), // As where routes come by BGP.
			netip.MustParseAddr("fd99::9"):     way("eth1", "fd99::77"),   // A source of the moment.
			netip.MustParseAddr("10.5.0.9"):    way("ripstop.1", "10.5.1.0"),
			netip.MustParseAddr("127.0.0.1"):   way("lo", "127.0.0.1"),
			netip.MustParseAddr("192.168.1.2"): way("lo", "192.168.1.2"), // The host's own.
			netip.MustParseAddr("10.9.9.9"):    {},
		},
	}
}

func (c Choice) text() string { return fmt.Sprintf("%s %s %s", c.Interface, c.Local, c.Public) }

func regexes(texts ...string) (out []*regexp.Regexp) {
	for _, t := range texts {
		out = append(out, regexp.MustCompile(t))
	}
	return out
}

// TestRules: each rule alone and before those after it, for both families.
func TestRules(t *testing.T) {
	for name, tc := range map[string]struct {
		wish  Wish
		store []netip.Addr
		want  [2]string // What is left out is an error.
		why   string    // The reason, or the error.
	}{
		"the first of several that is there": {Wish{Ifaces: []string{"eth7", "eth1", "eth0"}}, nil, [2]string{"eth1 192.168.1.2 192.168.1.2", "eth1 fd99::2 fd99::2"}, "named by --iface"},
		"one that is up before one that is not": {
			Wish{Ifaces: []string{"ens5", "ens6"}}, nil, [2]string{"ens6 172.16.0.6 172.16.0.6", ""}, "",
		},
		"one that is down where there is no other": {Wish{Ifaces: []string{"ens5"}}, nil, [2]string{"ens5 172.16.0.5 172.16.0.5", ""}, ""},
		"a name by regex":                          {Wish{Regexes: regexes("^eth[1-9]$")}, nil, [2]string{"eth1 192.168.1.2 192.168.1.2", "eth1 fd99::2 fd99::2"}, "matches --iface-regex ^eth[1-9]$"},
		"an address by regex":                      {Wish{Regexes: regexes(`^192\.168\.1\.3$`)}, nil, [2]string{"eth1 192.168.1.3 192.168.1.3", "eth1 fd99::2 fd99::2"}, "has an address that matches"},
		"a name by regex before an address":        {Wish{Regexes: regexes("eth0|172")}, nil, [2]string{"eth0 10.0.2.15 10.0.2.15", "eth0 fd02::15 fd02::15"}, ""},
		"a regex that is up before one before it":  {Wish{Regexes: regexes("ens5", "ens6")}, nil, [2]string{"ens6 172.16.0.6 172.16.0.6", ""}, ""},
		"names before regexes":                     {Wish{Ifaces: []string{"eth0"}, Regexes: regexes("eth1")}, nil, [2]string{"eth0 10.0.2.15 10.0.2.15", "eth0 fd02::15 fd02::15"}, ""},
		"a regex where no name is there":           {Wish{Ifaces: []string{"eth7"}, Regexes: regexes("eth1")}, nil, [2]string{"eth1 192.168.1.2 192.168.1.2", "eth1 fd99::2 fd99::2"}, ""},
		"nothing matches":                          {Wish{Ifaces: []string{"eth7"}, Regexes: regexes("^wl")}, nil, [2]string{}, "no interface called eth7 (--iface); no interface with a global"},
		"can reach":                                {Wish{CanReach: netip.MustParseAddr("192.168.1.9")}, nil, [2]string{"eth1 192.168.1.3 192.168.1.3", "eth1 fd99::2 fd99::2"}, "reaches 192.168.1.9 (--iface-can-reach)"},
		"cannot reach":                             {Wish{CanReach: netip.MustParseAddr("10.9.9.9")}, nil, [2]string{}, "10.9.9.9 (--iface-can-reach) is not reached"},
		"a public address that an interface has": {
			Wish{PublicIP: subnet.PerFamily[netip.Addr]{netip.MustParseAddr("192.168.1.3"), netip.MustParseAddr("fd99::3")}}, addrs("10.9.9.9"),
			[2]string{"eth1 192.168.1.3 192.168.1.3", "eth1 fd99::3 fd99::3"}, "has the public address given",
		},
		"a public address that none has": {
			Wish{PublicIP: subnet.PerFamily[netip.Addr]{netip.MustParseAddr("203.0.113.7")}}, addrs("192.168.1.9"),
			[2]string{"eth1 192.168.1.3 203.0.113.7", "eth1 fd99::2 fd99::2"}, "is the way to the store at 192.168.1.9",
		},
		"the store's own family first":       {Wish{}, addrs("192.168.1.9", "fd99::9"), [2]string{"eth1 192.168.1.3 192.168.1.3", "eth1 fd99::2 fd99::2"}, "the way to the store at"},
		"a source that is no interface's":    {Wish{}, addrs("fd99::9"), [2]string{"eth1 192.168.1.2 192.168.1.2", "eth1 fd99::2 fd99::2"}, "the way to the store at fd99::9"},
		"a source on the loopback":           {Wish{}, addrs("192.168.7.7"), [2]string{"eth1 10.255.0.1 10.255.0.1", "eth1 fd99::2 fd99::2"}, ""},
		"a store on this host":               {Wish{}, addrs("192.168.1.2"), [2]string{"eth1 192.168.1.2 192.168.1.2", "eth1 fd99::2 fd99::2"}, ""},
		"a store on this host's loopback":    {Wish{}, addrs("127.0.0.1"), [2]string{"eth0 10.0.2.15 10.0.2.15", "eth0 fd02::15 fd02::15"}, "has the default route"},
		"a store among the pods":             {Wish{}, addrs("10.5.0.9"), [2]string{"eth0 10.0.2.15 10.0.2.15", "eth0 fd02::15 fd02::15"}, "has the default route"},
		"a store's member that is reached":   {Wish{}, addrs("10.9.9.9", "192.168.1.9"), [2]string{"eth1 192.168.1.3 192.168.1.3", "eth1 fd99::2 fd99::2"}, ""},
		"a store that is not known":          {Wish{}, nil, [2]string{"eth0 10.0.2.15 10.0.2.15", "eth0 fd02::15 fd02::15"}, "has the default route"},
		"what is named before the store":     {Wish{Ifaces: []string{"eth0"}}, addrs("192.168.1.9"), [2]string{"eth0 10.0.2.15 10.0.2.15", "eth0 fd02::15 fd02::15"}, ""},
		"no family on what is named":         {Wish{Ifaces: []string{"tun0"}}, nil, [2]string{}, "interface tun0 has no global"},
		"an own second public address named": {Wish{Ifaces: []string{"eth1"}, PublicIP: subnet.PerFamily[netip.Addr]{netip.MustParseAddr("192.168.1.3")}}, nil, [2]string{"eth1 192.168.1.3 192.168.1.3", "eth1 fd99::2 fd99::2"}, ""},
	} {
		for _, f := range subnet.Families {
			h := wide()
			h.Store = tc.store
			c, err := Choose(tc.wish, []subnet.Family{f}, h)
			got, why := c[f].text(), c[f].Reason
			if err != nil {
				got, why = "", err.Error()
			}
			if got != tc.want[f] || tc.want[f] != "" == (tc.want != [2]string{}) && !strings.Contains(why, tc.why) {
				t.Errorf("%s: %s: got %q, %s", name, f, got, why)
			}
			if i := slices.IndexFunc(h.Interfaces, func(i backend.Interface) bool { return i.Name == c[f].Interface }); err == nil && (c[f].Trouble == "") != h.Interfaces[i].Up {
				t.Errorf("%s: %s: trouble %q", name, f, c[f].Trouble)
			}
		}
	}
}

// TestFollow: what a choice becomes as the host changes.
func TestFollow(t *testing.T) {
	iface := func(h Host, name string) *backend.Interface {
		return &h.Interfaces[slices.IndexFunc(h.Interfaces, func(i backend.Interface) bool { return i.Name == name })]
	}
	const eth1 = "eth1 192.168.1.2 192.168.1.2"
	for name, tc := range map[string]struct {
		wish    Wish
		store   []netip.Addr
		change  func(Host)
		want    string
		mtu     int
		trouble string
	}{
		"nothing changes":                   {Wish{Ifaces: []string{"eth1"}}, nil, func(Host) {}, eth1, 9000, ""},
		"another MTU":                       {Wish{Ifaces: []string{"eth1"}}, nil, func(h Host) { iface(h, "eth1").MTU = 1400 }, eth1, 1400, ""},
		"another address before its own":    {Wish{Ifaces: []string{"eth1"}}, nil, func(h Host) { iface(h, "eth1").Addresses = addrs("192.168.1.1", "192.168.1.2") }, eth1, 9000, ""},
		"its address gone, another there":   {Wish{Ifaces: []string{"eth1"}}, nil, func(h Host) { iface(h, "eth1").Addresses = addrs("192.168.1.1") }, "eth1 192.168.1.1 192.168.1.1", 9000, ""},
		"its address gone":                  {Wish{Ifaces: []string{"eth1"}}, nil, func(h Host) { iface(h, "eth1").Addresses = nil }, eth1, 9000, "interface eth1 has no global IPv4 address"},
		"its interface gone":                {Wish{Ifaces: []string{"eth1"}}, nil, func(h Host) { iface(h, "eth1").Name = "eth7" }, eth1, 9000, "no interface called eth1"},
		"its interface gone, another named": {Wish{Ifaces: []string{"eth1", "ens6"}}, nil, func(h Host) { iface(h, "eth1").Name = "eth7" }, "ens6 172.16.0.6 172.16.0.6", 1400, ""},
		"its interface down":                {Wish{Ifaces: []string{"eth1"}}, nil, func(h Host) { i := iface(h, "eth1"); i.Up, i.MTU, i.OnLink = false, 1300, nil }, eth1, 9000, "interface eth1 is down or has no carrier"},
		"its interface down, another named": {Wish{Ifaces: []string{"eth1", "ens6"}}, nil, func(h Host) { iface(h, "eth1").Up = false }, "ens6 172.16.0.6 172.16.0.6", 1400, ""},
		"another that matches comes first":  {Wish{Regexes: regexes("^eth[1-9]$")}, nil, func(h Host) { iface(h, "tun0").Name, iface(h, "tun0").Addresses = "eth2", addrs("10.1.1.1") }, eth1, 9000, ""},
		"its address matched, another does": {Wish{Regexes: regexes(`^192\.168`)}, nil, func(h Host) { iface(h, "eth1").Addresses = addrs("192.168.1.1", "192.168.1.2") }, eth1, 9000, ""},
		"the way to the store by another": {Wish{}, addrs("192.168.1.2"), func(h Host) {
			h.Ways[netip.MustParseAddr("192.168.1.2")] = backend.Way{Interface: "ens6", Source: netip.MustParseAddr("172.16.0.6")}
		}, "ens6 172.16.0.6 172.16.0.6", 1400, ""},
		"the way to the store, another source": {Wish{}, addrs("192.168.1.2"), func(h Host) {
			h.Ways[netip.MustParseAddr("192.168.1.2")] = backend.Way{Interface: "eth1", Source: netip.MustParseAddr("192.168.1.3")}
		}, eth1, 9000, ""},
		"a public address that was its own": {
			Wish{PublicIP: subnet.PerFamily[netip.Addr]{netip.MustParseAddr("192.168.1.2")}}, nil, func(h Host) { iface(h, "eth1").Addresses = addrs("192.168.1.3") },
			eth1, 9000, "no interface has the public address 192.168.1.2 any more",
		},
		"a public address that an interface gets": {
			Wish{Ifaces: []string{"eth1"}, PublicIP: subnet.PerFamily[netip.Addr]{netip.MustParseAddr("203.0.113.7")}}, nil,
			func(h Host) { iface(h, "eth1").Addresses = addrs("192.168.1.2", "203.0.113.7") }, "eth1 203.0.113.7 203.0.113.7", 9000, "",
		},
	} {
		h := wide()
		h.Store = tc.store
		before, err := Choose(tc.wish, []subnet.Family{subnet.V4}, h)
		if err != nil || !strings.HasPrefix(before[subnet.V4].text(), "eth1 192.168.1.2 ") {
			t.Errorf("%s: before: %s, %v", name, before[subnet.V4].text(), err)
			continue
		}
		tc.change(h)
		c := Follow(tc.wish, subnet.V4, h, before[subnet.V4])
		if c.text() != tc.want || c.MTU != tc.mtu || (c.Trouble == "") != (tc.trouble == "") || !strings.Contains(c.Trouble, tc.trouble) {
			t.Errorf("%s: got %s with MTU %d, trouble %q", name, c.text(), c.MTU, c.Trouble)
		}
		// What comes back is what it was, whatever happened meanwhile.
		again := wide()
		again.Store = tc.store
		if back := Follow(tc.wish, subnet.V4, again, c); tc.trouble != "" && (!back.Same(before[subnet.V4]) || back.Trouble != "") {
			t.Errorf("%s: when all is back: %s, trouble %q", name, back.text(), back.Trouble)
		}
	}
}

// TestWayToAStoreThatIsAway says nothing: what serves is kept, and what does not is left.
func TestWayToAStoreThatIsAway(t *testing.T) {
	store := netip.MustParseAddr("192.168.1.9")
	elsewhere := func(away bool) Host {
		h := wide()
		h.Store, h.StoreAway = []netip.Addr{store}, away
		h.Ways[store] = backend.Way{Interface: "ens6", Source: netip.MustParseAddr("172.16.0.6")}
		return h
	}
	h := wide()
	h.Store = []netip.Addr{store}
	before, err := Choose(Wish{}, []subnet.Family{subnet.V4}, h)
	if err != nil || before[subnet.V4].Interface != "eth1" {
		t.Fatalf("%s, %v", before[subnet.V4].text(), err)
	}
	if c := Follow(Wish{}, subnet.V4, elsewhere(true), before[subnet.V4]); !c.Same(before[subnet.V4]) || c.Trouble != "" || c.Reason != before[subnet.V4].Reason {
		t.Errorf("while it is away: %s, %s", c.text(), c.Trouble)
	}
	if c := Follow(Wish{}, subnet.V4, elsewhere(false), before[subnet.V4]); c.Interface != "ens6" {
		t.Errorf("when it is back: %s", c.text())
	}
	for what, harm := range map[string]func(*backend.Interface){
		"down": func(i *backend.Interface) { i.Up = false }, "without its address": func(i *backend.Interface) { i.Addresses = nil },
	} {
		h := elsewhere(true)
		harm(&h.Interfaces[slices.IndexFunc(h.Interfaces, func(i backend.Interface) bool { return i.Name == "eth1" })])
		if c := Follow(Wish{}, subnet.V4, h, before[subnet.V4]); c.Interface != "ens6" {
			t.Errorf("%s: %s", what, c.text())
		}
	}
}

// TestListIsBounded: a host with thousands of pods has thousands of interfaces.
func TestListIsBounded(t *testing.T) {
	var host []backend.Interface
	for i := range 5000 {
		host = append(host, backend.Interface{Name: fmt.Sprint("veth", i), Up: true})
	}
	host = append(host, backend.Interface{Name: "eth0", Up: true, Addresses: addrs("10.0.0.1")})
	text := List(host)
	if len(text) > 1000 || !strings.HasPrefix(text, "eth0 (10.0.0.1), veth0") || !strings.HasSuffix(text, "and 4981 more") {
		t.Errorf("%d bytes: %s", len(text), text)
	}
}

// TestDefaultByTwoIsNoReasonToMove: of interfaces that share the default route the
// one is kept that was chosen, as long as it does.
func TestDefaultByTwoIsNoReasonToMove(t *testing.T) {
	h := wide()
	only := func(names ...string) {
		for n := range h.Interfaces {
			h.Interfaces[n].DefaultV4 = slices.Contains(names, h.Interfaces[n].Name)
		}
	}
	only("eth1")
	before, err := Choose(Wish{}, []subnet.Family{subnet.V4}, h)
	c := before[subnet.V4]
	if err != nil || c.Interface != "eth1" {
		t.Fatalf("got %s, %v", c.text(), err)
	}
	for _, step := range []struct {
		by   []string
		want string
	}{{[]string{"eth0", "eth1"}, "eth1"}, {[]string{"eth0"}, "eth0"}, {[]string{"eth0", "eth1"}, "eth0"}, {nil, "eth0"}} {
		only(step.by...)
		if c = Follow(Wish{}, subnet.V4, h, c); c.Interface != step.want {
			t.Errorf("by %v: %s", step.by, c.text())
		}
	}
}
