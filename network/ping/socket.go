// Package ping sends ICMP echo requests, which the kernel of the other host answers,
// and receives the answers.
package ping

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/neterror"
)

// Options shape an echo request.
type Options struct {
	// Size is the number of bytes behind the ICMP header; 0 takes 56, the
	// least is 16. The IP packet is 28 bytes larger with IPv4, 48 with IPv6.
	Size int
	// DontFragment forbids everybody to split the packet: one that is larger
	// than the MTU of the way out fails with EMSGSIZE.
	DontFragment bool
	// HearErrors has what hosts on the way say of a packet, and this one, told as the
	// error of a receive: that there is no way, or that a packet is too large. It is of
	// packets to the address that the socket was opened for.
	HearErrors bool
	// Timeout is how long an answer is waited for; 0 takes one second.
	Timeout time.Duration
}

const (
	usualEchoSize = 56
	leastEchoSize = 16 // A token of the socket's own and the sequence number.
	usualTimeout  = time.Second
)

// Within is how long an answer is waited for.
func (o Options) Within() time.Duration {
	if o.Timeout == 0 {
		return usualTimeout
	}
	return o.Timeout
}

// ErrNoAnswer is wrapped where an echo request was sent and nothing came back.
var ErrNoAnswer = errors.New("no answer")

// Once sends one echo request from the network namespace of the calling thread and
// returns the time until the answer. A zero from leaves the source address to the
// kernel. Where nothing comes back the error is [ErrNoAnswer]; where this host or one
// on the way says why, that errno: EHOSTUNREACH, ENETUNREACH, EMSGSIZE; and with
// HearErrors, where it was said by ICMP, a [neterror.Error].
func Once(ctx context.Context, from, to netip.Addr, opts Options) (time.Duration, error) {
	s, err := Open(ctx, from, to, opts)
	if err != nil {
		return 0, err
	}
	return s.Once(ctx, to)
}

// Once sends one request, returns the time until its answer, and closes the socket.
func (s *Socket) Once(ctx context.Context, to netip.Addr) (time.Duration, error) {
	defer s.Close()
	defer s.Wake(ctx)()
	sent := time.Now()
	if err := s.Send(to, 0); err != nil {
		return 0, err
	}
	within := s.opts.Within()
	for {
		got, err := s.Receive(ctx, sent.Add(within))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, fmt.Errorf("ping %s: %w within %s", to, ErrNoAnswer, within)
		case err != nil:
			return 0, err
		case got.From == to:
			return got.At.Sub(sent), nil
		}
	}
}

// Socket sends echo requests and receives the answers to them.
type Socket struct {
	conn   *net.IPConn
	opts   Options
	v4     bool
	id     int
	token  [8]byte
	size   int
	buffer []byte
	to     netip.Addr
	heard  bool // Something was in the queue of errors.
}

// Answer is one echo reply.
type Answer struct {
	From netip.Addr
	// Seq is that of its request.
	Seq uint64
	// At is when it came.
	At time.Time
}

// Open opens a socket of the family of to, in the network namespace of the
// calling thread. A zero from leaves the source address to the kernel.
func Open(ctx context.Context, from, to netip.Addr, opts Options) (*Socket, error) {
	s := &Socket{opts: opts, to: to, v4: to.Is4(), size: max(opts.Size, leastEchoSize), buffer: make([]byte, 1<<16)}
	if opts.Size == 0 {
		s.size = usualEchoSize
	}
	_, _ = rand.Read(s.token[:]) // It never returns an error.
	s.id = int(binary.BigEndian.Uint16(s.token[:]))
	network, local := "ip6:58", "::"
	if s.v4 {
		network, local = "ip4:1", "0.0.0.0"
	}
	if from.IsValid() {
		local = from.String()
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return errors.Join(roomForBursts(c), DontFragment(c, s.v4, opts.DontFragment), hearErrors(c, s.v4, opts.HearErrors))
	}}
	c, err := config.ListenPacket(ctx, network, local)
	if err != nil {
		return nil, fmt.Errorf("open a ping socket: %w", err)
	}
	s.conn = c.(*net.IPConn)
	if err := s.filter(); err != nil {
		return nil, errors.Join(fmt.Errorf("filter a ping socket: %w", err), s.conn.Close())
	}
	return s, nil
}

// filter lets only echo replies in: a raw socket sees every ICMP packet.
func (s *Socket) filter() error {
	if s.v4 {
		var f ipv4.ICMPFilter
		f.SetAll(true)
		f.Accept(ipv4.ICMPTypeEchoReply)
		return ipv4.NewPacketConn(s.conn).SetICMPFilter(&f)
	}
	var f ipv6.ICMPFilter
	f.SetAll(true)
	f.Accept(ipv6.ICMPTypeEchoReply)
	return ipv6.NewPacketConn(s.conn).SetICMPFilter(&f)
}

