package kernel

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// laid is a device of another's, bound to a link of the host's, with two peers.
type laid struct {
	device backend.Device
	subnet [2]netip.Prefix
	remote [2]netip.Addr
	mac    [2]backend.MAC
	// gateway is what ours goes by; in IPv4 it is the other's too.
	gateway [2]netip.Addr
}

func layOut(t *testing.T, ns *os.File, v6 bool) laid {
	t.Helper()
	prefixes, addrs := func(texts ...string) (out [2]netip.Prefix) {
		for i, text := range texts {
			out[i] = netip.MustParsePrefix(text)
		}
		return out
	}, func(texts ...string) (out [2]netip.Addr) {
		for i, text := range texts {
			out[i] = netip.MustParseAddr(text)
		}
		return out
	}
	l := laid{
		device: backend.Device{Name: "flannel.1", Local: addrs("192.0.2.1")[0]},
		subnet: prefixes("10.5.1.0/24", "10.5.2.0/24"), remote: addrs("192.0.2.2", "192.0.2.3"), gateway: addrs("10.5.1.0", "10.5.2.0"),
		mac: [2]backend.MAC{{2, 0, 0, 0, 1, 1}, {2, 0, 0, 0, 1, 2}},
	}
	if v6 {
		l.device.Name, l.device.Local = "flannel-v6.1", addrs("2001:db8::1")[0]
		l.subnet, l.remote, l.gateway = prefixes("fd00:5:1::/64", "fd00:5:2::/64"), addrs("2001:db8::2", "2001:db8::3"), addrs("fe80::1:1", "fe80::1:2")
	}
	l.device.VNI, l.device.Port, l.device.MAC, l.device.MTU = 1, 8472, backend.MAC{2, 9, 9, 9, 9, 9}, 1400
	kerneltest.Do(t, ns, func() error {
		lower := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "far"}
		if err := errors.Join(netlink.LinkAdd(lower), netlink.LinkSetUp(lower)); err != nil {
			return err
		}
		v := &netlink.Vxlan{
			LinkAttrs: netlink.LinkAttrs{Name: l.device.Name, HardwareAddr: l.device.MAC[:], MTU: l.device.MTU},
			VxlanId:   1, Port: 8472, SrcAddr: l.device.Local.AsSlice(), VtepDevIndex: lower.Index,
		}
		if err := errors.Join(netlink.LinkAdd(v), netlink.LinkSetUp(v)); err != nil {
			return err
		}
		for i, s := range l.subnet {
			mac, base := l.mac[i][:], s.Addr().AsSlice()
			err := errors.Join(
				netlink.NeighSet(&netlink.Neigh{LinkIndex: v.Index, State: netlink.NUD_PERMANENT, IP: base, HardwareAddr: mac}),
				netlink.NeighSet(&netlink.Neigh{LinkIndex: v.Index, State: netlink.NUD_PERMANENT, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, IP: l.remote[i].AsSlice(), HardwareAddr: mac}),
				l.lay(i, v, nil))
			if err != nil {
				return err
			}
		}
		// Others' own, which is not of that form.
		return errors.Join(
			l.lay(0, v, func(r *netlink.Route) { r.Table = 77 }), l.lay(0, v, func(r *netlink.Route) { r.Priority = 99 }),
			l.lay(1, v, func(r *netlink.Route) { r.Dst, r.Protocol = wide(l.subnet[1]), unix.RTPROT_STATIC }))
	})
	return l
}

// wide is a prefix of which a subnet is a part, with another base address.
func wide(p netip.Prefix) *net.IPNet {
	w := netip.PrefixFrom(p.Addr(), p.Bits()/2).Masked()
	return &net.IPNet{IP: w.Addr().AsSlice(), Mask: net.CIDRMask(w.Bits(), w.Addr().BitLen())}
}

// lay makes the route to a peer as flannel does, or otherwise.
func (l laid) lay(i int, v netlink.Link, change func(*netlink.Route)) error {
	s := l.subnet[i]
	r := &netlink.Route{
		LinkIndex: v.Attrs().Index, Gw: s.Addr().AsSlice(), Flags: int(netlink.FLAG_ONLINK),
		Dst: &net.IPNet{IP: s.Addr().AsSlice(), Mask: net.CIDRMask(s.Bits(), s.Addr().BitLen())},
	}
	if change != nil {
		change(r)
	}
	return netlink.RouteReplace(r)
}

// want is what this node's own planner would want on the device.
func (l laid) want(peers ...int) *backend.State {
	d := l.device
	d.Lower = "eth0"
	s := backend.NewState(d)
	for _, i := range peers {
		via := backend.Nexthop{Dev: d.Name, Gateway: l.gateway[i]}
		for _, e := range []backend.Entry{
			backend.FDB{Dev: d.Name, MAC: l.mac[i], Remote: l.remote[i]}, backend.Neighbour{Dev: d.Name, IP: via.Gateway, MAC: l.mac[i]},
			via, backend.Route{Dst: l.subnet[i], Via: via},
		} {
			s.Put(e)
		}
	}
	return s
}

