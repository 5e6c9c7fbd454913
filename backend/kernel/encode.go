package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// The encoders write the request that carries out an op on one kind of entry.

// replaceFlags make what is there not or otherwise.
const (
	replaceFlags   = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	exclusiveFlags = unix.NLM_F_CREATE | unix.NLM_F_EXCL
)

func encodeAddress(w *builder, seq uint32, v backend.Verb, a backend.Address, index int) {
	typ, flags := uint16(unix.RTM_NEWADDR), uint16(exclusiveFlags)
	switch v {
	case backend.Replace:
		flags = replaceFlags
	case backend.Delete:
		typ, flags = unix.RTM_DELADDR, 0
	}
	h := w.begin(typ, flags, seq, sizeAddressMessage)
	h[0], h[1], h[2] = family(a.Prefix.Addr()), uint8(a.Prefix.Bits()), unix.IFA_F_NODAD
	host.PutUint32(h[4:], uint32(index))
	w.addr(unix.IFA_LOCAL, a.Prefix.Addr())
	if v != backend.Delete {
		// A delete that names it would miss an address that has a peer
		// (inet_rtm_deladdr).
		w.addr(unix.IFA_ADDRESS, a.Prefix.Addr())
	}
}

// encodeFDB writes no REPLACE for a MAC that can have several destinations: the
// kernel refuses it, and a plain create of a second one does nothing
// (vxlan_fdb_update_existing). A delete without a destination takes the entry
// whatever it leads to.
func encodeFDB(w *builder, seq uint32, v backend.Verb, f backend.FDB, index int) {
	many := several(f.MAC)
	typ, flags := uint16(unix.RTM_NEWNEIGH), uint16(replaceFlags)
	switch {
	case v == backend.Delete:
		typ, flags = unix.RTM_DELNEIGH, 0
	case many:
		flags = unix.NLM_F_CREATE | unix.NLM_F_APPEND
	}
	beginFDB(w, typ, flags, seq, f, index)
	if (v != backend.Delete || many) && f.Remote.IsValid() {
		w.addr(unix.NDA_DST, f.Remote)
	}
}

// several tells whether a MAC can have several destinations.
func several(m backend.MAC) bool { return m == backend.MAC{} || m[0]&1 == 1 }

// beginFDB writes all of an FDB entry but where it leads.
func beginFDB(w *builder, typ, flags uint16, seq uint32, f backend.FDB, index int) {
	h := w.begin(typ, flags, seq, sizeNeighMessage)
	h[0] = unix.AF_BRIDGE
	host.PutUint32(h[4:], uint32(index))
	host.PutUint16(h[8:], unix.NUD_PERMANENT|unix.NUD_NOARP)
	h[10] = unix.NTF_SELF
	w.bytes(unix.NDA_LLADDR, f.MAC[:])
}

func encodeNeighbour(w *builder, seq uint32, v backend.Verb, n backend.Neighbour, index int) {
	typ, flags := uint16(unix.RTM_NEWNEIGH), uint16(replaceFlags)
	if v == backend.Delete {
		typ, flags = unix.RTM_DELNEIGH, 0
	}
	h := w.begin(typ, flags, seq, sizeNeighMessage)
	h[0] = family(n.IP)
	host.PutUint32(h[4:], uint32(index))
	host.PutUint16(h[8:], unix.NUD_PERMANENT)
	w.addr(unix.NDA_DST, n.IP)
	if v != backend.Delete {
		w.bytes(unix.NDA_LLADDR, n.MAC[:])
	}
}

// encodeNexthop writes all but the number into the header of a delete as zero:
// nh_valid_get_del_req wants it so.
func encodeNexthop(w *builder, seq uint32, v backend.Verb, n backend.Nexthop, id uint32, index int) {
	if v == backend.Delete {
		w.begin(unix.RTM_DELNEXTHOP, 0, seq, sizeNexthopMessage)
		w.u32(unix.NHA_ID, id)
		return
	}
	flags := uint16(exclusiveFlags)
	if v == backend.Replace {
		flags = replaceFlags
	}
	h := w.begin(unix.RTM_NEWNEXTHOP, flags, seq, sizeNexthopMessage)
	h[0], h[2] = family(n.Gateway), Protocol
	host.PutUint32(h[4:], unix.RTNH_F_ONLINK)
	w.u32(unix.NHA_ID, id)
	w.u32(unix.NHA_OIF, uint32(index))
	w.addr(unix.NHA_GATEWAY, n.Gateway)
}

// way is by what a route leads, in the kernel's numbers.
type way struct {
	nexthop uint32 // The object, of one that leads through such,
	device  int    // or the device of a plain one.
	metrics bool   // Metrics are to be written even where there are none.
}

// encodeRoute names in a delete the protocol but no nexthop: it takes our route
// wherever it leads, and nobody else's (fib_table_delete, ip6_route_del).
//
// A plain route is onlink as nexthops are: whether its gateway is on the link is
// for the planner to know, and the host's own route there may be away for a while.
func encodeRoute(w *builder, seq uint32, v backend.Verb, r backend.Route, by way) {
	typ, flags := uint16(unix.RTM_NEWROUTE), uint16(exclusiveFlags)
	switch v {
	case backend.Replace:
		flags = replaceFlags
	case backend.Delete:
		typ, flags = unix.RTM_DELROUTE, 0
	}
	h := w.begin(typ, flags, seq, sizeRouteMessage)
	h[0], h[1], h[3], h[5], h[7] = family(r.Dst.Addr()), uint8(r.Dst.Bits()), r.TOS, Protocol, unix.RTN_UNICAST
	if v == backend.Delete && r.Protocol != 0 {
		h[5] = r.Protocol
	}
	if v == backend.Delete {
		h[6], h[7] = unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC // Any.
	}
	if r.Plain && v != backend.Delete {
		host.PutUint32(h[8:], unix.RTNH_F_ONLINK)
	}
	switch {
	case r.Table == 0:
		h[4] = unix.RT_TABLE_MAIN
	case r.Table < 256:
		h[4] = uint8(r.Table)
	default:
		w.u32(unix.RTA_TABLE, r.Table)
	}
	w.addr(unix.RTA_DST, r.Dst.Addr())
	metric := r.Metric
	if metric == 0 && v == backend.Delete && r.Dst.Addr().Is6() {
		metric = defaultMetricV6 // Else any metric would do.
	}
	if metric != 0 {
		w.u32(unix.RTA_PRIORITY, metric)
	}
	if v == backend.Delete {
		return
	}
	if r.Plain {
		w.u32(unix.RTA_OIF, uint32(by.device))
		w.addr(unix.RTA_GATEWAY, r.Via.Gateway)
	} else {
		w.u32(attrRouteNexthopID, by.nexthop)
	}
	if r.MTU != 0 || by.metrics {
		metrics := w.nest(unix.RTA_METRICS)
		w.u32(unix.RTAX_MTU, uint32(r.MTU))
		if bits := lock(r.Dst); bits != 0 {
			w.u32(unix.RTAX_LOCK, bits)
		}
		w.close(metrics)
	}
}
