package underlay

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

var host = []backend.Interface{
	{Name: "lo", Up: true, MTU: 65536},
	{Name: "eth0", Up: true, MTU: 1500, Addresses: addrs("10.0.2.15"), DefaultV4: true},
	{Name: "eth1", Up: true, MTU: 9000, Addresses: addrs("192.168.1.2", "192.168.1.3", "fd99::2", "fd99::3"), DefaultV6: true},
	{Name: "eth2", MTU: 1400},
}

func TestChoose(t *testing.T) {
	public := func(four, six string) (p subnet.PerFamily[netip.Addr]) {
		for f, text := range []string{four, six} {
			if text != "" {
				p[f] = netip.MustParseAddr(text)
			}
		}
		return p
	}
	for name, tc := range map[string]struct {
		wish Wish
		want [2]string // interface local public mtu
	}{
		"default routes":            {Wish{}, [2]string{"eth0 10.0.2.15 10.0.2.15 1500", "eth1 fd99::2 fd99::2 9000"}},
		"by name":                   {Wish{Ifaces: []string{"eth1"}}, [2]string{"eth1 192.168.1.2 192.168.1.2 9000", "eth1 fd99::2 fd99::2 9000"}},
		"by IPv4 address":           {Wish{Ifaces: []string{"192.168.1.3"}}, [2]string{"eth1 192.168.1.3 192.168.1.3 9000", "eth1 fd99::2 fd99::2 9000"}},
		"by IPv6 address":           {Wish{Ifaces: []string{"fd99::3"}}, [2]string{"eth1 192.168.1.2 192.168.1.2 9000", "eth1 fd99::3 fd99::3 9000"}},
		"public behind a NAT":       {Wish{PublicIP: public("203.0.113.7", "")}, [2]string{"eth0 10.0.2.15 203.0.113.7 1500", "eth1 fd99::2 fd99::2 9000"}},
		"public that eth1 has":      {Wish{PublicIP: public("192.168.1.3", "fd99::3")}, [2]string{"eth1 192.168.1.3 192.168.1.3 9000", "eth1 fd99::3 fd99::3 9000"}},
		"name and an own second IP": {Wish{Ifaces: []string{"eth1"}, PublicIP: public("192.168.1.3", "")}, [2]string{"eth1 192.168.1.3 192.168.1.3 9000", "eth1 fd99::2 fd99::2 9000"}},
		"name and a NAT":            {Wish{Ifaces: []string{"eth1"}, PublicIP: public("203.0.113.7", "")}, [2]string{"eth1 192.168.1.2 203.0.113.7 9000", "eth1 fd99::2 fd99::2 9000"}},
	} {
		got, err := Choose(tc.wish, subnet.Families[:], Host{Interfaces: host})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, f := range subnet.Families {
			c := got[f]
			text := strings.Join([]string{c.Interface, c.Local.String(), c.Public.String(), map[int]string{1500: "1500", 9000: "9000"}[c.MTU]}, " ")
			if text != tc.want[f] || c.Reason == "" {
				t.Errorf("%s: %s: got %s (%s), want %s", name, f, text, c.Reason, tc.want[f])
			}
		}
	}
}

// TestChooseSaysWhatIsMissing, and not what there is, which is said once.
func TestChooseSaysWhatIsMissing(t *testing.T) {
	for name, tc := range map[string]struct {
		wish Wish
		f    subnet.Family
		host []backend.Interface
		want string
	}{
		"no such name":        {Wish{Ifaces: []string{"eth9"}}, subnet.V4, host, "no interface called eth9 (--iface)"},
		"no such address":     {Wish{Ifaces: []string{"10.9.9.9"}}, subnet.V4, host, "no interface with the address 10.9.9.9"},
		"name lacks family":   {Wish{Ifaces: []string{"eth0"}}, subnet.V6, host, "interface eth0 has no global IPv6 address"},
		"no default route":    {Wish{}, subnet.V4, host[2:], "there is no IPv4 default route: name an interface with --iface"},
		"default, no address": {Wish{}, subnet.V4, []backend.Interface{{Name: "eth0", DefaultV4: true}}, "eth0 has the default route and no global IPv4 address"},
		"nothing at all":      {Wish{}, subnet.V6, nil, "there is no IPv6 default route"},
	} {
		_, err := Choose(tc.wish, []subnet.Family{tc.f}, Host{Interfaces: tc.host})
		if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "there are") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for want, there := range map[string][]backend.Interface{
		"eth0 (10.0.2.15), eth1 (192.168.1.2, 192.168.1.3, fd99::2, fd99::3), lo (no address), eth2 (no address, down)": host, "none": nil,
	} {
		if got := List(there); got != want {
			t.Errorf("there are %s, want %s", got, want)
		}
	}
}
