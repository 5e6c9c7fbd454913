package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// The IP options of both families.
var (
	levels      = subnet.PerFamily[int]{unix.IPPROTO_IP, unix.IPPROTO_IPV6}
	optInfo     = subnet.PerFamily[int]{unix.IP_PKTINFO, unix.IPV6_RECVPKTINFO}
	optErrors   = subnet.PerFamily[int]{unix.IP_RECVERR, unix.IPV6_RECVERR}
	optDiscover = subnet.PerFamily[int]{unix.IP_MTU_DISCOVER, unix.IPV6_MTU_DISCOVER}
	cmsgInfo    = subnet.PerFamily[int32]{unix.IP_PKTINFO, unix.IPV6_PKTINFO}
	// infoAddr is where a datagram's destination is in its packet info: ipi_addr of
	// struct in_pktinfo, ipi6_addr of struct in6_pktinfo.
	infoAddr = subnet.PerFamily[int]{8, 0}
	networks = subnet.PerFamily[string]{"udp4", "udp6"}
)

// sendPatience is what a datagram has for getting into a full send buffer, which
// fills while the kernel looks for neighbours that are gone.
const sendPatience = 500 * time.Millisecond

// largest is room for any datagram, in bytes.
const largest = 1 << 16

// socket is one UDP port on all of the host's addresses of a family. It tells at
// which address a datagram came in, and lets each have its own source address.
type socket struct {
	family subnet.Family
	conn   *net.UDPConn

	mu    sync.Mutex // For sending.
	whole bool       // As the socket's option is.
}

// open opens a port, 0 for any that is free, after setup has seen the descriptor.
func open(ctx context.Context, f subnet.Family, port uint16, setup func(fd int) error) (*socket, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		ctl := c.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptInt(int(fd), levels[f], optInfo[f], 1),
				unix.SetsockoptInt(int(fd), levels[f], optDiscover[f], unix.IP_PMTUDISC_DONT),
				setup(int(fd)))
		})
		return errors.Join(ctl, err)
	}}
	c, err := config.ListenPacket(ctx, networks[f], ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, fmt.Errorf("open UDP port %d for %s: %w", port, f, err)
	}
	return &socket{family: f, conn: c.(*net.UDPConn)}, nil
}

func (s *socket) close() error { return s.conn.Close() }

// reader has what reading takes again and again.
type reader struct {
	b, control []byte
}

func newReader() *reader { return &reader{make([]byte, largest), make([]byte, 256)} }

// datagram is one that came in. Its bytes are the reader's until it reads again.
type datagram struct {
	b    []byte
	from netip.AddrPort
	to   netip.Addr
}

// read waits for a datagram.
func (s *socket) read(r *reader) (datagram, error) {
	n, oob, _, from, err := s.conn.ReadMsgUDPAddrPort(r.b, r.control)
	if err != nil {
		return datagram{}, err
	}
	return datagram{r.b[:n], from, s.destination(r.control[:oob])}, nil
}

// destination is the address in the packet info, the zero Addr where it is missing.
func (s *socket) destination(control []byte) netip.Addr {
	for len(control) > 0 {
		head, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		length := s.family.Bits() / 8
		if at := infoAddr[s.family]; int(head.Level) == levels[s.family] && head.Type == cmsgInfo[s.family] && len(data) >= at+length {
			a, _ := netip.AddrFromSlice(data[at : at+length])
			return a
		}
		control = rest
	}
	return netip.Addr{}
}

// send sends a datagram. A zero from leaves the source address to the kernel; one
// that is not the host's is ENETUNREACH, or EINVAL over IPv6. Whole forbids everybody to split it, and takes
// the interface's MTU as the only bound, whatever was learnt of the path.
func (s *socket) send(b []byte, from netip.Addr, to netip.AddrPort, whole bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if whole != s.whole {
		if err := s.setWhole(whole); err != nil {
			return fmt.Errorf("set whether packets may be split: %w", err)
		}
		s.whole = whole
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(sendPatience)); err != nil {
		return err
	}
	_, _, err := s.conn.WriteMsgUDPAddrPort(b, sourceInfo(from), to)
	return err
}

// setWhole sets the option, which is the socket's and counts when a packet is made:
// IPv4 has none that goes with a datagram.
func (s *socket) setWhole(whole bool) error {
	discover, dontFragment := unix.IP_PMTUDISC_DONT, 0 // As IPv6's of that name.
	if whole {
		discover, dontFragment = unix.IP_PMTUDISC_PROBE, 1
	}
	return s.control(func(fd int) error {
		err := unix.SetsockoptInt(fd, levels[s.family], optDiscover[s.family], discover)
		if s.family == subnet.V6 {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, dontFragment))
		}
		return err
	})
}

func (s *socket) control(do func(fd int) error) error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	ctl := raw.Control(func(fd uintptr) { err = do(int(fd)) })
	return errors.Join(ctl, err)
}

// sourceInfo is the packet info that gives a datagram its source address.
func sourceInfo(from netip.Addr) []byte {
	switch {
	case !from.IsValid():
		return nil
	case from.Is4():
		return unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
	}
	return unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
}
