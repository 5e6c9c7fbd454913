package kernel

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// patience is how long is waited for what must come: far longer than it takes, also on a
// machine that is busy with other tests.
const patience = time.Minute

// heardEvents are how many the kernel announced. It tells of what it does by itself, too: a
// moment after a link comes up it notices that it has no carrier (linkwatch_do_dev).
// caused are those that it did for somebody, who is not named where he wrote in /proc/sys.
type heardEvents struct{ all, caused int }

// listen subscribes to the kernel's events and returns a function that counts
// those since its last call.
func listen(t *testing.T, k *Kernel) func() heardEvents {
	t.Helper()
	s, err := dial(k.ns, listenerBuffer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	if err := s.join(watchGroups...); err != nil {
		t.Fatal(err)
	}
	return func() (n heardEvents) {
		t.Helper()
		time.Sleep(30 * time.Millisecond)
		for {
			size, failed := 0, error(nil)
			if err := s.raw.Control(func(fd uintptr) {
				size, _, failed = unix.Recvfrom(int(fd), s.in, unix.MSG_DONTWAIT)
			}); err != nil {
				t.Fatal(err)
			}
			if failed == unix.EAGAIN {
				return n
			}
			if failed != nil {
				t.Fatalf("events are lost: %v", failed)
			}
			for m := range messages(s.in[:size]) {
				if n.all++; m.pid != 0 || m.typ == unix.RTM_NEWNETCONF {
					n.caused++
				}
			}
		}
	}
}

func device(v6 bool) backend.Device {
	d := backend.Device{
		Name: "ripstop.1", VNI: 1, Port: 8472, Local: netip.MustParseAddr("192.0.2.1"),
		MAC: backend.MAC{2, 0, 0, 0, 0, 1}, MTU: 1450,
	}
	if v6 {
		d.Name, d.Local = "ripstop-v6.1", netip.MustParseAddr("2001:db8::1")
	}
	return d
}

// peers is a device with n peers.
func peers(n int, v6 bool) *backend.State {
	d := device(v6)
	s := backend.NewState(d)
	for i := range n {
		hi, lo := byte(i>>8), byte(i)
		gateway := netip.AddrFrom4([4]byte{10 + byte(i>>16), hi, lo, 0})
		remote, bits := netip.AddrFrom4([4]byte{172, 16 + byte(i>>16), hi, lo}), 24
		if v6 {
			gateway = netip.AddrFrom16([16]byte{0xfd, byte(i >> 16), hi, lo, 1})
			remote, bits = netip.AddrFrom16([16]byte{0x20, 1, byte(i >> 16), hi, lo}), 64
		}
		mac := backend.MAC{2, 1, 0, byte(i >> 16), hi, lo}
		hop := backend.Nexthop{Dev: d.Name, Gateway: gateway}
		s.Put(backend.FDB{Dev: d.Name, MAC: mac, Remote: remote})
		s.Put(backend.Neighbour{Dev: d.Name, IP: gateway, MAC: mac})
		s.Put(hop)
		s.Put(backend.Route{Dst: netip.PrefixFrom(gateway, bits), Via: hop})
	}
	return s
}

func reach(t testing.TB, k *Kernel, want *backend.State) {
	t.Helper()
	have, err := k.Dump(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range backend.Execute(t.Context(), k, have, backend.Diff(have, want)) {
		t.Fatal(f)
	}
	if have, err = k.Dump(t.Context()); err != nil || !have.Equal(want) {
		t.Fatalf("dump differs (%v).\nhave:\n%s\nwant:\n%s", err, have, want)
	}
}

// run carries out one op and wants success.
func run(t testing.TB, k *Kernel, v backend.Verb, e backend.Entry) {
	t.Helper()
	if err := k.Apply(t.Context(), []backend.Op{{Verb: v, Entry: e}})[0]; err != nil {
		t.Fatalf("%s %s: %v", v, e, err)
	}
}

// TestInvariant7SecondPassMakesNoEvent also takes 5,000 peers in and out.
func TestInvariant7SecondPassMakesNoEvent(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		k := openAt(t, kerneltest.Namespace(t))
		heard := listen(t, k)
		want := peers(5000, v6)
		reach(t, k, want)
		if n := heard().all; n < 20000 {
			t.Fatalf("first pass made %d events only", n)
		}
		// Another Kernel, as after a restart.
		again := openAt(t, k.ns)
		have, err := again.Dump(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if ops := backend.Diff(have, want); len(ops) != 0 {
			t.Fatalf("second pass has %d ops", len(ops))
		}
		if n := heard().all; n != 0 {
			t.Fatalf("second pass made %d events", n)
		}
		reach(t, again, &backend.State{})
	}
}

// TestDeviceMakesNoLinkLocal holds also after it was down and up again.
func TestDeviceMakesNoLinkLocal(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	d := device(true)
	run(t, k, backend.Add, d)
	down := func() {
		kerneltest.Do(t, ns, func() error {
			l, err := netlink.LinkByName(d.Name)
			if err == nil {
				err = netlink.LinkSetDown(l)
			}
			return err
		})
	}
	down()
	run(t, k, backend.Replace, d)
	var addrs []netlink.Addr
	kerneltest.Do(t, ns, func() (err error) {
		l, err := netlink.LinkByName(d.Name)
		if err == nil {
			addrs, err = netlink.AddrList(l, netlink.FAMILY_ALL)
		}
		return err
	})
	if len(addrs) != 0 {
		t.Fatalf("addresses: %v", addrs)
	}
}

// TestLinkLocalOfAnotherHandGoes: a device that fits but for the address that
// the kernel gave it is kept, and loses that.
func TestLinkLocalOfAnotherHandGoes(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		ns := kerneltest.Namespace(t)
		k := openAt(t, ns)
		d := device(v6)
		flap := func(change func(netlink.Link) error) {
			kerneltest.Do(t, ns, func() error {
				l, err := netlink.LinkByName(d.Name)
				if err == nil {
					err = errors.Join(change(l), netlink.LinkSetUp(l))
				}
				return err
			})
		}
		kerneltest.Do(t, ns, func() error {
			return netlink.LinkAdd(&netlink.Vxlan{
				LinkAttrs: netlink.LinkAttrs{Name: d.Name, MTU: d.MTU, HardwareAddr: d.MAC[:]},
				VxlanId:   int(d.VNI), Port: int(d.Port), SrcAddr: d.Local.AsSlice(),
			})
		})
		flap(func(netlink.Link) error { return nil })
		have, err := k.Dump(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if found, _ := have.Device(d.Name); !found.LinkLocal || found.Misfit != "" {
			t.Errorf("found %s", found)
		}
		n := 0
		for e := range have.OfKind(backend.KindAddress) {
			if a := e.(backend.Address); a.Prefix.Addr().IsLinkLocalUnicast() {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d link-local addresses:\n%s", n, have)
		}
		reach(t, k, peers(3, v6))
		flap(netlink.LinkSetDown)
		reach(t, k, peers(3, v6))
	}
}

// TestCarrierIsGivenBack: a device that another hand has taken its carrier from
// by protodown takes no nexthops. What that hand gives as its reason does not
// matter.
func TestCarrierIsGivenBack(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		k := openAt(t, kerneltest.Namespace(t))
		want := peers(3, v6)
		reach(t, k, want)
		index, err := k.indexOf(t.Context(), device(v6).Name)
		if err != nil {
			t.Fatal(err)
		}
		err = k.request(t.Context(), func(w *builder, seq uint32) {
			host.PutUint32(w.begin(unix.RTM_SETLINK, 0, seq, sizeLinkMessage)[4:], uint32(index))
			reasons := w.nest(unix.IFLA_PROTO_DOWN_REASON)
			w.u32(unix.IFLA_PROTO_DOWN_REASON_MASK, 4)
			w.u32(unix.IFLA_PROTO_DOWN_REASON_VALUE, 4)
			w.close(reasons)
			w.u8(unix.IFLA_PROTO_DOWN, 1)
			w.ask()
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		// Nexthops go a moment later, from a work queue (linkwatch_do_dev).
		for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			have, err := k.Dump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			d, _ := have.Device(device(v6).Name)
			if !d.Down {
				t.Fatalf("a device without a carrier is not down: %s", d)
			}
			if !have.Has(backend.Nexthop{Dev: d.Name, Gateway: gatewayOf(want)}) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("nexthops outlive the carrier:\n%s", have)
			}
		}
		reach(t, k, want)
	}
}

// gatewayOf is that of one of a state's nexthops.
func gatewayOf(s *backend.State) netip.Addr {
	for e := range s.OfKind(backend.KindNexthop) {
		return e.(backend.Nexthop).Gateway
	}
	return netip.Addr{}
}

func TestMisfitsAreNamed(t *testing.T) {
	base := func() *netlink.Vxlan {
		return &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "ripstop.1"}, VxlanId: 1, Port: 8472, SrcAddr: []byte{192, 0, 2, 1}}
	}
	for want, change := range map[string]func(*netlink.Vxlan){
		"collects metadata":                      func(v *netlink.Vxlan) { v.FlowBased, v.VxlanId = true, 0 },
		"sends to the group or remote 192.0.2.9": func(v *netlink.Vxlan) { v.Group = []byte{192, 0, 2, 9} },
		"has no local address":                   func(v *netlink.Vxlan) { v.SrcAddr = nil },
		"has group based policy":                 func(v *netlink.Vxlan) { v.GBP = true },
		"answers ARP and ND for others":          func(v *netlink.Vxlan) { v.Proxy = true },
		"short-circuits routes":                  func(v *netlink.Vxlan) { v.RSC = true },
		"reports unknown MACs":                   func(v *netlink.Vxlan) { v.L2miss = true },
		"reports unknown neighbours":             func(v *netlink.Vxlan) { v.L3miss = true },
		"has a TTL of its own":                   func(v *netlink.Vxlan) { v.TTL = 1 },
		"has a TOS of its own":                   func(v *netlink.Vxlan) { v.TOS = 8 },
		"limits its FDB":                         func(v *netlink.Vxlan) { v.Limit = 2 },
		"has source ports of its own":            func(v *netlink.Vxlan) { v.PortLow, v.PortHigh = 1000, 1001 },
		"is a port of br0":                       nil,
		"sends to the group or remote 239.1.1.1": func(v *netlink.Vxlan) { v.Group, v.VtepDevIndex = []byte{239, 1, 1, 1}, 1 },
		"":                                       func(*netlink.Vxlan) {},
	} {
		t.Run(want, func(t *testing.T) {
			ns := kerneltest.Namespace(t)
			k := openAt(t, ns)
			kerneltest.Do(t, ns, func() error {
				v := base()
				if change != nil {
					change(v)
					return netlink.LinkAdd(v)
				}
				br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
				return errors.Join(netlink.LinkAdd(br), netlink.LinkAdd(v), netlink.LinkSetMaster(v, br))
			})
			have, err := k.Dump(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if d, _ := have.Device("ripstop.1"); d.Misfit != want {
				t.Fatalf("misfit is %q", d.Misfit)
			}
			reach(t, k, peers(3, false))
		})
	}
}

// TestStraysAndOddEntriesAreMended covers what bears our mark and is of no form
// that we make.
func TestStraysAndOddEntriesAreMended(t *testing.T) {
	for name, harm := range map[string]func(w *builder, seq uint32, index int){
		"nexthop not onlink": func(w *builder, seq uint32, index int) {
			h := w.begin(unix.RTM_NEWNEXTHOP, exclusiveFlags, seq, sizeNexthopMessage)
			h[0], h[2] = unix.AF_INET, Protocol
			w.u32(unix.NHA_ID, 5)
			w.u32(unix.NHA_OIF, uint32(index))
		},
		"blackhole nexthop": func(w *builder, seq uint32, _ int) {
			h := w.begin(unix.RTM_NEWNEXTHOP, exclusiveFlags, seq, sizeNexthopMessage)
			h[0], h[2] = unix.AF_INET6, Protocol
			w.u32(unix.NHA_ID, 5)
			w.attr(unix.NHA_BLACKHOLE, 0)
		},
		"nexthop group": func(w *builder, seq uint32, _ int) {
			h := w.begin(unix.RTM_NEWNEXTHOP, exclusiveFlags, seq, sizeNexthopMessage)
			h[0], h[2] = unix.AF_UNSPEC, Protocol
			w.u32(unix.NHA_ID, 5)
			host.PutUint32(w.attr(unix.NHA_GROUP, 8), firstID)
		},
		"second nexthop": func(w *builder, seq uint32, index int) {
			encodeNexthop(w, seq, backend.Add, backend.Nexthop{Gateway: netip.MustParseAddr("10.0.1.0")}, 5, index)
		},
		"blackhole route": func(w *builder, seq uint32, _ int) {
			h := w.begin(unix.RTM_NEWROUTE, replaceFlags, seq, sizeRouteMessage)
			h[0], h[1], h[4], h[5], h[7] = unix.AF_INET, 24, unix.RT_TABLE_MAIN, Protocol, unix.RTN_BLACKHOLE
			w.addr(unix.RTA_DST, netip.MustParseAddr("10.0.1.0"))
		},
		"blackhole route v6": func(w *builder, seq uint32, _ int) {
			h := w.begin(unix.RTM_NEWROUTE, replaceFlags, seq, sizeRouteMessage)
			h[0], h[1], h[4], h[5], h[7] = unix.AF_INET6, 64, unix.RT_TABLE_MAIN, Protocol, unix.RTN_BLACKHOLE
			w.addr(unix.RTA_DST, netip.MustParseAddr("fd00:1:100::"))
		},
		"plain route": func(w *builder, seq uint32, index int) {
			h := w.begin(unix.RTM_NEWROUTE, replaceFlags, seq, sizeRouteMessage)
			h[0], h[1], h[4], h[5], h[7] = unix.AF_INET, 24, unix.RT_TABLE_MAIN, Protocol, unix.RTN_UNICAST
			host.PutUint32(h[8:], unix.RTNH_F_ONLINK)
			w.addr(unix.RTA_DST, netip.MustParseAddr("10.0.1.0"))
			w.addr(unix.RTA_GATEWAY, netip.MustParseAddr("10.0.1.0"))
			w.u32(unix.RTA_OIF, uint32(index))
		},
		"plain route v6": func(w *builder, seq uint32, index int) {
			h := w.begin(unix.RTM_NEWROUTE, replaceFlags, seq, sizeRouteMessage)
			h[0], h[1], h[4], h[5], h[7] = unix.AF_INET6, 64, unix.RT_TABLE_MAIN, Protocol, unix.RTN_UNICAST
			w.addr(unix.RTA_DST, netip.MustParseAddr("fd00:1:100::"))
			w.u32(unix.RTA_OIF, uint32(index))
		},
		"FDB with a port": func(w *builder, seq uint32, index int) {
			encodeFDB(w, seq, backend.Replace, backend.FDB{MAC: backend.MAC{2, 1, 0, 0, 0, 1}, Remote: netip.MustParseAddr("172.16.0.1")}, index)
			w.u16BE(unix.NDA_PORT, 99)
		},
		"FDB with a VNI": func(w *builder, seq uint32, index int) {
			encodeFDB(w, seq, backend.Replace, backend.FDB{MAC: backend.MAC{2, 1, 0, 0, 0, 1}, Remote: netip.MustParseAddr("172.16.0.1")}, index)
			w.u32(unix.NDA_VNI, 99)
		},
		"FDB of another": func(w *builder, seq uint32, index int) {
			encodeFDB(w, seq, backend.Replace, backend.FDB{MAC: backend.MAC{2, 1, 0, 9, 9, 9}, Remote: netip.MustParseAddr("172.16.0.1")}, index)
		},
		"dynamic FDB": func(w *builder, seq uint32, index int) {
			encodeFDB(w, seq, backend.Replace, backend.FDB{MAC: backend.MAC{2, 1, 0, 0, 0, 1}, Remote: netip.MustParseAddr("172.16.0.1")}, index)
			host.PutUint16(w.b[w.start+unix.SizeofNlMsghdr+8:], unix.NUD_REACHABLE)
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := openAt(t, kerneltest.Namespace(t))
			want := peers(3, false)
			for e := range peers(3, true).All() {
				want.Put(e)
			}
			reach(t, k, want)
			index := k.index["ripstop.1"]
			if strings.HasSuffix(name, "v6") {
				index = k.index["ripstop-v6.1"]
			}
			if err := k.request(t.Context(), func(w *builder, seq uint32) {
				harm(w, seq, index)
				w.ask()
			}, nil); err != nil {
				t.Fatalf("do harm: %v", err)
			}
			have, err := k.Dump(t.Context())
			if err != nil || have.Equal(want) {
				t.Fatalf("dump does not show it: %v", err)
			}
			reach(t, k, want)
		})
	}
}

