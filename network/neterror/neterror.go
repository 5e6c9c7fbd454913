// Package neterror reads what the network says of a packet that was sent, and who says
// it, from the queue of errors of its socket (ip(7), IP_RECVERR; ipv6(7), IPV6_RECVERR).
package neterror

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Error is what the network says in a peer's place: its kernel, a router's, or this
// host's own.
type Error struct {
	// Errno is what it comes to: ECONNREFUSED where the peer has nobody at the port,
	// EHOSTUNREACH and ENETUNREACH where it cannot be reached, EMSGSIZE where the
	// packet is too large, EPERM where a filter of this host's does not let it out,
	// EACCES where one on the way says that it does not let it through.
	Errno unix.Errno
	// By is who says so by ICMP, the zero Addr where this host's kernel did without.
	By netip.Addr
	// Unresolved tells that By has the way, and that whom it would hand the packet to did
	// not answer ARP or neighbour discovery.
	Unresolved bool
	// Local tells that this host's kernel said so while it was to send the packet.
	Local bool
	// MTU is the size that would pass, in bytes, where EMSGSIZE tells; else 0.
	MTU int
}

// Error implements error.
func (e *Error) Error() string {
	text := e.Errno.Error()
	if e.MTU > 0 {
		text = fmt.Sprintf("%s: MTU %d", text, e.MTU)
	}
	if e.By.IsValid() {
		return fmt.Sprintf("%s says: %s", e.By, text)
	}
	return text
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// Queue takes one error from a socket's queue of errors. The packet it is about went to
// to, whose port is 0 but for UDP's; of what that had behind its headers, b gets n bytes.
// It does not wait: ok is false where there is none.
func Queue(fd int, b []byte) (e Error, to netip.AddrPort, n int, ok bool) {
	var control [512]byte
	n, oob, _, name, err := unix.Recvmsg(fd, b, control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if err != nil {
		return Error{}, netip.AddrPort{}, 0, false
	}
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		to = netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port))
	case *unix.SockaddrInet6:
		to = netip.AddrPortFrom(netip.AddrFrom16(name.Addr), uint16(name.Port))
	}
	for rest := control[:oob]; len(rest) > 0; {
		head, data, after, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break
		}
		rest = after
		v4 := head.Level == unix.IPPROTO_IP && head.Type == unix.IP_RECVERR
		if v4 || head.Level == unix.IPPROTO_IPV6 && head.Type == unix.IPV6_RECVERR {
			e = parse(v4, data)
		}
	}
	return e, to, n, true
}

// ICMP's types and codes of a host that nobody answers for: RFC 792, and RFC 4443
// section 3.1.
const (
	icmpUnreachable, icmpHostUnreachable     = 3, 1
	icmpv6Unreachable, icmpv6AddrUnreachable = 1, 3
)

// parse reads a struct sock_extended_err and the offender's address behind it
// (SO_EE_OFFENDER).
func parse(v4 bool, data []byte) (e Error) {
	const length = int(unsafe.Sizeof(unix.SockExtendedErr{}))
	if len(data) < length {
		return e
	}
	e.Errno = unix.Errno(binary.NativeEndian.Uint32(data))
	origin, kind, code := data[4], data[5], data[6]
	if e.Errno == unix.EMSGSIZE {
		e.MTU = int(binary.NativeEndian.Uint32(data[8:]))
	}
	at, size := length+8, 16 // sin6_addr.
	switch {
	case origin == unix.SO_EE_ORIGIN_LOCAL:
		e.Local = true
		return e
	case v4:
		at, size = length+4, 4 // sin_addr.
		e.Unresolved = origin == unix.SO_EE_ORIGIN_ICMP && kind == icmpUnreachable && code == icmpHostUnreachable
	default:
		e.Unresolved = origin == unix.SO_EE_ORIGIN_ICMP6 && kind == icmpv6Unreachable && code == icmpv6AddrUnreachable
	}
	if len(data) >= at+size {
		e.By, _ = netip.AddrFromSlice(data[at : at+size])
	}
	return e
}