// echoBuffer is a socket's receive buffer, in bytes.
const echoBuffer = 4 << 20

// roomForBursts keeps what a process finds that was kept from running for a while:
// it then sends all that is due at once, and the answers come to every ping socket
// of the namespace. What does not fit into a buffer looks lost on the way.
func roomForBursts(c syscall.RawConn) error {
	var err error
	ctlErr := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, echoBuffer)
	})
	return errors.Join(ctlErr, err)
}

// DontFragment sets DF on what a socket sends, or leaves it. IPV6_MTU_DISCOVER
// keeps the sender from splitting by what it learnt of the path,
// IPV6_DONTFRAG by the MTU of the interface.
func DontFragment(c syscall.RawConn, v4, on bool) error {
	if !on {
		return nil
	}
	var err error
	ctlErr := c.Control(func(fd uintptr) {
		if v4 {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			return
		}
		err = errors.Join(
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
			unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1))
	})
	return errors.Join(ctlErr, err)
}

// hearErrors lets a socket that is not connected hear of errors (raw_err in
// net/ipv4/raw.c, rawv6_err in net/ipv6/raw.c).
func hearErrors(c syscall.RawConn, v4, on bool) error {
	if !on {
		return nil
	}
	var err error
	ctlErr := c.Control(func(fd uintptr) {
		if v4 {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
			return
		}
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	})
	return errors.Join(ctlErr, err)
}

// said makes of an errno of a receive what the queue of errors has: who says so. It is
// nil where that is said to others: a socket that is not connected hears of what is sent
// from its address by any, and an errno may come after its entry was taken (raw_err,
// rawv6_err).
func (s *Socket) said(err error) error {
	var errno unix.Errno
	if !s.opts.HearErrors || !errors.As(err, &errno) {
		return err
	}
	raw, rawErr := s.conn.SyscallConn()
	if rawErr != nil {
		return err
	}
	var ours *neterror.Error
	_ = raw.Control(func(fd uintptr) {
		for ours == nil {
			e, to, _, ok := neterror.Queue(int(fd), nil)
			if !ok {
				return
			}
			if s.heard = true; to.Addr() == s.to {
				ours = &e
			}
		}
	})
	switch {
	case ours != nil:
		return ours
	case s.heard:
		return nil
	}
	return err
}

// Close lets go of the socket.
func (s *Socket) Close() { _ = s.conn.Close() }

// Wake makes Receive look at ctx as soon as that ends.
func (s *Socket) Wake(ctx context.Context) (unhook func() bool) {
	return context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
}

// Send sends a request that bears a number.
func (s *Socket) Send(to netip.Addr, seq uint64) error {
	data := make([]byte, s.size)
	copy(data, s.token[:])
	binary.BigEndian.PutUint64(data[8:], seq)
	m := icmp.Message{Type: ipv6.ICMPTypeEchoRequest, Body: &icmp.Echo{ID: s.id, Seq: int(uint16(seq)), Data: data}}
	if s.v4 {
		m.Type = ipv4.ICMPTypeEcho
	}
	// The kernel fills in the checksum of ICMPv6, which covers the addresses.
	packet, err := m.Marshal(nil)
	if err != nil {
		return fmt.Errorf("make an echo request: %w", err)
	}
	if _, err := s.conn.WriteTo(packet, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		return fmt.Errorf("ping %s: %w", to, err)
	}
	return nil
}

// Receive waits for the next answer to any request of this socket. Past the
// deadline it returns os.ErrDeadlineExceeded, after the end of ctx its error;
// the end comes through only with a hook of Wake.
func (s *Socket) Receive(ctx context.Context, deadline time.Time) (Answer, error) {
	if err := s.conn.SetReadDeadline(deadline); err != nil {
		return Answer{}, fmt.Errorf("set a deadline of a ping: %w", err)
	}
	if err := ctx.Err(); err != nil { // Its hook may have come before the deadline above.
		return Answer{}, err
	}
	proto := 58
	if s.v4 {
		proto = 1
	}
	for {
		n, from, err := s.conn.ReadFromIP(s.buffer)
		at := time.Now()
		switch { // An answer that came together with the end of ctx still counts.
		case err != nil && ctx.Err() != nil:
			return Answer{}, ctx.Err()
		case err != nil:
			if err = s.said(err); err == nil {
				continue
			}
			return Answer{}, fmt.Errorf("receive the answer to a ping: %w", err)
		}
		m, err := icmp.ParseMessage(proto, s.buffer[:n])
		if err != nil {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if !ok || len(echo.Data) != s.size || [8]byte(echo.Data[:8]) != s.token {
			continue
		}
		peer, _ := netip.AddrFromSlice(from.IP)
		return Answer{From: peer.Unmap(), Seq: binary.BigEndian.Uint64(echo.Data[8:]), At: at}, nil
	}
}
