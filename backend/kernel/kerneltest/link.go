package kerneltest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The interface that Link makes.
const linkName = "eth0"

// Link gives a namespace an interface with an address, at whose other end nobody answers
// ARP or neighbour discovery. The kernel gives up looking for a neighbour after a moment.
func Link(t testing.TB, ns *os.File, address netip.Prefix) {
	t.Helper()
	Do(t, ns, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = linkName
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: linkName + "-end"}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		for _, name := range []string{linkName, veth.PeerName} {
			link, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(link)
			}
			if err != nil {
				return err
			}
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), address.Addr().BitLen())}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(veth, a); err != nil {
			return err
		}
		var errs error
		for name, value := range map[string]string{"retrans_time_ms": "100", "mcast_solicit": "1"} {
			for _, family := range []string{"ipv4", "ipv6"} {
				errs = errors.Join(errs, os.WriteFile(filepath.Join("/proc/sys/net", family, "neigh", linkName, name), []byte(value), 0))
			}
		}
		return errs
	})
	Addressed(t, ns)
}

// Addressed waits until a namespace takes packets to each of its addresses, but those that
// the kernel gives to a link by itself. Of IPv6 the route by which it does comes from a
// work queue, also where no duplicate is looked for (addrconf_dad_work), and so do the
// announcements of that.
func Addressed(t testing.TB, ns *os.File) {
	t.Helper()
	Do(t, ns, func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_V6)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			for end := time.Now().Add(time.Minute); !a.IP.IsLinkLocalUnicast(); time.Sleep(time.Millisecond) {
				if way, err := netlink.RouteGet(a.IP); err == nil && len(way) > 0 && way[0].Type == unix.RTN_LOCAL {
					break
				} else if time.Now().After(end) {
					return fmt.Errorf("packets to %s go by %v, %v", a.IP, way, err)
				}
			}
		}
		// The queue's work is announced before it lets go of the lock that this takes.
		lo, err := netlink.LinkByName("lo")
		return errors.Join(err, netlink.LinkSetUp(lo))
	})
}

// Neighbour tells a namespace of Link's the MAC of an address there: what is sent to it
// leaves, and nobody takes it.
func Neighbour(t testing.TB, ns *os.File, address netip.Addr) {
	t.Helper()
	Do(t, ns, func() error {
		link, err := netlink.LinkByName(linkName)
		if err != nil {
			return err
		}
		return netlink.NeighAdd(&netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: address.AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}})
	})
}
