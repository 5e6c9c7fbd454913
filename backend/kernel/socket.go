package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// answerTime limits the wait for an answer. The kernel does the work inside
// the send, where it may wait for the rtnl lock as long as it takes; after that
// the answers are there already, so that only a lost one is ever waited for.
const answerTime = 30 * time.Second

// Sizes in bytes. A datagram of a dump is at most 32 KiB long (netlink_dump).
const (
	receiveSize    = 64 << 10
	requestBuffer  = 4 << 20
	listenerBuffer = 32 << 20
)

// socket is a netlink socket of the routing family. It is for one goroutine.
type socket struct {
	file *os.File
	raw  syscall.RawConn
	seq  uint32
	in   []byte
	// broken is set when an exchange did not come to its end.
	broken bool
}

// dial opens a socket in the network namespace ns, or in that of the calling
// thread if ns is nil.
func dial(ns *os.File, buffer int) (*socket, error) {
	return dialAs(ns, unix.SOCK_NONBLOCK, buffer)
}

// dialAs is dial with flags of socket(2).
func dialAs(ns *os.File, flags, buffer int) (*socket, error) {
	fd, err := openIn(ns, flags)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	s := &socket{file: file, in: make([]byte, receiveSize)}
	if s.raw, err = file.SyscallConn(); err == nil {
		err = setUp(fd, buffer)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up netlink socket: %w", err), file.Close())
	}
	return s, nil
}

// openIn opens the bare socket. A thread that entered another namespace must
// not serve other goroutines afterwards: it stays locked and so ends with its
// goroutine.
func openIn(ns *os.File, flags int) (fd int, err error) {
	open := func() {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_ROUTE)
	}
	if ns == nil {
		open()
		return fd, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err == nil {
			open()
		}
	}()
	<-done
	return fd, err
}

func setUp(fd, buffer int) error {
	for _, o := range []int{unix.NETLINK_CAP_ACK, unix.NETLINK_EXT_ACK, unix.NETLINK_GET_STRICT_CHK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, o, 1); err != nil {
			return explainFeature(err)
		}
	}
	// Forcing needs CAP_NET_ADMIN in the first user namespace
	// (sockopt_capable); without it the limits of the host hold.
	for force, plain := range map[int]int{unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, buffer) == nil {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, buffer); err != nil {
			return err
		}
	}
	return unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func (s *socket) join(groups ...int) error {
	var failed error
	err := s.raw.Control(func(fd uintptr) {
		for _, g := range groups {
			if err := unix.SetsockoptInt(int(fd), unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
				failed = fmt.Errorf("subscribe to netlink group %d: %w", g, err)
				return
			}
		}
	})
	return errors.Join(err, failed)
}

func (s *socket) close() error { return s.file.Close() }

// next gives out n sequence numbers and returns the first. Numbers are never 0,
// which is what events have.
func (s *socket) next(n int) uint32 {
	if s.seq > 1<<31 {
		s.seq = 0
	}
	first := s.seq + 1
	s.seq += uint32(n)
	return first
}

// send hands a datagram to the kernel, which has worked through it when send
// returns (netlink_unicast_kernel).
func (s *socket) send(b []byte) error {
	var failed error
	err := s.raw.Write(func(fd uintptr) bool {
		for {
			_, failed = unix.Write(int(fd), b)
			if failed != unix.EINTR {
				return failed != unix.EAGAIN
			}
		}
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("send netlink request: %w", err)
	}
	return nil
}

// until makes reads end when ctx does, or after limit if it is not 0. The
// function it returns ends that and must be called.
func (s *socket) until(ctx context.Context, limit time.Duration) (stop func()) {
	deadline := time.Time{}
	if limit > 0 {
		deadline = time.Now().Add(limit)
	}
	_ = s.file.SetReadDeadline(deadline) // It fails only on a closed socket, as the read then does.
	cancelled := make(chan struct{})
	after := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		_ = s.file.SetReadDeadline(time.Unix(1, 0))
	})
	return func() {
		if !after() {
			<-cancelled // Else it could strike the next wait.
		}
	}
}

// receive returns the next datagram from the kernel, which lasts until the next
// receive. It ends as until says; ctx's error goes before others.
func (s *socket) receive(ctx context.Context) ([]byte, error) {
	for {
		n, from, err := s.read()
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil:
			return nil, fmt.Errorf("receive netlink answer: %w", err)
		case from != 0:
			continue // Another process, not the kernel.
		case n > len(s.in):
			return nil, fmt.Errorf("receive netlink answer: %d bytes: %w", n, unix.EMSGSIZE)
		}
		return s.in[:n], nil
	}
}

func (s *socket) read() (n int, from uint32, err error) {
	var failed error
	err = s.raw.Read(func(fd uintptr) bool {
		var sa unix.Sockaddr
		for {
			n, sa, failed = unix.Recvfrom(int(fd), s.in, unix.MSG_TRUNC)
			if failed != unix.EINTR {
				break
			}
		}
		if sa, ok := sa.(*unix.SockaddrNetlink); ok {
			from = sa.Pid
		}
		return failed != unix.EAGAIN
	})
	if err == nil {
		err = failed
	}
	return n, from, err
}

// poll returns the next datagram from the kernel if it is there, else EAGAIN. It
// does not disturb who waits for one.
func (s *socket) poll() (b []byte, err error) {
	for {
		var n int
		var sa unix.Sockaddr
		var failed error
		err := s.raw.Control(func(fd uintptr) {
			n, sa, failed = unix.Recvfrom(int(fd), s.in, unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		})
		if err = errors.Join(err, failed); errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("receive netlink event: %w", err)
		}
		if from, ok := sa.(*unix.SockaddrNetlink); ok && from.Pid != 0 {
			continue // Another process, not the kernel.
		}
		if n > len(s.in) {
			return nil, fmt.Errorf("receive netlink event: %d bytes: %w", n, unix.EMSGSIZE)
		}
		return s.in[:n], nil
	}
}

// ask sends one request, which w holds with sequence number seq, and hands what
// is answered to each. For a dump it goes on to its end. It returns
// errInterrupted if the dump may be incomplete.
func (s *socket) ask(ctx context.Context, w *builder, seq uint32, each func(message)) error {
	s.broken = true
	if err := s.send(w.b); err != nil {
		return err
	}
	defer s.until(ctx, answerTime)()
	interrupted := false
	for {
		b, err := s.receive(ctx)
		if err != nil {
			return err
		}
		for m := range messages(b) {
			if m.seq != seq {
				continue
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.typ {
			case unix.NLMSG_ERROR, unix.NLMSG_DONE:
				s.broken = false
				if err := answer(m); err != nil {
					return err
				}
				if interrupted {
					return errInterrupted
				}
				return nil
			default:
				if each != nil {
					each(m)
				}
			}
		}
	}
}

// batch sends a datagram of n requests that are numbered from first on, the
// last of which asks for an answer, and hands the answer to each that failed to
// failed. Others do not answer: no news before the last one's is good news.
func (s *socket) batch(ctx context.Context, b []byte, first uint32, n int, failed func(at int, err error)) error {
	s.broken = true
	if err := s.send(b); err != nil {
		return err
	}
	defer s.until(ctx, answerTime)()
	for {
		b, err := s.receive(ctx)
		if err != nil {
			return err
		}
		for m := range messages(b) {
			at := int(m.seq - first)
			if m.typ != unix.NLMSG_ERROR || m.seq < first || at >= n {
				continue
			}
			if err := answer(m); err != nil {
				failed(at, err)
			}
			if at == n-1 {
				s.broken = false
				return nil
			}
		}
	}
}
