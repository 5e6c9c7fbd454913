package fleet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

// protocol is the one that Ripstop's routes carry.
const protocol = 82

// routesBuffer holds what some thousand routes announce, in bytes.
const routesBuffer = 4 << 20

// routes follows the kernel's routes of Ripstop's in one namespace.
type routes struct {
	ns     *lab.Namespace
	kernel *lab.Announcements

	mu sync.Mutex
	// since has for each destination when its route was announced last.
	since map[netip.Prefix]time.Time
	err   error
}

// follow listens to a namespace that has no such routes yet.
func follow(ns *lab.Namespace) (*routes, error) {
	r := &routes{ns: ns, since: map[netip.Prefix]time.Time{}}
	var err error
	r.kernel, err = lab.Hear(ns, routesBuffer, []int{unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}, r.heard)
	return r, err
}

func (r *routes) heard(at time.Time, datagram []byte, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	for typ, body := range lab.Messages(datagram) {
		if to, ok := destination(body); ok && typ == unix.RTM_NEWROUTE {
			r.since[to] = at
		} else if ok && typ == unix.RTM_DELROUTE {
			delete(r.since, to)
		}
	}
}

// known returns when the last of the destinations was announced, and how many
// of them have not been.
func (r *routes) known(to []netip.Prefix) (last time.Time, missing int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range to {
		at, ok := r.since[p]
		if !ok {
			missing++
		} else if at.After(last) {
			last = at
		}
	}
	if r.err != nil {
		err = fmt.Errorf("follow the routes of %s: %w", r.ns.Name(), r.err)
	}
	return last, missing, err
}

func (r *routes) close() error { return r.kernel.Close() }

// destination is where a route of Ripstop's leads to; false for any other's
// (rtnetlink(7): struct rtmsg, then attributes).
func destination(body []byte) (netip.Prefix, bool) {
	if len(body) < unix.SizeofRtMsg || body[5] != protocol {
		return netip.Prefix{}, false
	}
	bits := int(body[1])
	for b := body[unix.SizeofRtMsg:]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[2:]) == unix.RTA_DST {
			addr, ok := netip.AddrFromSlice(b[unix.SizeofRtAttr:size])
			p := netip.PrefixFrom(addr, bits)
			return p, ok && p.IsValid()
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return netip.Prefix{}, false
}

// dumpLimit bounds one dump's silence.
const dumpLimit = 10 * time.Second

// dump reads what the kernel of a namespace has, without the announcements.
func dump(ns *lab.Namespace) (map[netip.Prefix]bool, error) {
	found := map[netip.Prefix]bool{}
	err := ns.Do(func() error {
		fd, err := lab.Rtnetlink(0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		limit := unix.NsecToTimeval(dumpLimit.Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			for {
				part, err := dumpFamily(fd, family)
				if errors.Is(err, errInterrupted) {
					continue
				}
				if err != nil {
					return err
				}
				maps.Copy(found, part)
				break
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the routes of %s: %w", ns.Name(), err)
	}
	return found, nil
}

// errInterrupted says that routes changed meanwhile (NLM_F_DUMP_INTR).
var errInterrupted = errors.New("the dump was interrupted")

func dumpFamily(fd int, family byte) (map[netip.Prefix]bool, error) {
	ask := make([]byte, unix.SizeofNlMsghdr+unix.SizeofRtMsg)
	binary.NativeEndian.PutUint32(ask, uint32(len(ask)))
	binary.NativeEndian.PutUint16(ask[4:], unix.RTM_GETROUTE)
	binary.NativeEndian.PutUint16(ask[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	ask[unix.SizeofNlMsghdr] = family
	if err := unix.Sendto(fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	found, interrupted := map[netip.Prefix]bool{}, false
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		interrupted = interrupted || n >= unix.SizeofNlMsghdr && binary.NativeEndian.Uint16(buf[6:])&unix.NLM_F_DUMP_INTR != 0
		for typ, body := range lab.Messages(buf[:n]) {
			switch typ {
			case unix.NLMSG_DONE:
				if interrupted {
					return nil, errInterrupted
				}
				return found, nil
			case unix.NLMSG_ERROR:
				if len(body) < 4 {
					return nil, unix.EPROTO
				}
				return nil, syscall.Errno(-int32(binary.NativeEndian.Uint32(body)))
			}
			if to, ok := destination(body); ok {
				found[to] = true
			}
		}
	}
}
