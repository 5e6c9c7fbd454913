package backend

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// MAC is a 48-bit Ethernet address.
type MAC [6]byte

// String returns the usual form, as 02:00:5e:10:00:01.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// Kind is the kind of an entry. Kinds are numbered so that an entry needs only
// entries of lower kinds: what is added goes up, what is removed goes down.
type Kind uint8

// The kinds of entries.
const (
	KindDevice Kind = iota
	KindAddress
	KindFDB
	KindNeighbour
	KindNexthop
	KindRoute
	kinds
)

// Entry is one thing in the kernel's forwarding state: a [Device], [Address],
// [FDB], [Neighbour], [Nexthop] or [Route]. All are comparable values. Two
// entries have the same identity if the kernel can hold only one of them.
type Entry interface {
	comparableEntry
	// Kind tells which of the kinds it is.
	Kind() Kind
	// On names the device that the entry is or hangs on.
	On() string
	// String is in the notation of ip and bridge.
	String() string
}

type comparableEntry interface{ sealed() }

// Device is a VXLAN device that is up.
type Device struct {
	Name string
	VNI  uint32
	// Port is the UDP port on which it receives and to which it sends.
	Port uint16
	// Local is the outer source address; its family is the tunnel's.
	Local netip.Addr
	MAC   MAC
	// MTU is that of the inner packets, in bytes.
	MTU int
	// Down, Learning and LinkLocal tell how an existing device differs from what
	// is ever wanted and can be mended in place. Down is also one whose carrier
	// was taken away (protodown). With LinkLocal the kernel gives it link-local
	// addresses of IPv6 (any IN6_ADDR_GEN_MODE but NONE).
	Down, Learning, LinkLocal bool
	// So do NoForwarding, that the kernel does not forward the IPv4 packets which
	// come out of it, and PathFilter, that it is not the loose rule (rp_filter 2)
	// by which it drops such packets for the address that they come from.
	NoForwarding, PathFilter bool
	// NoTxChecksum leaves no checksums of what is sent by it to the hardware or
	// to the receiver's kernel (ethtool's tx-checksumming is off).
	NoTxChecksum bool
	// Lower names the device that an existing one is bound to, "" for none. We bind
	// none, and the kernel unbinds none in place: of what is wanted it names the
	// binding that is borne (see meets).
	Lower string
	// Misfit, where not empty, says how an existing device differs in what the
	// kernel cannot change in place.
	Misfit string
}

// Address is an address on one of our devices.
type Address struct {
	Dev    string
	Prefix netip.Prefix
}

// FDB sends frames for a MAC to a host of the underlay. The kernel keeps one
// destination for a unicast MAC, several for the zero MAC ("all others").
type FDB struct {
	Dev    string
	MAC    MAC
	Remote netip.Addr
	// Odd, where not empty, says what an existing entry has that ours never
	// have, such as a port or a VNI of its own.
	Odd string
}

// Neighbour is a permanent ARP or ND entry.
type Neighbour struct {
	Dev string
	IP  netip.Addr
	MAC MAC
}

// Nexthop is a nexthop object via a gateway that is on the link by decree. The
// kernel's number for it is the adapter's affair.
type Nexthop struct {
	Dev     string
	Gateway netip.Addr
	// Stray is 0 for what we make. An object of ours in the kernel that is a
	// second of its kind, or is of no form that we make, bears its number here
	// and so is never wanted.
	Stray uint32
}

