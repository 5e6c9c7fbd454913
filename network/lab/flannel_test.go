package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// What flannel v0.28 leaves on a host, in etcd and in files, made by the tests
// themselves: its devices, bound to the underlay's interface, with its addresses and
// entries; its rules in nftables; its record and its subnet file.

var flannelNames = subnet.PerFamily[string]{"flannel.1", "flannel-v6.1"}

// flannel is what flannel has given one host.
type flannel struct {
	host    *Host
	subnets subnet.Subnets
	macs    subnet.PerFamily[subnet.MAC]
	// direct says that peers are reached directly, gateway that it is with host-gw and so
	// without a device.
	direct, gateway bool
}

// key and record are those in etcd.
func (f flannel) key() string { return Prefix + "/subnets/" + f.subnets.Key() }

func (f flannel) record() string {
	type backendData struct {
		VNI     int
		VtepMAC string
	}
	r := struct {
		PublicIP      *string
		PublicIPv6    *string
		BackendType   string
		BackendData   *backendData `json:",omitempty"`
		BackendV6Data *backendData `json:",omitempty"`
	}{BackendType: "vxlan"}
	for _, family := range f.host.lab.Families() {
		public := f.host.Address(family).String()
		data := &backendData{VNI: vxlanVNI, VtepMAC: f.macs[family].String()}
		if f.gateway {
			r.BackendType, data = "host-gw", nil
		}
		if family == subnet.V4 {
			r.PublicIP, r.BackendData = &public, data
		} else {
			r.PublicIPv6, r.BackendV6Data = &public, data
		}
	}
	text, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// layOutFlannel lays all hosts of a lab out as flannel does, with pods behind them, as
// if flanneld had been killed a moment ago.
func layOutFlannel(t *testing.T, l *Lab, rules func(*testing.T, flannel)) []flannel {
	t.Helper()
	var all []flannel
	for i, h := range l.Hosts {
		f := flannel{host: h, direct: strings.Contains(l.opts.Config, "DirectRouting")}
		f.gateway = strings.Contains(l.opts.Config, "host-gw")
		f.direct = f.direct || f.gateway
		for _, family := range l.Families() {
			f.macs[family] = subnet.MAC{0xd6, 0x95, 0x53, byte(family), 0, byte(i)}
			f.subnets[family] = netip.MustParsePrefix(subnet.PerFamily[string]{
				fmt.Sprintf("10.5.%d.0/24", 80+i), fmt.Sprintf("fd00:10:5:%x::/64", 0x80+i),
			}[family])
		}
		all = append(all, f)
	}
	store := openStore(t, l)
	for _, f := range all {
		lease, err := store.Grant(t.Context(), 86400)
		if err == nil {
			_, err = store.Put(t.Context(), f.key(), f.record(), clientv3.WithLease(lease.ID))
		}
		if err == nil {
			err = errors.Join(f.layDevices(all), os.WriteFile(f.host.SubnetFile(), []byte(f.subnetEnv()), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
		rules(t, f)
		if err := f.host.addPods(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	everyPairTalks(t, l, talkLimit)
	return all
}

func (f flannel) subnetEnv() string {
	var b strings.Builder
	for _, family := range f.host.lab.Families() {
		word := subnet.PerFamily[string]{"", "IPV6_"}[family]
		s := f.subnets[family]
		fmt.Fprintf(&b, "FLANNEL_%sNETWORK=%s\nFLANNEL_%sSUBNET=%s/%d\n", word,
			subnet.PerFamily[string]{"10.5.0.0/16", "fd00:10:5::/48"}[family], word, s.Addr().Next(), s.Bits())
	}
	return b.String() + "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
}

// layDevices makes devices, addresses and the entries for all other hosts, by the
// calls that flannel makes.
func (f flannel) layDevices(all []flannel) error {
	return f.host.Namespace.netlink(func(n *netlink.Handle) error {
		lower, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		for _, family := range f.host.lab.Families() {
			if f.gateway {
				for _, peer := range all {
					if peer.host != f.host {
						if err := peer.enterOn(n, lower, family); err != nil {
							return err
						}
					}
				}
				continue
			}
			base := f.subnets[family].Addr()
			attrs := netlink.NewLinkAttrs()
			attrs.Name, attrs.HardwareAddr, attrs.MTU = flannelNames[family], f.macs[family][:], lower.Attrs().MTU-50
			device := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: vxlanVNI, VtepDevIndex: lower.Attrs().Index, SrcAddr: f.host.Address(family).AsSlice(), Port: vxlanPort}
			if err := n.LinkAdd(device); err != nil {
				return err
			}
			if err := errors.Join(addAddresses(n, device, []netip.Prefix{netip.PrefixFrom(base, base.BitLen())}), n.LinkSetUp(device)); err != nil {
				return err
			}
			for _, peer := range all {
				if peer.host == f.host {
					continue
				}
				if err := peer.enterOn(n, device, family); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// enterOn makes the entries for a peer on a device of another host.
func (f flannel) enterOn(n *netlink.Handle, device netlink.Link, family subnet.Family) error {
	s, mac, index := f.subnets[family], f.macs[family], device.Attrs().Index
	if f.direct {
		return n.RouteReplace(&netlink.Route{
			Gw: f.host.Address(family).AsSlice(), Dst: &net.IPNet{IP: s.Addr().AsSlice(), Mask: net.CIDRMask(s.Bits(), s.Addr().BitLen())},
		})
	}
	return errors.Join(
		n.NeighSet(&netlink.Neigh{
			LinkIndex: index, State: netlink.NUD_PERMANENT, Type: unix.RTN_UNICAST, IP: s.Addr().AsSlice(), HardwareAddr: mac[:],
		}),
		n.NeighSet(&netlink.Neigh{
			LinkIndex: index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: f.host.Address(family).AsSlice(), HardwareAddr: mac[:],
		}),
		n.RouteReplace(&netlink.Route{
			LinkIndex: index, Scope: netlink.SCOPE_UNIVERSE, Flags: int(netlink.FLAG_ONLINK), Gw: s.Addr().AsSlice(),
			Dst: &net.IPNet{IP: s.Addr().AsSlice(), Mask: net.CIDRMask(s.Bits(), s.Addr().BitLen())},
		}),
	)
}

// inNFTables makes flannel's tables of nftables, as with EnableNFTables: forward accepts the network's packets;
// what leaves it is masqueraded.
func inNFTables(t *testing.T, f flannel) {
	t.Helper()
	c := nft(t, f.host.Namespace)
	for _, family := range f.host.lab.Families() {
		table := c.AddTable(&nftables.Table{
			Name:   subnet.PerFamily[string]{"flannel-ipv4", "flannel-ipv6"}[family],
			Family: subnet.PerFamily[nftables.TableFamily]{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}[family],
		})
		network := netip.MustParsePrefix(subnet.PerFamily[string]{"10.5.0.0/16", "fd00:10:5::/48"}[family])
		forward := c.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
		})
		nat := c.AddChain(&nftables.Chain{
			Name: "postrtg", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		accept, back := &expr.Verdict{Kind: expr.VerdictAccept}, &expr.Verdict{Kind: expr.VerdictReturn}
		rule := func(chain *nftables.Chain, parts ...[]expr.Any) {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: slices.Concat(parts...)})
		}
		from := func(p netip.Prefix, not bool) []expr.Any { return isIn(p, false, not) }
		to := func(p netip.Prefix, not bool) []expr.Any { return isIn(p, true, not) }
		many := netip.MustParsePrefix(subnet.PerFamily[string]{"224.0.0.0/4", "ff00::/8"}[family])
		hide := []expr.Any{&expr.Masq{FullyRandom: true}}
		rule(forward, from(network, false), []expr.Any{accept})
		rule(forward, to(network, false), []expr.Any{accept})
		rule(nat, from(f.subnets[family], false), to(network, false), []expr.Any{back})
		rule(nat, from(network, false), to(f.subnets[family], false), []expr.Any{back})
		rule(nat, from(f.subnets[family], true), to(network, false), []expr.Any{back})
		rule(nat, from(network, false), to(many, true), hide)
		rule(nat, from(network, true), to(network, false), hide)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// isIn matches packets from a prefix, or to it, or those that are not.
func isIn(p netip.Prefix, destination, not bool) []expr.Any {
	length := uint32(p.Addr().BitLen() / 8)
	offset := map[uint32]uint32{4: 12, 16: 8}[length]
	if destination {
		offset += length
	}
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()), Xor: make([]byte, length)},
		&expr.Cmp{Op: op, Register: 1, Data: p.Addr().AsSlice()},
	}
}

// flows ping between all pairs of hosts, in both directions and all families.
type flows map[string]*Pinger

func pingAll(t *testing.T, l *Lab) flows {
	t.Helper()
	all := flows{}
	for _, f := range l.Families() {
		for _, from := range l.Pods() {
			for _, to := range l.Pods() {
				if from == to {
					continue
				}
				p, err := StartPinger(t.Context(), from.Namespace, from.Addresses[f], to.Addresses[f], 100, PingOptions{Timeout: 3 * time.Second})
				if err != nil {
					t.Fatal(err)
				}
				all[fmt.Sprintf("%s from %s to %s", f, from.Name, to.Name)] = p
			}
		}
	}
	return all
}

// lostNone ends the flows and fails the test if a packet was lost.
func (all flows) lostNone(t *testing.T) {
	t.Helper()
	for name, p := range all {
		if r := p.Stop(); r.Lost != 0 || len(r.Failed) != 0 {
			t.Errorf("%s: %s", name, r)
		}
	}
}

// left lists what of a host is flannel's still: rules, and routes on its devices that
// are not ours.
func (f flannel) left(t *testing.T) (out []string) {
	t.Helper()
	c := nft(t, f.host.Namespace)
	tables, err := c.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	chains, err := c.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if strings.Contains(strings.ToLower(table.Name), "flannel") {
			out = append(out, "table "+table.Name)
		}
	}
	for _, chain := range chains {
		if strings.Contains(strings.ToLower(chain.Name), "flannel") {
			out = append(out, "chain "+chain.Name)
		}
	}
	err = f.host.Namespace.netlink(func(n *netlink.Handle) error {
		for _, family := range f.host.lab.Families() {
			name := flannelNames[family]
			if f.gateway {
				name = hostInterface
			}
			link, err := n.LinkByName(name)
			if err != nil {
				return err
			}
			routes, err := n.RouteList(link, subnet.PerFamily[int]{unix.AF_INET, unix.AF_INET6}[family])
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Protocol != ourProtocol && r.Protocol != unix.RTPROT_KERNEL && r.Gw != nil && !r.Dst.IP.IsUnspecified() {
					out = append(out, r.String())
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// isOurs checks that a host is a node of ripstopd's on flannel's devices: with the
// same subnet and MAC, and entries of ours for all peers, none of another.
func (f flannel) isOurs(t *testing.T, all []flannel) {
	t.Helper()
	if env, err := f.host.Env(); err != nil || env.Subnets != f.subnets {
		t.Errorf("%s has %v, %v, had %s", f.host.Name, env, err, f.subnets)
	}
	if left := f.left(t); len(left) > 0 {
		t.Errorf("%s: flannel has left: %q", f.host.Name, left)
	}
	list := strings.Join(mustPicture(t, f.host), "\n")
	for _, family := range f.host.lab.Families() {
		var want []string
		if !f.gateway {
			want = []string{fmt.Sprintf("device %s vni 1 port 8472 local %s", flannelNames[family], f.host.Address(family)), "mac " + f.macs[family].String()}
		}
		for _, peer := range all {
			switch {
			case peer.host == f.host:
			case f.direct:
				want = append(want, fmt.Sprintf("route %s via %s dev eth0", peer.subnets[family], peer.host.Address(family)))
			default:
				want = append(want, fmt.Sprintf("route %s via ", peer.subnets[family]), fmt.Sprintf("fdb %s %s dev %s", peer.host.Address(family), peer.macs[family], flannelNames[family]))
			}
		}
		for _, text := range want {
			if !strings.Contains(list, text) {
				t.Errorf("%s lacks %q, it has\n%s", f.host.Name, text, list)
			}
		}
	}
	got, err := openStore(t, f.host.lab).Get(t.Context(), f.key())
	if err != nil || got.Count != 1 {
		t.Fatalf("%s: its record: %v, %v", f.host.Name, got, err)
	}
	for family, mac := range f.macs {
		if f.subnets[family].IsValid() && !f.gateway && !strings.Contains(string(got.Kvs[0].Value), mac.String()) {
			t.Errorf("%s: its record has another MAC: %s", f.host.Name, got.Kvs[0].Value)
		}
	}
}