// foreign are the routes on the device that bear another's number.
func (l laid) foreign(t *testing.T, ns *os.File) (out []string) {
	kerneltest.Do(t, ns, func() error {
		v, err := netlink.LinkByName(l.device.Name)
		if err != nil {
			return err
		}
		family := unix.AF_INET
		if l.subnet[0].Addr().Is6() {
			family = unix.AF_INET6
		}
		for _, table := range []int{unix.RT_TABLE_MAIN, 77} {
			filter := &netlink.Route{Table: table, LinkIndex: v.Attrs().Index}
			routes, err := netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_OIF)
			if err != nil {
				return err
			}
			for _, r := range routes {
				if r.Protocol != Protocol && r.Protocol != unix.RTPROT_KERNEL {
					out = append(out, r.String())
				}
			}
		}
		return nil
	})
	return out
}

// TestAdoptedDeviceIsOurs, with what flannel laid over it: each route becomes ours by
// one replace, those of peers that are gone go, and what is not of flannel's form is
// left alone. It stays bound, and a new one in its place is not.
func TestAdoptedDeviceIsOurs(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			ns := kerneltest.Namespace(t)
			l := layOut(t, ns, v6)
			k := openAt(t, ns)
			if have, err := k.Dump(t.Context()); err != nil || have.Len() != 0 {
				t.Fatalf("another's counts as ours: %v\n%s", err, have)
			}
			if err := k.Adopt(t.Context(), l.device.Name); err != nil {
				t.Fatal(err)
			}
			have, err := k.Dump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for i := range l.subnet {
				r := backend.Route{Dst: l.subnet[i], Plain: true, Protocol: unix.RTPROT_BOOT, Via: backend.Nexthop{Dev: l.device.Name, Gateway: l.subnet[i].Addr()}}
				if !have.Has(r) || !have.Forwards(r) {
					t.Errorf("lacks %s:\n%s", r, have)
				}
			}
			if d, ok := have.Device(l.device.Name); !ok || d.Lower != "eth0" || d.Misfit != "" {
				t.Errorf("device is %s", d)
			}
			ops := backend.Diff(have, l.want(0))
			for _, op := range ops {
				if r, ok := op.Entry.(backend.Route); ok && (op.Verb == backend.Delete) != (r.Dst == l.subnet[1]) || op.Entry.Kind() == backend.KindDevice && op.Verb != backend.Replace {
					t.Errorf("op %s", op)
				}
			}
			reach(t, k, l.want(0))
			if left := l.foreign(t, ns); len(left) != 3 {
				t.Errorf("of others' routes there are %q", left)
			}
			reach(t, k, l.want(0, 1))

			run(t, k, backend.Delete, l.device)
			unbound := l.want(0, 1)
			d, _ := unbound.Device(l.device.Name)
			d.Lower = ""
			unbound.Put(d)
			have, err = k.Dump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range backend.Execute(t.Context(), k, have, backend.Diff(have, l.want(0, 1))) {
				t.Fatal(f)
			}
			again := openAt(t, ns)
			if have, err = again.Dump(t.Context()); err != nil || !have.Equal(unbound) {
				t.Fatalf("of a new device another daemon sees, %v\n%s", err, have)
			}
			if ops := backend.Diff(have, l.want(0, 1)); len(ops) != 0 {
				t.Errorf("the unbound one is not as wanted: %v", ops)
			}
			if err := again.Release(t.Context(), l.device.Name); err != nil {
				t.Fatal(err)
			}
			if have, err = again.Dump(t.Context()); err != nil || len(slices.Collect(have.OfKind(backend.KindDevice))) != 0 {
				t.Errorf("a released device is ours: %v\n%s", err, have)
			}
		})
	}
}

// TestEachPrefixOfATakeoverForwards: wherever a takeover ends, packets to each peer find
// a route and all that it needs.
func TestEachPrefixOfATakeoverForwards(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			ns := kerneltest.Namespace(t)
			l := layOut(t, ns, v6)
			k := openAt(t, ns)
			if err := k.Adopt(t.Context(), l.device.Name); err != nil {
				t.Fatal(err)
			}
			have, err := k.Dump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ops := backend.Diff(have, l.want(0, 1))
			if len(ops) < 5 {
				t.Errorf("ops %v", ops)
			}
			for _, op := range ops {
				run(t, k, op.Verb, op.Entry)
				if have, err = k.Dump(t.Context()); err != nil {
					t.Fatal(err)
				}
				for _, s := range l.subnet {
					r, there := have.At(backend.Route{Dst: s})
					if !there || !have.Forwards(r.(backend.Route)) {
						t.Errorf("after %s packets to %s go nowhere:\n%s", op, s, have)
					}
				}
			}
			if ops := backend.Diff(have, l.want(0, 1)); len(ops) > 0 {
				t.Errorf("left to do: %v", ops)
			}
		})
	}
}

