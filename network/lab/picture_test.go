package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ourProtocol marks the routes and nexthops of ripstopd.
const ourProtocol = 82

// picture lists all that the overlay has in a host's kernel, sorted: devices
// with their attributes, addresses, FDB entries, neighbours, nexthops and
// routes. It shares no code with the daemon's own reader. Interface indexes and
// nexthop ids are left out: a device made again has others.
func picture(h *Host) ([]string, error) {
	var out []string
	names := map[int]string{}
	var devices []string
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		links, err := n.LinkList()
		if err != nil {
			return err
		}
		for _, link := range links {
			names[link.Attrs().Index] = link.Attrs().Name
			v, ok := link.(*netlink.Vxlan)
			if !ok {
				continue
			}
			devices = append(devices, v.Name)
			out = append(out, fmt.Sprintf("device %s vni %d port %d local %s lower %d learning %v mac %s mtu %d up %v", v.Name, v.VxlanId,
				v.Port, v.SrcAddr, v.VtepDevIndex, v.Learning, v.HardwareAddr, v.MTU, v.Flags&net.FlagUp != 0))
			entries, err := pictureOf(n, v)
			if err != nil {
				return err
			}
			out = append(out, entries...)
		}
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			routes, err := n.RouteListFiltered(family, &netlink.Route{Protocol: ourProtocol}, netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				return err
			}
			for _, r := range routes {
				out = append(out, fmt.Sprintf("route %s via %s dev %s metric %d table %d mtu %d", r.Dst, r.Gw, names[r.LinkIndex], r.Priority, r.Table, r.MTU))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	hops, err := nexthops(h.Namespace)
	if err != nil {
		return nil, err
	}
	err = h.Namespace.Do(func() error {
		for _, name := range devices {
			mode, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/addr_gen_mode")
			if err != nil {
				return err
			}
			out = append(out, fmt.Sprintf("addrgenmode %s dev %s", bytes.TrimSpace(mode), name))
			for _, key := range []string{"forwarding", "rp_filter"} {
				value, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + name + "/" + key)
				if err != nil {
					return err
				}
				out = append(out, fmt.Sprintf("%s %s dev %s", key, bytes.TrimSpace(value), name))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, hop := range hops {
		out = append(out, fmt.Sprintf("nexthop via %s dev %s", hop.gateway, names[hop.device]))
	}
	slices.Sort(out)
	return out, nil
}

// pictureOf lists what hangs on a device itself.
func pictureOf(n *netlink.Handle, v *netlink.Vxlan) ([]string, error) {
	var out []string
	addrs, err := n.AddrList(v, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		out = append(out, fmt.Sprintf("address %s dev %s", a.IPNet, v.Name))
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6, unix.AF_BRIDGE} {
		neighbours, err := n.NeighList(v.Index, family)
		if err != nil {
			return nil, err
		}
		for _, e := range neighbours {
			if e.State&netlink.NUD_PERMANENT != 0 {
				kind := "neighbour"
				if family == unix.AF_BRIDGE {
					kind = "fdb"
				}
				out = append(out, fmt.Sprintf("%s %s %s dev %s", kind, e.IP, e.HardwareAddr, v.Name))
			}
		}
	}
	return out, nil
}

// hop is a nexthop of ours.
type hop struct {
	id      uint32
	device  int
	gateway netip.Addr
}

// sizeNexthop is that of struct nhmsg, in bytes.
const sizeNexthop = 8

// nexthopRequest has struct nhmsg and attributes as its body.
type nexthopRequest []byte

func (r nexthopRequest) Len() int          { return len(r) }
func (r nexthopRequest) Serialize() []byte { return r }

func nexthops(ns *Namespace) ([]hop, error) {
	var out []hop
	err := ns.Do(func() error {
		request := nl.NewNetlinkRequest(unix.RTM_GETNEXTHOP, unix.NLM_F_DUMP)
		request.AddData(nexthopRequest(make([]byte, sizeNexthop)))
		messages, err := request.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEXTHOP)
		if err != nil {
			return fmt.Errorf("list nexthops: %w", err)
		}
		for _, m := range messages {
			if len(m) < sizeNexthop || m[2] != ourProtocol {
				continue
			}
			attrs, err := nl.ParseRouteAttr(m[sizeNexthop:])
			if err != nil {
				return fmt.Errorf("list nexthops: %w", err)
			}
			var h hop
			for _, a := range attrs {
				switch a.Attr.Type {
				case unix.NHA_ID:
					h.id = binary.NativeEndian.Uint32(a.Value)
				case unix.NHA_OIF:
					h.device = int(binary.NativeEndian.Uint32(a.Value))
				case unix.NHA_GATEWAY:
					h.gateway, _ = netip.AddrFromSlice(a.Value)
				}
			}
			out = append(out, h)
		}
		return nil
	})
	return out, err
}

// deleteNexthops deletes those that match. One that is gone already is no error.
func deleteNexthops(ns *Namespace, match func(hop) bool) error {
	hops, err := nexthops(ns)
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		for _, h := range hops {
			if !match(h) {
				continue
			}
			request := nl.NewNetlinkRequest(unix.RTM_DELNEXTHOP, unix.NLM_F_ACK)
			body := binary.NativeEndian.AppendUint16(make([]byte, sizeNexthop, sizeNexthop+8), 8)
			body = binary.NativeEndian.AppendUint16(body, unix.NHA_ID)
			request.AddData(nexthopRequest(binary.NativeEndian.AppendUint32(body, h.id)))
			if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete nexthop %d: %w", h.id, err)
			}
		}
		return nil
	})
}