// Route leads to a prefix through a nexthop object on one of our devices, or
// plainly over a link of the host.
type Route struct {
	Dst netip.Prefix
	// Table, Metric and TOS are 0 for what we make: the main table, the
	// family's own metric.
	Table, Metric uint32
	TOS           uint8
	// Plain tells that the route names Via's device and gateway itself. The
	// device is the host's own and no entry, and nothing of ours is needed for
	// the route. Unlike one through a nexthop object it outlives the loss of the
	// device's carrier.
	Plain bool
	// Odd tells that an existing route has what ours never have, such as
	// another metric (RTA_METRICS) than the MTU.
	Odd bool
	// MTU is the largest packet in bytes that may take the route, at most
	// [MaxRouteMTU], or 0 for whatever the device takes.
	MTU uint16
	// Protocol is 0 for what we make. An existing route that we take over from
	// another bears the other's number (rtm_protocol) here, and is Plain. One by the
	// subnet's own base address is on a device of ours, and needs there what one of ours
	// does but for the nexthop.
	Protocol uint8
	// Via is the zero Nexthop for an existing route that leads neither through a
	// nexthop object of ours nor plainly to a gateway.
	Via Nexthop
}

// MaxRouteMTU is the largest MTU in bytes that a route can bear: the kernel makes
// less of what is more (ip_metrics_convert).
const MaxRouteMTU = 65535 - 15

// meets tells whether an existing device is as it is wanted. A binding is borne where
// it is there; nobody asks for one.
func (d Device) meets(want Device) bool {
	if d.Lower == "" {
		want.Lower = ""
	}
	return d == want
}

// several tells whether the kernel can keep several destinations for the MAC:
// then the destination is a part of the entry's identity.
func (f FDB) several() bool { return f.MAC == (MAC{}) || f.MAC[0]&1 == 1 }

// usual tells whether what identifies the route is its prefix alone. The
// kernel's identity has table, metric and TOS as well (fib_table_insert and
// fib6_add_rt2node compare just these).
func (r Route) usual() bool {
	return r.Table == 0 && r.Metric == 0 && r.TOS == 0 && r.Dst.IsValid() && fits(r.Dst.Addr())
}

// station identifies the FDB entry that it needs.
func (n Neighbour) station() Entry { return FDB{Dev: n.Dev, MAC: n.MAC} }

// leans tells whether the route needs entries of ours.
func (r Route) leans() bool {
	return !r.Plain || r.Protocol != 0 && r.Via.Gateway == r.Dst.Addr()
}

// through tells whether the route leads through a nexthop object.
func (r Route) through(n Nexthop) bool { return !r.Plain && r.Via == n }

// plain is a stray's form, of which the neighbour is that it needs.
func (n Nexthop) plain() Nexthop { return Nexthop{Dev: n.Dev, Gateway: n.Gateway} }

// Identity returns an entry of which only what identifies it is set, so that two
// entries of one identity give equal values. The methods of [State] that go by
// identity take it for the entry.
func Identity(e Entry) Entry {
	switch e := e.(type) {
	case Device:
		return Device{Name: e.Name}
	case FDB:
		id := FDB{Dev: e.Dev, MAC: e.MAC}
		if e.several() {
			id.Remote = e.Remote
		}
		return id
	case Neighbour:
		return Neighbour{Dev: e.Dev, IP: e.IP}
	case Route:
		return Route{Dst: e.Dst, Table: e.Table, Metric: e.Metric, TOS: e.TOS}
	}
	return e
}

func (Device) sealed()    {}
func (Address) sealed()   {}
func (FDB) sealed()       {}
func (Neighbour) sealed() {}
func (Nexthop) sealed()   {}
func (Route) sealed()     {}

// Kind implements Entry.
func (Device) Kind() Kind { return KindDevice }

// Kind implements Entry.
func (Address) Kind() Kind { return KindAddress }

// Kind implements Entry.
func (FDB) Kind() Kind { return KindFDB }

// Kind implements Entry.
func (Neighbour) Kind() Kind { return KindNeighbour }

// Kind implements Entry.
func (Nexthop) Kind() Kind { return KindNexthop }

// Kind implements Entry.
func (Route) Kind() Kind { return KindRoute }

// On implements Entry.
func (d Device) On() string { return d.Name }

// On implements Entry.
func (a Address) On() string { return a.Dev }

// On implements Entry.
func (f FDB) On() string { return f.Dev }

// On implements Entry.
func (n Neighbour) On() string { return n.Dev }