// TestFlannelsHandOnAnAdoptedDevice: a route of ours that is replaced by one of
// flannel's form is told as what it is, so that one replace brings ours back.
func TestFlannelsHandOnAnAdoptedDevice(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			ns := kerneltest.Namespace(t)
			l := layOut(t, ns, v6)
			k := openAt(t, ns)
			if err := k.Adopt(t.Context(), l.device.Name); err != nil {
				t.Fatal(err)
			}
			reach(t, k, l.want(0, 1))
			_, end := watched(t, k)
			defer end()
			have, err := k.Dump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			k.Changes() // There is doubt at first.
			do := func(f func(netlink.Link) error) {
				kerneltest.Do(t, ns, func() error {
					v, err := netlink.LinkByName(l.device.Name)
					return errors.Join(err, f(v))
				})
			}
			do(func(v netlink.Link) error { return l.lay(0, v, nil) })
			changes, doubt := k.Changes()
			if doubt {
				t.Fatal("doubt")
			}
			have.Correct(changes)
			want := backend.Route{Dst: l.subnet[0], Plain: true, Protocol: unix.RTPROT_BOOT, Via: backend.Nexthop{Dev: l.device.Name, Gateway: l.subnet[0].Addr()}}
			if !have.Has(want) {
				t.Fatalf("changes %v\n%s", changes, have)
			}
			if ops := backend.Diff(have, l.want(0, 1)); len(ops) != 1 || ops[0].Verb != backend.Replace {
				t.Errorf("ops %v", ops)
			}
			for _, f := range backend.Execute(t.Context(), k, have, backend.Diff(have, l.want(0, 1))) {
				t.Error(f)
			}
			if left := l.foreign(t, ns); len(left) != 3 {
				t.Errorf("of others' routes there are %q", left)
			}
		})
	}
}

// TestOnlyVXLANIsAdopted.
func TestOnlyVXLANIsAdopted(t *testing.T) {
	ns := kerneltest.Namespace(t)
	kerneltest.Do(t, ns, func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1"}})
	})
	k := openAt(t, ns)
	if err := k.Adopt(t.Context(), "flannel.1"); !errors.Is(err, backend.ErrInTheWay) {
		t.Errorf("a bridge: %v", err)
	}
	if err := k.Adopt(t.Context(), "flannel.2"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("nothing: %v", err)
	}
}

// TestSurveyTellsOfFlannel: of its device what it is judged by, and of its daemon
// whether it runs in the same network namespace.
func TestSurveyTellsOfFlannel(t *testing.T) {
	ns, elsewhere := kerneltest.Namespace(t), kerneltest.Namespace(t)
	l := layOut(t, ns, false)
	k := openAt(t, ns)
	networks := []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}
	survey := func() backend.Survey {
		s, err := k.Survey(t.Context(), networks)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	want := backend.Tunnel{Name: "flannel.1", VNI: 1, Port: 8472, MAC: l.device.MAC}
	if s := survey(); len(s.Tunnels) != 1 || s.Tunnels[0] != want || s.Flanneld != 0 || len(s.Routes) < 2 {
		t.Errorf("before: %+v", s)
	}
	flanneld := filepath.Join(t.TempDir(), "flanneld")
	sleep, err := exec.LookPath("sleep")
	if err == nil {
		err = os.Symlink(sleep, flanneld)
	}
	if err != nil {
		t.Fatal(err)
	}
	start := func(in *os.File) *exec.Cmd {
		cmd := exec.Command(flanneld, "60")
		kerneltest.Do(t, in, cmd.Start)
		return cmd
	}
	end := func(cmd *exec.Cmd) { _ = errors.Join(cmd.Process.Kill(), cmd.Wait()) }
	there := start(elsewhere)
	defer end(there)
	here := start(ns)
	named := func() bool { return survey().Flanneld == here.Process.Pid }
	for deadline := time.Now().Add(patience); !named(); time.Sleep(5 * time.Millisecond) { // It has its name once it has begun.
		if time.Now().After(deadline) {
			t.Fatalf("it sees process %d, %d is flanneld", survey().Flanneld, here.Process.Pid)
		}
	}
	end(here)
	if err := k.Adopt(t.Context(), "flannel.1"); err != nil {
		t.Fatal(err)
	}
	want.Adopted = true
	s := survey()
	if len(s.Tunnels) != 1 || s.Tunnels[0] != want || s.Flanneld != 0 {
		t.Errorf("after: %+v", s)
	}
	if at := slices.IndexFunc(s.Routes, func(r backend.HostRoute) bool { return strings.HasPrefix(r.Dev, "flannel") }); at >= 0 {
		t.Errorf("route %+v of an adopted device", s.Routes[at])
	}
	interfaces, err := k.Interfaces(t.Context())
	if err != nil || slices.ContainsFunc(interfaces, func(i backend.Interface) bool { return i.Name == "flannel.1" }) {
		t.Errorf("an adopted device is an interface of the host's: %v, %v", interfaces, err)
	}
}
