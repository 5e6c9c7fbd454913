package kernel

import (
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// The parsers read the body of a message, of a dump or an event alike. They
// tell by ok whether the message was long enough to be one.

// linkMessage is what we read of an RTM_NEWLINK.
type linkMessage struct {
	index int
	name  string
	kind  string
	flags uint32
	up    bool
	// running says that it is up and has a carrier, protoDown that another hand
	// took the carrier away.
	running, protoDown bool
	mac                backend.MAC
	mtu                int
	master             int
	// linkLocal says that the kernel gives it link-local addresses.
	linkLocal bool
	// marked says that it bears our mark.
	marked bool
	// noForwarding says that it does not forward IPv4 packets, pathFilter that its
	// rp_filter is not 2. A link that cannot have IPv4 has neither.
	noForwarding, pathFilter bool
	vxlan                    vxlanData
}

// vxlanData is what we read of IFLA_INFO_DATA of a VXLAN device.
type vxlanData struct {
	vni      uint32
	port     uint16
	local    netip.Addr
	remote   netip.Addr // A group or the one peer of a point-to-point tunnel.
	learning bool
	lower    int
	odd      string // The first attribute that is set and that we never set.
	// exclusive says that no device of another kind can be on its port.
	exclusive bool
}

// vxlanExclusive are the attributes by which a device receives otherwise than ours:
// the kernel gives such devices a socket of their own, and a port has one
// (VXLAN_F_RCV_FLAGS, vxlan_find_sock).
var vxlanExclusive = map[uint16]bool{
	unix.IFLA_VXLAN_COLLECT_METADATA:  true,
	unix.IFLA_VXLAN_VNIFILTER:         true,
	unix.IFLA_VXLAN_GBP:               true,
	unix.IFLA_VXLAN_GPE:               true,
	unix.IFLA_VXLAN_REMCSUM_RX:        true,
	unix.IFLA_VXLAN_REMCSUM_NOPARTIAL: true,
	unix.IFLA_VXLAN_UDP_ZERO_CSUM6_RX: true,
}

// vxlanOdd are the attributes that we never set and that alter what a device
// sends, takes or can hold. Most of them cannot be changed in place
// (vxlan_nl2conf, vxlan_nl2flag).
var vxlanOdd = map[uint16]string{
	unix.IFLA_VXLAN_TTL:              "has a TTL of its own",
	unix.IFLA_VXLAN_TTL_INHERIT:      "inherits the TTL",
	unix.IFLA_VXLAN_TOS:              "has a TOS of its own",
	unix.IFLA_VXLAN_DF:               "sets DF",
	unix.IFLA_VXLAN_LABEL:            "has a flow label of its own",
	unix.IFLA_VXLAN_LIMIT:            "limits its FDB",
	unix.IFLA_VXLAN_PORT_RANGE:       "has source ports of its own",
	unix.IFLA_VXLAN_COLLECT_METADATA: "collects metadata",
	unix.IFLA_VXLAN_VNIFILTER:        "filters VNIs",
	unix.IFLA_VXLAN_GBP:              "has group based policy",
	unix.IFLA_VXLAN_GPE:              "has the generic protocol extension",
	unix.IFLA_VXLAN_REMCSUM_TX:       "offloads checksums to the remote",
	unix.IFLA_VXLAN_REMCSUM_RX:       "offloads checksums to the remote",
	unix.IFLA_VXLAN_PROXY:            "answers ARP and ND for others",
	unix.IFLA_VXLAN_RSC:              "short-circuits routes",
	unix.IFLA_VXLAN_L2MISS:           "reports unknown MACs",
	unix.IFLA_VXLAN_L3MISS:           "reports unknown neighbours",
}

func parseLink(b []byte) (l linkMessage, ok bool) {
	if len(b) < sizeLinkMessage {
		return l, false
	}
	l.index = linkIndex(b)
	l.flags = host.Uint32(b[8:])
	l.up, l.running = l.flags&unix.IFF_UP != 0, l.flags&unix.IFF_RUNNING != 0
	for typ, v := range attributes(b[sizeLinkMessage:]) {
		switch typ {
		case unix.IFLA_IFNAME:
			l.name = readText(v)
		case unix.IFLA_IFALIAS:
			l.marked = readText(v) == mark
		case unix.IFLA_ADDRESS:
			copy(l.mac[:], v)
		case unix.IFLA_MTU:
			l.mtu = int(readU32(v))
		case unix.IFLA_PROTO_DOWN:
			l.protoDown = readU8(v) != 0
		case unix.IFLA_MASTER:
			l.master = int(readU32(v))
		case unix.IFLA_LINKINFO:
			l.parseInfo(v)
		case unix.IFLA_AF_SPEC:
			l.parseFamilies(v)
		}
	}
	return l, true
}

// parseFamilies reads what inet_fill_link_af and inet6_fill_link_af tell. They
// tell nothing of a link without the family.
func (l *linkMessage) parseFamilies(b []byte) {
	for family, spec := range attributes(b) {
		for typ, v := range attributes(spec) {
			switch {
			case family == unix.AF_INET6 && typ == unix.IFLA_INET6_ADDR_GEN_MODE:
				l.linkLocal = readU8(v) != addrGenModeNone
			case family == unix.AF_INET && typ == attrInetConf:
				l.noForwarding = ipv4Conf(v, confForwarding) == 0
				l.pathFilter = ipv4Conf(v, confRPFilter) != looseRPFilter
			}
		}
	}
}

// ipv4Conf reads a setting of IFLA_INET_CONF, an array that begins with number 1
// (IPV4_DEVCONF_FORWARDING).
func ipv4Conf(b []byte, number int) uint32 {
	at := 4 * (number - 1)
	return readU32(b[min(at, len(b)):])
}

// linkIndex is the device of a link or address message.
func linkIndex(b []byte) int { return int(readU32(b[min(4, len(b)):])) }

func (l *linkMessage) parseInfo(b []byte) {
	var data []byte
	for typ, v := range attributes(b) {
		switch typ {
		case unix.IFLA_INFO_KIND:
			l.kind = readText(v)
		case unix.IFLA_INFO_DATA:
			data = v
		}
	}
	if l.kind != vxlanKind {
		return
	}
	x := &l.vxlan
	for typ, v := range attributes(data) {
		switch typ {
		case unix.IFLA_VXLAN_ID:
			x.vni = readU32(v)
		case unix.IFLA_VXLAN_PORT:
			x.port = readU16BE(v)
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			x.local = readAddr(v)
		case unix.IFLA_VXLAN_GROUP, unix.IFLA_VXLAN_GROUP6:
			x.remote = readAddr(v)
		case unix.IFLA_VXLAN_LEARNING:
			x.learning = readU8(v) != 0
		case unix.IFLA_VXLAN_LINK:
			x.lower = int(readU32(v))
		default:
			// A flag is there if it is on, or says so (vxlan_fill_info does both).
			set := len(v) == 0 || slices.ContainsFunc(v, func(b byte) bool { return b != 0 })
			x.exclusive = x.exclusive || set && vxlanExclusive[typ]
			if what, ok := vxlanOdd[typ]; ok && set && x.odd == "" {
				x.odd = what
			}
		}
	}
}

// netconfLink is the number of the link that an RTM_NEWNETCONF is about, less than
// 0 for all and the default (NETCONFA_IFINDEX_ALL, _DEFAULT).
func netconfLink(b []byte) int {
	for typ, v := range attributes(b[min(sizeNetconfMessage, len(b)):]) {
		if typ == attrNetconfIfindex {
			return int(int32(readU32(v)))
		}
	}
	return 0
}

// addressMessage is what we read of an RTM_NEWADDR.
type addressMessage struct {
	index  int
	scope  uint8
	flags  uint32
	prefix netip.Prefix
}

func parseAddress(b []byte) (a addressMessage, ok bool) {
	if len(b) < sizeAddressMessage {
		return a, false
	}
	a.index, a.scope, a.flags = linkIndex(b), b[3], uint32(b[2])
	var addr netip.Addr
	for typ, v := range attributes(b[sizeAddressMessage:]) {
		switch typ {
		case unix.IFA_LOCAL:
			addr = readAddr(v)
		case unix.IFA_ADDRESS: // The peer's, where there is also a local one.
			if !addr.IsValid() {
				addr = readAddr(v)
			}
		case unix.IFA_FLAGS:
			a.flags = readU32(v)
		}
	}
	a.prefix = netip.PrefixFrom(addr, int(b[1]))
	return a, a.prefix.IsValid()
}

// neighbourMessage is what we read of an RTM_NEWNEIGH, also of an FDB entry.
type neighbourMessage struct {
	family uint8
	index  int
	state  uint16
	proxy  bool // It is answered for, and no entry.
	dst    netip.Addr
	mac    backend.MAC
	// port, vni, out and nexthop are an FDB entry's own, if it has them
	// (vxlan_fdb_info).
	port              uint16
	vni, out, nexthop uint32
}

func parseNeighbour(b []byte) (n neighbourMessage, ok bool) {
	if len(b) < sizeNeighMessage {
		return n, false
	}
	n.family, n.index, n.state = b[0], linkIndex(b), host.Uint16(b[8:])
	n.proxy = b[10]&unix.NTF_PROXY != 0
	for typ, v := range attributes(b[sizeNeighMessage:]) {
		switch typ {
		case unix.NDA_DST:
			n.dst = readAddr(v)
		case unix.NDA_LLADDR:
			copy(n.mac[:], v)
		case unix.NDA_PORT:
			n.port = readU16BE(v)
		case unix.NDA_VNI:
			n.vni = readU32(v)
		case unix.NDA_IFINDEX:
			n.out = readU32(v)
		case attrNeighNexthopID:
			n.nexthop = readU32(v)
		}
	}
	return n, true
}

// shownFDB tells whether it is an FDB entry that Dump shows, shownNeighbour
// whether it is such a neighbour.
func (n neighbourMessage) shownFDB() bool {
	return n.family == unix.AF_BRIDGE && (n.dst.IsValid() || n.nexthop != 0)
}

func (n neighbourMessage) shownNeighbour() bool {
	return n.family != unix.AF_BRIDGE && n.dst.IsValid() && n.state&unix.NUD_PERMANENT != 0 && !n.proxy
}

// fdb gives the entry on the device of that name.
func (n neighbourMessage) fdb(dev string) backend.FDB {
	e := backend.FDB{Dev: dev, MAC: n.mac, Remote: n.dst}
	switch {
	case n.nexthop != 0:
		e.Odd = "nhid " + strconv.Itoa(int(n.nexthop))
	case n.port != 0:
		e.Odd = "port " + strconv.Itoa(int(n.port))
	case n.vni != 0:
		e.Odd = "vni " + strconv.Itoa(int(n.vni))
	case n.out != 0:
		e.Odd = "via " + strconv.Itoa(int(n.out))
	case n.state&(unix.NUD_PERMANENT|unix.NUD_NOARP) == 0:
		e.Odd = "dynamic" // It would age (vxlan_cleanup).
	}
	return e
}

// nexthopMessage is what we read of an RTM_NEWNEXTHOP.
type nexthopMessage struct {
	id       uint32
	protocol uint8
	index    int
	gateway  netip.Addr
	// plain tells whether it is of the form that we make.
	plain bool
}

func parseNexthop(b []byte) (n nexthopMessage, ok bool) {
	if len(b) < sizeNexthopMessage {
		return n, false
	}
	n.protocol = b[2]
	n.plain = host.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0
	for typ, v := range attributes(b[sizeNexthopMessage:]) {
		switch typ {
		case unix.NHA_ID:
			n.id = readU32(v)
		case unix.NHA_OIF:
			n.index = int(readU32(v))
		case unix.NHA_GATEWAY:
			n.gateway = readAddr(v)
		case unix.NHA_GROUP, unix.NHA_BLACKHOLE, unix.NHA_ENCAP, unix.NHA_ENCAP_TYPE, attrNexthopFDB:
			n.plain = false
		}
	}
	n.plain = n.plain && n.index != 0 && n.gateway.IsValid()
	return n, n.id != 0
}

// routeMessage is what we read of an RTM_NEWROUTE.
type routeMessage struct {
	dst           netip.Prefix
	tos           uint8
	protocol      uint8
	typ           uint8
	flags         uint32
	table, metric uint32
	nexthop       uint32
	gateway       netip.Addr
	source        netip.Addr
	// out has the devices by which it leaves; more are in multipath.
	out       int
	multipath []byte
	// mtu and locked are of RTA_METRICS, odd tells of what ours never have.
	mtu, locked uint32
	odd         bool
}

func parseRoute(b []byte) (r routeMessage, ok bool) {
	if len(b) < sizeRouteMessage {
		return r, false
	}
	r.tos, r.table, r.protocol, r.typ = b[3], uint32(b[4]), b[5], b[7]
	r.flags = host.Uint32(b[8:])
	var dst netip.Addr
	switch b[0] {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return r, false
	}
	for typ, v := range attributes(b[sizeRouteMessage:]) {
		switch typ {
		case unix.RTA_DST:
			dst = readAddr(v)
		case unix.RTA_TABLE:
			r.table = readU32(v)
		case unix.RTA_PRIORITY:
			r.metric = readU32(v)
		case attrRouteNexthopID:
			r.nexthop = readU32(v)
		case unix.RTA_GATEWAY:
			r.gateway = readAddr(v)
		case unix.RTA_OIF:
			r.out = int(readU32(v))
		case unix.RTA_MULTIPATH:
			r.multipath = v
		case unix.RTA_METRICS:
			r.parseMetrics(v)
		case unix.RTA_VIA: // A gateway of the other family.
			r.gateway, r.odd = readAddr(v[min(2, len(v)):]), true
		case unix.RTA_PREFSRC:
			r.source, r.odd = readAddr(v), true
		case unix.RTA_ENCAP:
			r.odd = true
		}
	}
	r.dst = netip.PrefixFrom(dst, int(b[1]))
	return r, r.dst.IsValid()
}

func (r *routeMessage) parseMetrics(b []byte) {
	for typ, v := range attributes(b) {
		switch typ {
		case unix.RTAX_MTU:
			r.mtu = readU32(v)
		case unix.RTAX_LOCK:
			r.locked = readU32(v)
		default:
			r.odd = true
		}
	}
}

// lock is RTAX_LOCK of a route of ours that has an MTU. Of IPv6 the kernel sets one
// that is not locked to the device's when that changes (fib6_nh_mtu_change), and
// an older one heeds it in what it forwards only where it is locked
// (ip6_dst_mtu_maybe_forward before Linux 5.13). An IPv4 route's stays as it is,
// and with a lock the host itself would send without DF (ip_dont_fragment).
func lock(dst netip.Prefix) uint32 {
	if dst.Addr().Is6() {
		return 1 << unix.RTAX_MTU
	}
	return 0
}

// route gives the entry. via is the zero Nexthop unless the route leads through
// one of ours, dev the name of the device by which it leaves, "" where that is
// not known.
func (r routeMessage) route(via backend.Nexthop, dev string) backend.Route {
	e := backend.Route{Dst: r.dst, Table: r.table, Metric: r.metric, TOS: r.tos, MTU: uint16(min(r.mtu, backend.MaxRouteMTU)), Odd: r.odd}
	if r.mtu != 0 && r.locked != lock(r.dst) || r.mtu == 0 && r.locked != 0 {
		e.Odd = true
	}
	if e.Table == unix.RT_TABLE_MAIN {
		e.Table = 0
	}
	if r.dst.Addr().Is6() && e.Metric == defaultMetricV6 {
		e.Metric = 0
	}
	switch {
	case r.typ != unix.RTN_UNICAST:
	case r.plain() && dev != "":
		e.Plain, e.Via = true, backend.Nexthop{Dev: dev, Gateway: r.gateway}
		e.Odd = e.Odd || r.flags&unix.RTNH_F_ONLINK == 0
	default:
		e.Via = via
	}
	return e
}

// plain tells whether the route names one gateway and its device itself.
func (r routeMessage) plain() bool {
	return r.typ == unix.RTN_UNICAST && r.nexthop == 0 && r.out != 0 && r.gateway.IsValid()
}

// defaultMetricV6 is what the kernel makes of an IPv6 route's metric 0
// (IP6_RT_PRIO_USER).
const defaultMetricV6 = 1024
