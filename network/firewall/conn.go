package firewall

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Sizes of socket buffers in bytes. 60,000 elements are 1.7 MB in one datagram;
// without a larger buffer the send fails with EMSGSIZE.
const (
	requestBuffer  = 16 << 20
	listenerBuffer = 8 << 20
)

// answerTime bounds one exchange with the kernel, which works while it is asked:
// only another's large transaction (nft_net.commit_mutex) makes it wait.
const answerTime = 10 * time.Second

// conn is one socket for requests. It is for one goroutine, and closed after an
// error, for what is left of an answer would be in the way of the next.
type conn struct {
	nft  *nftables.Conn
	sock *netlink.Conn
	// port is the socket's netlink port, which what it caused is announced with.
	port uint32
}

// dial opens a socket in the namespace ns, or in the calling thread's if ns is nil.
func dial(ns *os.File) (*conn, error) {
	c := &conn{}
	options := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
		c.sock = s
		if err := errors.Join(s.SetWriteBuffer(requestBuffer), s.SetReadBuffer(requestBuffer)); err != nil {
			return err
		}
		var err error
		c.port, err = portOf(s)
		return err
	})}
	if ns != nil {
		options = append(options, nftables.WithNetNSFd(int(ns.Fd())))
	}
	nft, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	c.nft = nft
	return c, nil
}

func (c *conn) close() { _ = c.nft.CloseLasting() }

// limit bounds what follows by answerTime and by ctx. The function it returns
// ends that and must be called.
func (c *conn) limit(ctx context.Context) (stop func()) {
	_ = c.sock.SetDeadline(time.Now().Add(answerTime)) // It fails only on a closed socket, as the exchange then does.
	cancelled := make(chan struct{})
	after := context.AfterFunc(ctx, func() {
		defer close(cancelled)
		_ = c.sock.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !after() {
			<-cancelled
		}
	}
}

func portOf(s *netlink.Conn) (port uint32, err error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		var sa unix.Sockaddr
		if sa, failed = unix.Getsockname(int(fd)); failed == nil {
			if own, ok := sa.(*unix.SockaddrNetlink); ok {
				port = own.Pid
			}
		}
	})
	return port, errors.Join(err, failed)
}

// lacksPart tells whether an errno is one by which a kernel refuses rules for the lack
// of a module.
func lacksPart(err error) bool {
	for _, errno := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// explain names the module that the errno of a refused ruleset speaks of.
func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: the right CAP_NET_ADMIN is missing", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the kernel lacks nftables (module nf_tables, with family inet)", err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: the kernel may lack a part of nftables (modules nft_ct, nft_masq, nft_chain_nat)", err)
	case errors.Is(err, unix.EMSGSIZE):
		return fmt.Errorf("%w: the socket's buffer is too small and may not be made larger (CAP_NET_ADMIN in the first user namespace)", err)
	}
	return err
}