// mustPicture is the picture of a host that is at rest.
func mustPicture(t *testing.T, h *Host) []string {
	t.Helper()
	list, err := picture(h)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// looksLike tells whether a host's picture is the given one. A reading that a
// change came in between of counts as another.
func looksLike(h *Host, want []string) bool {
	got, err := picture(h)
	return err == nil && slices.Equal(got, want)
}

// differs says what is missing in a host's picture and what is too much.
func differs(h *Host, want []string) string {
	got, err := picture(h)
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, e := range want {
		if !slices.Contains(got, e) {
			out = append(out, "missing: "+e)
		}
	}
	for _, e := range got {
		if !slices.Contains(want, e) {
			out = append(out, "too much: "+e)
		}
	}
	return strings.Join(out, "\n")
}

// listener collects what the kernel announces of the overlay.
type listener struct {
	ns      *Namespace
	fd      int
	devices map[int]bool
}

// listen begins to, until the test ends.
func listen(t *testing.T, h *Host) *listener {
	t.Helper()
	l, err := startListening(h)
	if err != nil {
		t.Fatalf("listen in %s: %v", h.Name, err)
	}
	t.Cleanup(l.close)
	return l
}

// startListening begins to listen. What has not been taken in yet waits in a
// large buffer.
func startListening(h *Host) (*listener, error) {
	l := &listener{ns: h.Namespace, devices: map[int]bool{}}
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		links, err := n.LinkList()
		for _, link := range links {
			if link.Type() == "vxlan" {
				l.devices[link.Attrs().Index] = true
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	err = h.Namespace.Do(func() (err error) {
		l.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		errs := []error{
			unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.Bind(l.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		}
		for _, group := range []int{unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP} {
			errs = append(errs, unix.SetsockoptInt(l.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group))
		}
		return errors.Join(errs...)
	})
	return l, err
}

func (l *listener) close() { _ = unix.Close(l.fd) }

// announcement is a message of the kernel's.
type announcement struct {
	kind uint16
	body []byte
}

func (a announcement) String() string { return fmt.Sprintf("type %d: %x", a.kind, a.body) }

// heard takes in what was announced of the overlay so far.
func (l *listener) heard(t *testing.T) []announcement {
	t.Helper()
	var out []announcement
	buffer := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(l.fd, buffer, 0)
		if errors.Is(err, unix.EAGAIN) {
			return out
		}
		if err != nil {
			t.Fatalf("listen in %s: %v", l.ns.name, err)
		}
		messages, err := syscall.ParseNetlinkMessage(buffer[:n])
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			if len(m.Data) >= sizeNexthop && l.ours(m.Header.Type, m.Data) {
				out = append(out, announcement{m.Header.Type, bytes.Clone(m.Data)})
			}
		}
	}
}

// ours tells whether a message is of our devices, or bears our protocol. Its
// first bytes are struct ifinfomsg, ifaddrmsg, ndmsg, rtmsg or nhmsg.
func (l *listener) ours(kind uint16, b []byte) bool {
	switch kind {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return b[5] == ourProtocol
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		return b[2] == ourProtocol
	case unix.RTM_DELNEIGH:
		if OfMulticast(b) {
			return false
		}
	}
	return l.devices[int(binary.NativeEndian.Uint32(b[4:]))]
}

// timeUntil waits for a condition and returns how long that took.
func timeUntil(limit time.Duration, ok func() bool) (took time.Duration, in bool) {
	began := time.Now()
	for !ok() {
		if time.Since(began) > limit {
			return time.Since(began), false
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(began), true
}
