package path

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/network/probe"
	"github.com/ripstop-net/ripstop/subnet"
)

// TestNoNeighbourIsNoMissingWay: where nobody answers ARP or neighbour discovery the
// kernel says EHOSTUNREACH once it has given up, as it does of a route that says
// "unreachable". They are told apart, in both families, for pings and for the echo.
func TestNoNeighbourIsNoMissingWay(t *testing.T) {
	for _, c := range []struct {
		name, own, absent, refused, nowhere string
		family                              subnet.Family
	}{
		{"IPv4", "192.0.2.1/24", "192.0.2.8", "198.51.100.1", "203.0.113.1", subnet.V4},
		{"IPv6", "2001:db8::1/64", "2001:db8::8", "2001:db8:1::1", "2001:db8:2::1", subnet.V6},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns, own := kerneltest.Namespace(t), netip.MustParsePrefix(c.own)
			kerneltest.Link(t, ns, own)
			var asker *probe.Asker
			kerneltest.Do(t, ns, func() (err error) {
				asker, err = probe.OpenAsker(t.Context(), c.family)
				refused := netip.MustParseAddr(c.refused)
				return errors.Join(err, netlink.RouteAdd(&netlink.Route{
					Type: unix.RTN_UNREACHABLE, Dst: &net.IPNet{IP: refused.AsSlice(), Mask: net.CIDRMask(refused.BitLen(), refused.BitLen())},
				}))
			})
			defer func() { _ = asker.Close() }()
			for to, want := range map[string]error{c.absent: ErrUnresolved, c.refused: ErrUnreachable, c.nowhere: ErrUnreachable} {
				on := NewOn(Target{
					Own: [2]netip.Addr{Underlay: own.Addr()}, Their: [2]netip.Addr{Underlay: netip.MustParseAddr(to)}, EchoPort: probe.DefaultPort,
				}, asker)
				for what, ask := range map[string]func() error{
					"ping": func() error { _, err := on.Ping(t.Context(), Underlay, 0); return err },
					"echo": func() error { _, _, err := on.Echo(t.Context(), Underlay, Underlay, 0, 0); return err },
				} {
					// On a busy machine the kernel may be later than an answer may be.
					err := ErrSilent
					ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
					for errors.Is(err, ErrSilent) && ctx.Err() == nil {
						kerneltest.Do(t, ns, func() error { err = ask(); return nil })
					}
					cancel()
					if !errors.Is(err, want) {
						t.Errorf("%s %s: %v, want %v", what, to, err, want)
					}
				}
			}
		})
	}
}
