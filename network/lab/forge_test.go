package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// Packets as somebody writes them who is no peer.

// onesComplement is the Internet checksum (RFC 1071) over several parts, of which
// only the last may have an odd length.
func onesComplement(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// udpDatagram is a UDP header with its checksum, and what it carries.
func udpDatagram(from, to netip.AddrPort, payload []byte) []byte {
	d := binary.BigEndian.AppendUint16(nil, from.Port())
	d = binary.BigEndian.AppendUint16(d, to.Port())
	d = binary.BigEndian.AppendUint16(d, uint16(8+len(payload)))
	d = append(append(d, 0, 0), payload...)
	length := binary.BigEndian.AppendUint32(nil, uint32(len(d)))
	sum := onesComplement(from.Addr().AsSlice(), to.Addr().AsSlice(), length, []byte{0, 0, 0, protoUDP}, d)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(d[6:], sum)
	return d
}

// packetID numbers packets, so that fragments of one are not taken for another's.
var packetID atomic.Uint32

// ipPackets is a packet with a payload, split into fragments at the given
// offsets, which are multiples of eight bytes.
func ipPackets(from, to netip.Addr, payload []byte, splits ...int) [][]byte {
	var out [][]byte
	id := binary.BigEndian.AppendUint16(nil, uint16(packetID.Add(1)))
	cuts := append(append([]int{0}, splits...), len(payload))
	for i := range len(cuts) - 1 {
		part, more := payload[cuts[i]:cuts[i+1]], uint16(0)
		if i < len(cuts)-2 {
			more = 1
		}
		var b []byte
		if from.Is4() {
			b = []byte{0x45, 0, 0, 0, id[0], id[1], 0, 0, 64, protoUDP, 0, 0}
			binary.BigEndian.PutUint16(b[2:], uint16(20+len(part)))
			binary.BigEndian.PutUint16(b[6:], uint16(cuts[i]/8)|more<<13)
			b = append(append(b, from.AsSlice()...), to.AsSlice()...)
			binary.BigEndian.PutUint16(b[10:], onesComplement(b))
		} else {
			var fragment []byte
			next := byte(protoUDP)
			if len(splits) > 0 {
				next = 44
				fragment = []byte{protoUDP, 0, 0, 0, 0, 0, id[0], id[1]}
				binary.BigEndian.PutUint16(fragment[2:], uint16(cuts[i])|more)
			}
			b = []byte{0x60, 0, 0, 0, 0, 0, next, 64}
			binary.BigEndian.PutUint16(b[4:], uint16(len(fragment)+len(part)))
			b = append(append(b, from.AsSlice()...), to.AsSlice()...)
			b = append(b, fragment...)
		}
		out = append(out, append(b, part...))
	}
	return out
}

// vxlanPacket is a VXLAN header (RFC 7348 section 5) before an Ethernet frame
// that carries an IP packet.
func vxlanPacket(vni uint32, mac subnet.MAC, packet []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
	b = append(append(b, mac[:]...), 2, 0x66, 0, 0, 0, 1)
	etherType := uint16(0x0800)
	if packet[0]>>4 == 6 {
		etherType = 0x86dd
	}
	return append(binary.BigEndian.AppendUint16(b, etherType), packet...)
}

// sendRaw sends IP packets as they are, with whatever addresses they have, by a socket
// with the given options.
func sendRaw(t *testing.T, ns *Namespace, to netip.Addr, packets [][]byte, options ...func(fd int) error) {
	t.Helper()
	err := ns.Do(func() error {
		domain, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: to.As16()})
		if to.Is4() {
			domain, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: to.As4()}
		}
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		for _, option := range options {
			if err := option(fd); err != nil {
				return err
			}
		}
		for _, p := range packets {
			if err := unix.Sendto(fd, p, 0, sa); err != nil {
				return fmt.Errorf("send %d bytes: %w", len(p), err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("send raw packets to %s: %v", to, err)
	}
}
