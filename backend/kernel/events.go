package kernel

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

const (
	// maxQueued bounds the changes that wait to be told.
	maxQueued = 1 << 18
	// maxRead bounds the datagrams of one reading, so that it ends however
	// busy another hand is.
	maxRead = 1 << 20
)

// events reads what the kernel announces on one socket, by the same parsers and
// with the same judgement as Dump. All but sock's being waited for is for who
// has the Kernel's turn.
//
// The kernel is silent about some changes: of IPv4 routes and of nexthops that
// go with their device, or when it goes down. The device's own event stands for
// them: it makes doubt.
type events struct {
	sock *listener
	owns func(string) bool
	// ours has our devices' names by number, adopted those of them that were
	// another's.
	ours, adopted map[int]string

	queue []backend.Change
	// doubt says that queue is not all, failed that this remains so.
	doubt, failed bool
	// drained gets a token when all has been read.
	drained chan struct{}
}

func newEvents(sock *listener, owns func(string) bool) *events {
	return &events{sock: sock, owns: owns, ours: map[int]string{}, adopted: map[int]string{}, doubt: true, drained: make(chan struct{}, 1)}
}

// know notes a VXLAN device if it is ours, by the state of the moment.
func (e *events) know(l linkMessage) {
	e.forget(l.index)
	if l.ours(e.owns) {
		e.ours[l.index] = l.name
	}
	if l.adopted(e.owns) {
		e.adopted[l.index] = l.name
	}
}

func (e *events) forget(index int) {
	delete(e.ours, index)
	delete(e.adopted, index)
}

// drain reads what there is. A socket that fails is closed, at which follow
// ends.
func (e *events) drain(k *Kernel) {
	for range maxRead {
		if e.failed {
			return
		}
		b, err := e.sock.poll()
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.ENOBUFS):
			e.lost()
		case err != nil:
			e.failed = true
			e.lost()
			_ = e.sock.close()
		default:
			for m := range messages(b) {
				e.read(k, m)
			}
		}
	}
	e.lost()
}

// lost notes that the queue is not all, which makes it worthless.
func (e *events) lost() { e.queue, e.doubt = nil, true }

