package lab

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// capture collects the IP packets that pass a port of the underlay's bridge.
type capture struct {
	stop    chan struct{}
	done    chan struct{}
	packets []ipPacket
}

// ipPacket is an IP packet as far as the tests look at it.
type ipPacket struct {
	src, dst netip.Addr
	proto    byte
	// length is the whole packet's by its header, in bytes.
	length   int
	fragment bool
	payload  []byte
}

const protoUDP = 17

// startCapture listens on the port of a host. Its loopback of what the port
// sends is included: both directions are seen.
func startCapture(t *testing.T, ns *Namespace, port string) *capture {
	t.Helper()
	c := &capture{stop: make(chan struct{}), done: make(chan struct{})}
	var fd int
	err := ns.Do(func() (err error) {
		link, err := net.InterfaceByName(port)
		if err != nil {
			return err
		}
		all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // In network order.
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}))
	})
	if err != nil {
		t.Fatalf("capture on %s: %v", port, err)
	}
	go func() {
		defer close(c.done)
		defer unix.Close(fd)
		buffer := make([]byte, 1<<17)
		for {
			n, _, err := unix.Recvfrom(fd, buffer, 0)
			if err == nil {
				if p, ok := parseFrame(append([]byte(nil), buffer[:n]...)); ok {
					c.packets = append(c.packets, p)
				}
				continue
			}
			select {
			case <-c.stop: // Only once the queue was empty for a moment.
				return
			default:
			}
		}
	}()
	return c
}

func (c *capture) end() []ipPacket {
	close(c.stop)
	<-c.done
	return c.packets
}

// parseFrame reads an Ethernet frame; frames that carry no IP are passed over.
func parseFrame(b []byte) (ipPacket, bool) {
	if len(b) < 14 {
		return ipPacket{}, false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x0800:
		return parseIPv4(b[14:])
	case 0x86dd:
		return parseIPv6(b[14:])
	}
	return ipPacket{}, false
}

func parseIPv4(b []byte) (p ipPacket, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return p, false
	}
	header := int(b[0]&15) * 4
	p.length = int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || p.length < header || len(b) < p.length {
		return p, false
	}
	p.src, p.dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	p.proto = b[9]
	p.fragment = binary.BigEndian.Uint16(b[6:])&0x3fff != 0 // Offset, or more to come.
	p.payload = b[header:p.length]
	return p, true
}

func parseIPv6(b []byte) (p ipPacket, ok bool) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return p, false
	}
	p.length = 40 + int(binary.BigEndian.Uint16(b[4:]))
	if len(b) < p.length {
		return p, false
	}
	p.src, p.dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	p.proto = b[6]
	p.fragment = p.proto == 44
	p.payload = b[40:p.length]
	return p, true
}

// vxlan reads what a UDP packet to a VXLAN port carries (RFC 7348, section 5).
func (p ipPacket) vxlan(port uint16) (vni uint32, inner ipPacket, ok bool) {
	if p.proto != protoUDP || p.fragment || len(p.payload) < 16 || binary.BigEndian.Uint16(p.payload[2:]) != port {
		return 0, inner, false
	}
	header := p.payload[8:]
	if header[0] != 0x08 {
		return 0, inner, false
	}
	inner, ok = parseFrame(header[8:])
	return binary.BigEndian.Uint32(header[4:]) >> 8, inner, ok
}