// TestFDBNexthopIsMended has an FDB entry that leads through a nexthop object.
func TestFDBNexthopIsMended(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	reach(t, k, peers(1, false))
	mac := backend.MAC{2, 1, 0, 0, 0, 0}
	run(t, k, backend.Delete, backend.FDB{Dev: "ripstop.1", MAC: mac})
	for _, write := range []func(w *builder, seq uint32){
		func(w *builder, seq uint32) {
			h := w.begin(unix.RTM_NEWNEXTHOP, exclusiveFlags, seq, sizeNexthopMessage)
			h[0], h[2] = unix.AF_INET, unix.RTPROT_ZEBRA
			w.u32(unix.NHA_ID, 5)
			w.addr(unix.NHA_GATEWAY, netip.MustParseAddr("172.16.0.9"))
			w.attr(attrNexthopFDB, 0)
		},
		func(w *builder, seq uint32) {
			h := w.begin(unix.RTM_NEWNEXTHOP, exclusiveFlags, seq, sizeNexthopMessage)
			h[0], h[2] = unix.AF_UNSPEC, unix.RTPROT_ZEBRA
			w.u32(unix.NHA_ID, 6)
			host.PutUint32(w.attr(unix.NHA_GROUP, 8), 5)
			w.attr(attrNexthopFDB, 0)
		},
		func(w *builder, seq uint32) {
			encodeFDB(w, seq, backend.Replace, backend.FDB{MAC: mac}, k.index["ripstop.1"])
			w.u32(attrNeighNexthopID, 6)
		},
	} {
		if err := k.request(t.Context(), func(w *builder, seq uint32) { write(w, seq); w.ask() }, nil); err != nil {
			t.Fatalf("do harm: %v", err)
		}
	}
	reach(t, k, peers(1, false))
}

