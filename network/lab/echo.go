package lab

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
)

// PingOptions shape an echo request.
type PingOptions struct {
	// Size is the number of bytes behind the ICMP header; 0 takes 56, the
	// least is 16. The IP packet is 28 bytes larger with IPv4, 48 with IPv6.
	Size int
	// DontFragment forbids everybody to split the packet: one that is larger
	// than the MTU of the way out fails with EMSGSIZE.
	DontFragment bool
	// Timeout is how long an answer is waited for; 0 takes one second.
	Timeout time.Duration
}

const (
	usualEchoSize = 56
	leastEchoSize = 16 // A token of the socket's own and the sequence number.
	usualTimeout  = time.Second
)

func (o PingOptions) timeout() time.Duration {
	if o.Timeout == 0 {
		return usualTimeout
	}
	return o.Timeout
}

// ErrNoAnswer is wrapped where an echo request was sent and nothing came back.
var ErrNoAnswer = errors.New("no answer")

// Ping sends one echo request from within a namespace and returns the time
// until the answer. A zero from leaves the source address to the kernel.
func Ping(ctx context.Context, ns *Namespace, from, to netip.Addr, opts PingOptions) (time.Duration, error) {
	s, err := openEcho(ctx, ns, from, to, opts)
	if err != nil {
		return 0, err
	}
	defer s.close()
	defer s.wake(ctx)()
	sent := time.Now()
	if err := s.send(to, 0); err != nil {
		return 0, err
	}
	for {
		got, err := s.receive(ctx, sent.Add(opts.timeout()))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return 0, fmt.Errorf("ping %s from %s: %w within %s", to, ns.name, ErrNoAnswer, opts.timeout())
		case err != nil:
			return 0, err
		case got.from == to:
			return got.at.Sub(sent), nil
		}
	}
}

// echoSocket sends echo requests and receives the answers to them.
type echoSocket struct {
	conn   *net.IPConn
	where  string
	v4     bool
	id     int
	token  [8]byte
	size   int
	buffer []byte
}

// answer is one echo reply.
type answer struct {
	from netip.Addr
	seq  uint64
	at   time.Time
}

// openEcho opens a socket of the family of to.
func openEcho(ctx context.Context, ns *Namespace, from, to netip.Addr, opts PingOptions) (*echoSocket, error) {
	s := &echoSocket{where: ns.name, v4: to.Is4(), size: max(opts.Size, leastEchoSize), buffer: make([]byte, 1<<16)}
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
		return errors.Join(roomForBursts(c), dontFragment(c, s.v4, opts.DontFragment))
	}}
	err := ns.Do(func() error {
		c, err := config.ListenPacket(ctx, network, local)
		if err != nil {
			return err
		}
		s.conn = c.(*net.IPConn)
		return s.filter()
	})
	if err != nil {
		if s.conn != nil {
			err = errors.Join(err, s.conn.Close())
		}
		return nil, fmt.Errorf("open a ping socket in %s: %w", ns.name, err)
	}
	return s, nil
}

// filter lets only echo replies in: a raw socket sees every ICMP packet.
func (s *echoSocket) filter() error {
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

// dontFragment sets or clears DF on what a socket sends. IPV6_MTU_DISCOVER
// keeps the sender from splitting by what it learnt of the path,
// IPV6_DONTFRAG by the MTU of the interface.
func dontFragment(c syscall.RawConn, v4, on bool) error {
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

func (s *echoSocket) close() { _ = s.conn.Close() }

// wake makes receive look at ctx as soon as that ends.
func (s *echoSocket) wake(ctx context.Context) (unhook func() bool) {
	return context.AfterFunc(ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
}

func (s *echoSocket) send(to netip.Addr, seq uint64) error {
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
		return fmt.Errorf("ping %s from %s: %w", to, s.where, err)
	}
	return nil
}

// receive waits for the next answer to any request of this socket. Past the
// deadline it returns os.ErrDeadlineExceeded, after the end of ctx its error;
// the end comes through only with a hook of wake.
func (s *echoSocket) receive(ctx context.Context, deadline time.Time) (answer, error) {
	if err := s.conn.SetReadDeadline(deadline); err != nil {
		return answer{}, fmt.Errorf("set a deadline in %s: %w", s.where, err)
	}
	if err := ctx.Err(); err != nil { // Its hook may have come before the deadline above.
		return answer{}, err
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
			return answer{}, ctx.Err()
		case err != nil:
			return answer{}, fmt.Errorf("receive in %s: %w", s.where, err)
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
		return answer{from: peer.Unmap(), seq: binary.BigEndian.Uint64(echo.Data[8:]), at: at}, nil
	}
}
