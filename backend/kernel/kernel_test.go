package kernel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestKernelConforms(t *testing.T) {
	backendtest.Conformance(t, func(t *testing.T) backendtest.Harness {
		ns := kerneltest.Namespace(t)
		k := openAt(t, ns)
		h := &hand{t: t, ns: ns, k: k, other: openAt(t, ns)}
		return backendtest.Harness{Kernel: k, Hand: h, Others: others{h}, Links: links{h}}
	})
}

// openAt opens the kernel in a namespace, until the test ends.
func openAt(t testing.TB, ns *os.File) *Kernel {
	t.Helper()
	k, err := OpenAt(ns, backendtest.Owns)
	if err != nil {
		t.Fatalf("open kernel: %v", err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Errorf("close kernel: %v", err)
		}
	})
	return k
}

// hand changes the kernel from outside, with netlink requests that are not made
// by the code under test but for nexthops and our own routes, which another
// Kernel serves.
type hand struct {
	t     *testing.T
	ns    *os.File
	k     *Kernel // Under test: only its numbers are looked at.
	other *Kernel
	mu    sync.Mutex
}

// in runs f in the namespace with the device of an entry.
func (h *hand) in(dev string, f func(netlink.Link) error) error {
	var err error
	kerneltest.Do(h.t, h.ns, func() error {
		var l netlink.Link
		if l, err = netlink.LinkByName(dev); err == nil {
			err = f(l)
		}
		return nil
	})
	return err
}

func (h *hand) apply(op backend.Op) error {
	if _, err := h.other.Dump(context.Background()); err != nil {
		return err
	}
	return h.other.Apply(context.Background(), []backend.Op{op})[0]
}

func (h *hand) Put(e backend.Entry) error {
	switch e := e.(type) {
	case backend.Device:
		err := h.in(e.Name, func(l netlink.Link) error {
			if err := errors.Join(netlink.LinkSetMTU(l, e.MTU), netlink.LinkSetIP6AddrGenMode(l, addrGenMode(e)), sysctls(e), h.other.setTxChecksum(e.Name, !e.NoTxChecksum)); err != nil {
				return err
			}
			return h.other.request(context.Background(), func(w *builder, seq uint32) {
				host.PutUint32(w.begin(unix.RTM_NEWLINK, 0, seq, sizeLinkMessage)[4:], uint32(l.Attrs().Index))
				info := w.nest(unix.IFLA_LINKINFO)
				w.text(unix.IFLA_INFO_KIND, vxlanKind)
				data := w.nest(unix.IFLA_INFO_DATA)
				if w.u8(unix.IFLA_VXLAN_LEARNING, 0); e.Learning {
					w.b[len(w.b)-4] = 1
				}
				w.close(data)
				w.close(info)
				w.ask()
			}, nil)
		})
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return h.stand(e)
		}
		return err
	case backend.Address:
		return h.in(e.Dev, func(l netlink.Link) error {
			return netlink.AddrReplace(l, &netlink.Addr{IPNet: ipNet(e.Prefix)})
		})
	case backend.FDB:
		return h.in(e.Dev, func(l netlink.Link) error { return netlink.NeighSet(fdbNeigh(l, e)) })
	case backend.Neighbour:
		return h.in(e.Dev, func(l netlink.Link) error { return netlink.NeighSet(ipNeigh(l, e)) })
	}
	return h.apply(backend.Op{Verb: backend.Add, Entry: e})
}

func (h *hand) Remove(e backend.Entry) error {
	switch e := e.(type) {
	case backend.Device:
		return h.in(e.Name, netlink.LinkDel)
	case backend.Address:
		return h.in(e.Dev, func(l netlink.Link) error {
			return netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(e.Prefix)})
		})
	case backend.FDB:
		return h.in(e.Dev, func(l netlink.Link) error { return netlink.NeighDel(fdbNeigh(l, e)) })
	case backend.Neighbour:
		return h.in(e.Dev, func(l netlink.Link) error { return netlink.NeighDel(ipNeigh(l, e)) })
	}
	return h.apply(backend.Op{Verb: backend.Delete, Entry: e})
}

func (h *hand) Down(dev string) error { return h.in(dev, netlink.LinkSetDown) }