func TestErrorsHaveTheKernelsWords(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	reach(t, k, peers(1, false))
	foreign := backend.Route{Dst: netip.MustParsePrefix("10.200.0.0/16"), Via: backend.Nexthop{Dev: "ripstop.1", Gateway: netip.MustParseAddr("10.0.0.0")}}
	kerneltest.Do(t, k.ns, func() error {
		return netlink.RouteAdd(&netlink.Route{LinkIndex: 1, Dst: ipNet(foreign.Dst), Protocol: unix.RTPROT_BGP})
	})
	for _, c := range []struct {
		op   backend.Op
		want string
	}{
		{backend.Op{Entry: backend.Nexthop{Dev: "lo", Gateway: netip.MustParseAddr("127.0.0.1")}}, "invalid gateway"},
		{backend.Op{Entry: foreign}, "in the way: a route of protocol bgp dev lo to 10.200.0.0/16 stands there"},
	} {
		if err := k.Apply(t.Context(), []backend.Op{c.op})[0]; err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %q does not say: %s", c.op, err, c.want)
		}
	}
	k2 := openAt(t, kerneltest.Namespace(t))
	taken := device(false)
	kerneltest.Do(t, k2.ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return unix.Bind(fd, &unix.SockaddrInet4{Port: int(taken.Port)})
	})
	err := k2.Apply(t.Context(), []backend.Op{{Entry: taken}})[0]
	if !errors.Is(err, backend.ErrInTheWay) || !strings.Contains(err.Error(), "UDP port") {
		t.Errorf("error with the UDP port taken: %v", err)
	}
	if have, err := k2.Dump(t.Context()); err != nil || have.Len() != 0 {
		t.Errorf("half a device is left (%v):\n%s", err, have)
	}
}

