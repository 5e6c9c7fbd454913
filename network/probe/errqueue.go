package probe

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/neterror"
)

// queued is what a socket's queue of errors has about a datagram that was sent
// (ip(7), IP_RECVERR): the network's answer to it.
type queued struct {
	to  netip.AddrPort // Where it was sent to.
	err NetworkError
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
		case q.err.Local:
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
	var n int
	err := s.control(func(fd int) (err error) {
		// It is pending still where nobody was told of it.
		if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil {
			return err
		}
		q.err, q.to, n, ok = neterror.Queue(fd, b[:])
		return nil
	})
	if err != nil || !ok {
		return queued{}, false
	}
	if p, err := parse(b[:n], MinPayload); err == nil {
		q.nonce, q.named = p.nonce, true
	}
	return q, true
}
