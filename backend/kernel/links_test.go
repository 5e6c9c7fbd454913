package kernel

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/backendtest"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// links are veth pairs: what is done to the carrier is done to the other end.
type links struct{ *hand }

// linkAddresses are those of the tests' peers' own network.
var linkAddresses = []string{"192.0.2.1/22", "2001:db8::1/64"}

func (l links) Link(name string, do backendtest.Deed) (err error) {
	kerneltest.Do(l.t, l.ns, func() error {
		err = link(name, do)
		return nil
	})
	return err
}

func link(name string, do backendtest.Deed) error {
	if do == backendtest.Make {
		return makeLink(name)
	}
	target := map[backendtest.Deed]string{
		backendtest.LoseCarrier: otherEnd(name), backendtest.GetCarrier: otherEnd(name), backendtest.NameBack: name + "x",
	}[do]
	if target == "" {
		target = name
	}
	at, err := netlink.LinkByName(target)
	if err != nil {
		return err
	}
	switch do {
	case backendtest.Destroy:
		return netlink.LinkDel(at)
	case backendtest.SetDown, backendtest.LoseCarrier:
		return netlink.LinkSetDown(at)
	case backendtest.SetUp:
		if err := netlink.LinkSetUp(at); err != nil {
			return err
		}
		return awaitCarrier(name)
	case backendtest.GetCarrier:
		if err := netlink.LinkSetUp(at); err != nil {
			return err
		}
		return awaitCarrier(name)
	case backendtest.FlushAddresses:
		addrs, err := netlink.AddrList(at, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			if err := netlink.AddrDel(at, &a); err != nil {
				return err
			}
		}
		return nil
	case backendtest.Rename:
		return netlink.LinkSetName(at, name+"x")
	case backendtest.NameBack:
		return netlink.LinkSetName(at, name)
	}
	return fmt.Errorf("no such deed: %s", do)
}

func otherEnd(name string) string { return name + "p" }

func makeLink(name string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := netlink.NewVeth(attrs)
	veth.PeerName = otherEnd(name)
	if err := netlink.LinkAdd(veth); err != nil {
		return err
	}
	other, err := netlink.LinkByName(otherEnd(name))
	if err != nil {
		return err
	}
	for _, a := range linkAddresses {
		if err := netlink.AddrAdd(veth, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(a)), Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
	}
	for _, l := range []netlink.Link{other, veth} {
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	return awaitCarrier(name)
}

// awaitCarrier waits until the kernel has noted the carrier, which it does a
// moment later (linkwatch_event).
func awaitCarrier(name string) error {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s has no carrier", name)
		}
	}
}