// TestIPv4AloneWhereIPv6IsOff holds where IPv6 is switched off for new devices.
func TestIPv4AloneWhereIPv6IsOff(t *testing.T) {
	ns := kerneltest.Namespace(t)
	kerneltest.Do(t, ns, func() error {
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0))
	})
	k := openAt(t, ns)
	if err := k.Preflight(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := peers(3, false)
	d := device(false)
	d.MTU = 1000 // Too small for IPv6, which is then not there on the device.
	want.Put(d)
	reach(t, k, want)
}

func TestClosed(t *testing.T) {
	k, err := OpenAt(kerneltest.Namespace(t), func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := k.Dump(t.Context()); !errors.Is(err, errClosed) {
		t.Fatalf("dump: %v", err)
	}
}

// TestRouteKeepsItsMTU while that of its device changes, below it and back.
func TestRouteKeepsItsMTU(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		ns := kerneltest.Namespace(t)
		k := openAt(t, ns)
		want := peers(2, v6)
		for e := range peers(1, v6).OfKind(backend.KindRoute) {
			r := e.(backend.Route)
			r.MTU = 1350
			want.Put(r)
		}
		reach(t, k, want)
		for _, mtu := range []int{1300, 1400, 1450} {
			d := device(v6)
			d.MTU = mtu
			run(t, k, backend.Replace, d)
		}
		have, err := k.Dump(t.Context())
		if err != nil || !have.Equal(want) {
			t.Errorf("%v, have\n%s\nwant\n%s", err, have, want)
		}
	}
}