// On implements Entry.
func (n Nexthop) On() string { return n.Dev }

// On implements Entry.
func (r Route) On() string { return r.Via.Dev }

// String is in the notation of ip link.
func (d Device) String() string {
	s := fmt.Sprintf("link %s vxlan id %d local %s dstport %d address %s mtu %d", d.Name, d.VNI, d.Local, d.Port, d.MAC, d.MTU)
	if d.Lower != "" {
		s += " dev " + d.Lower
	}
	if d.Learning {
		s += " learning"
	}
	if d.LinkLocal {
		s += " addrgenmode on"
	}
	if d.NoForwarding {
		s += " forwarding off"
	}
	if d.PathFilter {
		s += " rp_filter not 2"
	}
	if d.NoTxChecksum {
		s += " tx-checksumming off"
	}
	if d.Down {
		s += " down"
	}
	if d.Misfit != "" {
		s += " misfit: " + d.Misfit
	}
	return s
}

// String is in the notation of ip address.
func (a Address) String() string { return fmt.Sprintf("addr %s dev %s", a.Prefix, a.Dev) }

// String is in the notation of bridge fdb.
func (f FDB) String() string {
	s := fmt.Sprintf("fdb %s dev %s dst %s", f.MAC, f.Dev, f.Remote)
	if f.Odd != "" {
		s += " " + f.Odd
	}
	return s
}

// String is in the notation of ip neighbour.
func (n Neighbour) String() string {
	return fmt.Sprintf("neigh %s lladdr %s dev %s", n.IP, n.MAC, n.Dev)
}

// String is in the notation of ip nexthop.
func (n Nexthop) String() string {
	if n.Stray != 0 {
		return fmt.Sprintf("nexthop id %d via %s dev %s", n.Stray, n.Gateway, n.Dev)
	}
	return fmt.Sprintf("nexthop via %s dev %s", n.Gateway, n.Dev)
}

// String is in the notation of ip route.
func (r Route) String() string {
	s := fmt.Sprintf("route %s", r.Dst)
	if r.Table != 0 {
		s += fmt.Sprintf(" table %d", r.Table)
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.TOS != 0 {
		s += fmt.Sprintf(" tos %d", r.TOS)
	}
	if r.Plain {
		s += fmt.Sprintf(" via %s dev %s", r.Via.Gateway, r.Via.Dev)
	} else {
		s += " by " + r.Via.String()
	}
	if r.Protocol != 0 {
		s += fmt.Sprintf(" proto %d", r.Protocol)
	}
	if r.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	if r.Odd {
		s += " odd"
	}
	return s
}

// compareEntries orders entries of one kind, by identity first.
func compareEntries(a, b Entry) int {
	switch a := a.(type) {
	case Device:
		return strings.Compare(a.Name, b.On())
	case Address:
		b := b.(Address)
		return cmp.Or(strings.Compare(a.Dev, b.Dev), comparePrefixes(a.Prefix, b.Prefix))
	case FDB:
		b := b.(FDB)
		return cmp.Or(strings.Compare(a.Dev, b.Dev), bytes.Compare(a.MAC[:], b.MAC[:]), a.Remote.Compare(b.Remote))
	case Neighbour:
		b := b.(Neighbour)
		return cmp.Or(strings.Compare(a.Dev, b.Dev), a.IP.Compare(b.IP))
	case Nexthop:
		return compareNexthops(a, b.(Nexthop))
	case Route:
		b := b.(Route)
		return cmp.Or(comparePrefixes(a.Dst, b.Dst), cmp.Compare(a.Table, b.Table), cmp.Compare(a.Metric, b.Metric),
			cmp.Compare(a.TOS, b.TOS), compareNexthops(a.Via, b.Via))
	}
	return 0
}

func compareNexthops(a, b Nexthop) int {
	return cmp.Or(strings.Compare(a.Dev, b.Dev), a.Gateway.Compare(b.Gateway), cmp.Compare(a.Stray, b.Stray))
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