func (e *events) read(k *Kernel, m message) {
	switch m.typ {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		e.link(k, m)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if a, ok := parseAddress(m.body); ok {
			e.address(k, m, a)
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, ok := parseNeighbour(m.body)
		if dev, ours := e.ours[n.index]; ok && ours {
			e.neighbour(k, m, n, dev)
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		e.route(k, m)
	case unix.RTM_NEWNETCONF:
		// A setting of a device of ours was changed by a hand in /proc/sys.
		if _, ours := e.ours[netconfLink(m.body)]; ours {
			e.lost()
		}
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		if n, ok := parseNexthop(m.body); ok {
			e.nexthop(k, m, n)
		}
	}
}

func (e *events) tell(m message, entry backend.Entry, gone bool) {
	e.queueUp(backend.Change{Entry: entry, Gone: gone, By: m.pid})
}

func (e *events) queueUp(c backend.Change) {
	switch {
	case e.doubt:
	case len(e.queue) == maxQueued:
		e.lost()
	default:
		e.queue = append(e.queue, c)
	}
}

// address makes doubt of one on our devices. On a link of the host's, plain routes
// go silently with its last IPv4 address (fib_disable_ip). IPv6 addresses that
// are there already are announced each time that a router advertises them.
func (e *events) address(k *Kernel, m message, a addressMessage) {
	_, ours := e.ours[a.index]
	_, carries := k.carriers.names[a.index]
	switch {
	case ours || carries && !a.prefix.Addr().IsLinkLocalUnicast() && (m.typ == unix.RTM_DELADDR || a.prefix.Addr().Is4()):
		e.lost()
	case m.typ == unix.RTM_DELADDR:
		e.freedAll(k, m.pid)
	}
}

// link also follows which devices are ours, as they come, are renamed, and go.
// One of our names that is not VXLAN is another's; it may have stood in the way.
func (e *events) link(k *Kernel, m message) {
	l, ok := parseLink(m.body)
	// A bridge port's events (of family AF_BRIDGE) name the device too, and
	// its RTM_DELLINK there does not mean that it goes (br_ifinfo_notify).
	if !ok || m.body[0] != unix.AF_UNSPEC {
		return
	}
	_, was := e.ours[l.index]
	if k.carriers.changed(l, m.typ == unix.RTM_DELLINK) {
		clear(k.index) // The names may be others' by now.
		e.lost()
	}
	if m.typ == unix.RTM_DELLINK {
		e.forget(l.index)
	} else {
		e.know(l)
	}
	switch {
	case was || e.owns(l.name) || l.ours(e.owns):
		e.lost()
	case m.typ == unix.RTM_DELLINK, !l.up, !l.running:
		e.freedAll(k, m.pid)
	}
}

// neighbour takes FDB entries and neighbours. A permanent neighbour that is
// deleted is first announced as one that failed (neigh_update).
func (e *events) neighbour(k *Kernel, m message, n neighbourMessage, dev string) {
	deleted := m.typ == unix.RTM_DELNEIGH
	switch {
	case n.shownFDB():
		if key := (fdbKey{dev, n.mac}); n.nexthop != 0 && !deleted {
			k.byNexthop[key] = struct{}{}
		} else {
			delete(k.byNexthop, key)
		}
		e.tell(m, n.fdb(dev), deleted)
	case n.family != unix.AF_BRIDGE && n.dst.IsValid() && !n.proxy:
		e.tell(m, backend.Neighbour{Dev: dev, IP: n.dst, MAC: n.mac}, deleted || !n.shownNeighbour())
	}
}

// route takes our routes, and those of others that took the place of another:
// that one, of which nothing more is announced, may have been ours
// (fib_table_insert, fib6_add_rt2node). On adopted devices it also takes those that
// count as ours though they bear another's number.
func (e *events) route(k *Kernel, m message) {
	took := m.typ == unix.RTM_NEWROUTE && m.flags&unix.NLM_F_REPLACE != 0
	frees := m.typ == unix.RTM_DELROUTE && len(k.obstructed) > 0
	if len(m.body) < sizeRouteMessage || m.body[5] != Protocol && !took && !frees && len(e.adopted) == 0 {
		return
	}
	r, ok := parseRoute(m.body)
	if !ok || r.flags&unix.RTM_F_CLONED != 0 {
		return
	}
	if frees {
		e.freedByRoute(k, r, m.pid)
	}
	if dev, ok := e.adopted[r.out]; ok && r.protocol != Protocol && r.laidOver() {
		e.tell(m, r.taken(dev), m.typ == unix.RTM_DELROUTE)
		return
	}
	if r.protocol != Protocol && !took {
		return
	}
	gone, dev := m.typ == unix.RTM_DELROUTE || r.protocol != Protocol, ""
	if r.plain() && !gone {
		if dev = e.ours[r.out]; dev == "" {
			dev = k.carriers.names[r.out]
		}
		if dev == "" { // By another hand, over a link that has not been met.
			e.lost()
			return
		}
	}
	via, _ := k.hops.hop(r.nexthop)
	entry := r.route(via, dev)
	k.hops.met(entry, r.nexthop)
	e.tell(m, entry, gone)
}

// nexthop keeps the numbers up to date. Where an object becomes another under
// its number, the routes that lead through it are otherwise too, silently.
func (e *events) nexthop(k *Kernel, m message, n nexthopMessage) {
	was, known := k.hops.hop(n.id)
	if m.typ == unix.RTM_DELNEXTHOP {
		if known {
			k.hops.remove(was)
		} else if n.protocol == Protocol { // As we deleted it, or missed its coming.
			was = backend.Nexthop{Dev: e.ours[n.index], Gateway: n.gateway}
			known = was.Dev != "" && n.plain && k.hops.id(was) == 0
		} else {
			e.freedAll(k, m.pid)
		}
		if known {
			e.tell(m, was, true)
		}
		return
	}
	if n.protocol != Protocol {
		k.hops.takenByAnother(n.id)
		if known {
			k.hops.remove(was)
			e.lost()
		}
		return
	}
	hop := backend.Nexthop{Dev: e.ours[n.index], Gateway: n.gateway}
	same := known && was.Dev == hop.Dev && was.Gateway == hop.Gateway && (n.plain || was.Stray != 0)
	switch {
	case same:
		e.tell(m, was, false)
	case known || n.index != 0 && hop.Dev == "": // Changed, or on another's device.
		e.lost()
	default:
		e.tell(m, k.hops.add(hop, n.plain, n.id), false)
	}
}
