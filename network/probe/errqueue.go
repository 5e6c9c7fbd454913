package probe

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// queued is what a socket's queue of errors has about a datagram that was sent
// (ip(7), IP_RECVERR): the network's answer to it.
type queued struct {
	to  netip.AddrPort // Where it was sent to.
	err NetworkError
	// local tells that this host's kernel said so while it was being sent.
	local bool
	// nonce is the datagram's, where the answer has so much of it.
	nonce uint64
	named bool
}

// mostLocal bounds what is remembered of errors of this host's kernel.
const mostLocal = 1024

// drain tells all errors in the queue to whom they are meant for. What the kernel
// itself said of what it was to send to an address is kept for who sends there, who
// has the errno already.
func (a *Asker) drain(s *socket) {
	a.draining.Lock()
	defer a.draining.Unlock()
	for {
		q, ok := s.nextError()
		switch {
		case !ok:
			return
		case q.local:
			if len(a.local) >= mostLocal {
				clear(a.local)
			}
			a.local[q.to.Addr()] = q.err
			continue
		}
		a.mu.Lock()
		for nonce, w := range a.waiting {
			if q.named && nonce == q.nonce || !q.named && w.to == q.to {
				w.tell(result{err: &q.err})
			}
		}
		a.mu.Unlock()
	}
}

// refused completes an errno that the kernel gave for what was to be sent to an
// address, after the queue was drained.
func (a *Asker) refused(errno unix.Errno, to netip.Addr) *NetworkError {
	a.draining.Lock()
	defer a.draining.Unlock()
	if e, ok := a.local[to]; ok && e.Errno == errno {
		return &e
	}
	return &NetworkError{Errno: errno}
}

// nextError takes one error from the queue. It does not wait.
func (s *socket) nextError() (q queued, ok bool) {
	var b [header]byte
	var control [512]byte
	var n, oob int
	var to unix.Sockaddr
	err := s.control(func(fd int) (err error) {
		// It is pending still where nobody was told of it.
		if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
			return err
		}
		n, oob, _, to, err = unix.Recvmsg(fd, b[:], control[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		return err
	})
	if err != nil {
		return queued{}, false
	}
	switch to := to.(type) {
	case *unix.SockaddrInet4:
		q.to = netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port))
	case *unix.SockaddrInet6:
		q.to = netip.AddrPortFrom(netip.AddrFrom16(to.Addr), uint16(to.Port))
	}
	if p, err := parse(b[:n], MinPayload); err == nil {
		q.nonce, q.named = p.nonce, true
	}
	for rest := control[:oob]; len(rest) > 0; {
		head, data, after, err := unix.ParseOneSocketControlMessage(rest)
		if err != nil {
			break
		}
		if rest = after; int(head.Level) == levels[s.family] && int(head.Type) == optErrors[s.family] {
			q.err, q.local = parseError(s.family, data)
		}
	}
	return q, true
}

// parseError reads a struct sock_extended_err and the offender's address behind it
// (SO_EE_OFFENDER).
func parseError(f subnet.Family, data []byte) (e NetworkError, local bool) {
	const length = int(unsafe.Sizeof(unix.SockExtendedErr{}))
	if len(data) < length {
		return e, false
	}
	e.Errno = unix.Errno(binary.NativeEndian.Uint32(data))
	origin := data[4]
	if e.Errno == unix.EMSGSIZE {
		e.MTU = int(binary.NativeEndian.Uint32(data[8:]))
	}
	if origin == unix.SO_EE_ORIGIN_LOCAL {
		return e, true
	}
	at := length + subnet.PerFamily[int]{4, 8}[f] // sin_addr, sin6_addr.
	if size := f.Bits() / 8; len(data) >= at+size {
		e.By, _ = netip.AddrFromSlice(data[at : at+size])
	}
	return e, false
}
