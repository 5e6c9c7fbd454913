package kernel

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// protocols names those that people meet (rtnetlink.h, iproute2's rt_protos).
var protocols = map[uint8]string{
	unix.RTPROT_KERNEL: "kernel", unix.RTPROT_BOOT: "boot", unix.RTPROT_STATIC: "static", unix.RTPROT_RA: "ra",
	unix.RTPROT_ZEBRA: "zebra", unix.RTPROT_BIRD: "bird", unix.RTPROT_DHCP: "dhcp", unix.RTPROT_BGP: "bgp",
	unix.RTPROT_OSPF: "ospf", 80: "80 (Calico)", 84: "84 (OVN)",
}

// explainRoute says what stands where a route was to be, if the kernel's own
// look-up for its base address finds it.
func (a *applier) explainRoute(ctx context.Context, e backend.Route, cause error) error {
	what := "another route"
	if a.explained++; a.explained <= maxExplained && e.Table == 0 {
		if r, err := a.k.routeTo(ctx, e); err == nil && r.dst == e.Dst && r.route(backend.Nexthop{}, "").Metric == e.Metric {
			what = a.k.describe(ctx, r)
		}
	}
	return fmt.Errorf("%w: %s to %s stands there; remove it, or take the range out of the cluster's network: %w",
		backend.ErrInTheWay, what, e.Dst, cause)
}

// routeTo finds the entry that serves the base address of a route. IPv4 has no
// look-up for 0.0.0.0, to which no subnet leads.
func (k *Kernel) routeTo(ctx context.Context, e backend.Route) (r routeMessage, err error) {
	addr := e.Dst.Addr()
	err = k.request(ctx, func(w *builder, seq uint32) {
		h := w.begin(unix.RTM_GETROUTE, 0, seq, sizeRouteMessage)
		h[0], h[1] = family(addr), uint8(addr.BitLen())
		host.PutUint32(h[8:], unix.RTM_F_FIB_MATCH)
		w.addr(unix.RTA_DST, addr)
		w.ask()
	}, func(m message) { r, _ = parseRoute(m.body) })
	return r, err
}

func (k *Kernel) describe(ctx context.Context, r routeMessage) string {
	proto, ok := protocols[r.protocol]
	if !ok {
		proto = strconv.Itoa(int(r.protocol))
	}
	text := "a route of protocol " + proto
	if r.gateway.IsValid() {
		text += " via " + r.gateway.String()
	}
	if r.out != 0 {
		if l, err := k.linkByIndex(ctx, r.out); err == nil {
			text += " dev " + l.name
		}
	}
	return text
}

// Hand says what is known of the one who made a change, by Change.By. A port's
// number is the process's, if it is the first netlink socket of it
// (netlink_autobind) and of our own PID namespace.
func (k *Kernel) Hand(port uint32) string {
	if port == 0 {
		return "unknown"
	}
	name, err := os.ReadFile("/proc/" + strconv.Itoa(int(port)) + "/comm")
	if err != nil {
		return fmt.Sprintf("netlink port %d", port)
	}
	return fmt.Sprintf("process %d (%s)", port, strings.TrimSpace(string(name)))
}