// stand makes a device that is up, by other means than the code under test.
func (h *hand) stand(d backend.Device) error {
	var err error
	kerneltest.Do(h.t, h.ns, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = d.Name
		var l netlink.Link = &netlink.Bridge{LinkAttrs: attrs}
		if d.VNI != 0 {
			attrs.MTU = d.MTU
			attrs.HardwareAddr = d.MAC[:]
			l = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(d.VNI), Port: int(d.Port), SrcAddr: d.Local.AsSlice()}
		}
		if err = netlink.LinkAdd(l); err == nil && d.VNI != 0 {
			err = errors.Join(netlink.LinkSetIP6AddrGenMode(l, addrGenMode(d)), sysctls(d), netlink.LinkSetUp(l))
		}
		return nil
	})
	return err
}

// sysctls gives a device of the calling thread's namespace the settings of d.
func sysctls(d backend.Device) error {
	values := map[string]string{"forwarding": "1", "rp_filter": "2"}
	if d.NoForwarding {
		values["forwarding"] = "0"
	}
	if d.PathFilter {
		values["rp_filter"] = "1"
	}
	for key, value := range values {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+d.Name+"/"+key, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

func addrGenMode(d backend.Device) int {
	if d.LinkLocal {
		return 0 // IN6_ADDR_GEN_MODE_EUI64, the kernel's own choice.
	}
	return addrGenModeNone
}

// others is the hand that makes what is not ours.
type others struct{ *hand }

func (o others) Stand(e backend.Entry) error {
	switch e := e.(type) {
	case backend.Device:
		return o.stand(e)
	case backend.Route:
		if err := o.standBridge(); err != nil {
			return err
		}
		return o.in(othersBridge, func(l netlink.Link) error {
			return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(e.Dst), Protocol: unix.RTPROT_STATIC})
		})
	case backend.Nexthop:
		o.mu.Lock()
		defer o.mu.Unlock()
		id := max(o.k.hops.last, firstID) + 1
		index, err := o.other.indexOf(context.Background(), e.Dev)
		if err != nil {
			return err
		}
		return o.other.request(context.Background(), func(w *builder, seq uint32) {
			encodeNexthop(w, seq, backend.Add, e, id, index)
			w.b[w.start+unix.SizeofNlMsghdr+2] = unix.RTPROT_ZEBRA
			w.ask()
		}, nil)
	}
	return fmt.Errorf("no such thing of another's: %s", e)
}

// othersBridge is where another's routes lead. (IPv6 turns a route to lo into
// one that rejects, ip6_route_info_create.)
const othersBridge = "others0"

func (o others) standBridge() error {
	err := o.stand(backend.Device{Name: othersBridge})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return o.in(othersBridge, netlink.LinkSetUp)
}

func (o others) Yield(e backend.Entry) error {
	switch e := e.(type) {
	case backend.Device:
		return o.in(e.Name, netlink.LinkDel)
	case backend.Route:
		return o.in(othersBridge, func(l netlink.Link) error {
			return netlink.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(e.Dst), Protocol: unix.RTPROT_STATIC})
		})
	}
	return fmt.Errorf("no such thing of another's: %s", e)
}

func (o others) Abandon() error { return o.in(othersBridge, netlink.LinkDel) }

func (o others) Stands(e backend.Entry) (stands bool, err error) {
	switch e := e.(type) {
	case backend.Device:
		err = o.in(e.Name, func(l netlink.Link) error {
			want := "bridge"
			if e.VNI != 0 {
				want = "vxlan"
			}
			stands = l.Type() == want
			return nil
		})
	case backend.Route:
		err = o.in(othersBridge, func(l netlink.Link) error {
			found, err := netlink.RouteListFiltered(netlink.FAMILY_ALL,
				&netlink.Route{Protocol: unix.RTPROT_STATIC, Dst: ipNet(e.Dst)}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_DST)
			stands = len(found) == 1 && found[0].LinkIndex == l.Attrs().Index
			return err
		})
	case backend.Nexthop:
		var all []nexthopMessage
		all, err = collect(context.Background(), o.other, func(w *builder, seq uint32) {
			w.begin(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP, seq, sizeNexthopMessage)
		}, func(m message) (nexthopMessage, bool) { return parseNexthop(m.body) })
		for _, n := range all {
			stands = stands || n.protocol == unix.RTPROT_ZEBRA && n.gateway == e.Gateway
		}
	}
	return stands, err
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func fdbNeigh(l netlink.Link, e backend.FDB) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
		State: netlink.NUD_PERMANENT, HardwareAddr: e.MAC[:], IP: e.Remote.AsSlice(),
	}
}

func ipNeigh(l netlink.Link, e backend.Neighbour) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: l.Attrs().Index, Family: int(family(e.IP)), State: netlink.NUD_PERMANENT,
		HardwareAddr: e.MAC[:], IP: e.IP.AsSlice(),
	}
}
