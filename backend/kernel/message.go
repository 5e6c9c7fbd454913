package kernel

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// host is the byte order of netlink headers and of most attributes.
var host = binary.NativeEndian

// Constants of the kernel's uapi that golang.org/x/sys/unix lacks.
const (
	attrRouteNexthopID   = 30 // RTA_NH_ID
	attrNeighNexthopID   = 13 // NDA_NH_ID
	attrNexthopFDB       = 11 // NHA_FDB
	extFilterSkipStats   = 8  // RTEXT_FILTER_SKIP_STATS
	addrGenModeNone      = 1  // IN6_ADDR_GEN_MODE_NONE
	attrInetConf         = 1  // IFLA_INET_CONF
	confForwarding       = 1  // IPV4_DEVCONF_FORWARDING
	confRPFilter         = 8  // IPV4_DEVCONF_RP_FILTER
	looseRPFilter        = 2  // RFC 3704 section 2.4
	attrNetconfIfindex   = 1  // NETCONFA_IFINDEX
	sizeNetconfMessage   = 4  // struct netconfmsg, aligned
	sizeNexthopMessage   = 8  // struct nhmsg
	sizeNeighMessage     = unix.SizeofNdMsg
	sizeRouteMessage     = unix.SizeofRtMsg
	sizeLinkMessage      = unix.SizeofIfInfomsg
	sizeAddressMessage   = unix.SizeofIfAddrmsg
	attrTypeMask         = 0x3fff // NLA_TYPE_MASK
	attrNested           = 0x8000 // NLA_F_NESTED
	maxErrno             = 4095
	sizeRouteNexthopItem = unix.SizeofRtNexthop
)

// message is one netlink message as received. Its body shares memory with the
// receive buffer.
type message struct {
	typ, flags uint16
	seq        uint32
	pid        uint32 // The port of who caused it, in an event.
	body       []byte
}

// messages visits the messages of a datagram.
func messages(b []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for len(b) >= unix.SizeofNlMsghdr {
			n := int(host.Uint32(b))
			if n < unix.SizeofNlMsghdr || n > len(b) {
				return
			}
			m := message{
				typ: host.Uint16(b[4:]), flags: host.Uint16(b[6:]), seq: host.Uint32(b[8:]), pid: host.Uint32(b[12:]),
				body: b[unix.SizeofNlMsghdr:n],
			}
			if !yield(m) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// attributes visits the attributes in b, which begins after the fixed part of a
// message or is the value of a nest. It allocates nothing.
func attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.SizeofNlAttr {
			n := int(host.Uint16(b))
			if n < unix.SizeofNlAttr || n > len(b) {
				return
			}
			if !yield(host.Uint16(b[2:])&attrTypeMask, b[unix.SizeofNlAttr:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// align rounds up to the 4 bytes to which messages and attributes are aligned.
func align(n int) int { return (n + 3) &^ 3 }

// The readers of attribute values give the zero value for one that is too
// short, so that no answer of a kernel can make the daemon panic.

func readU8(v []byte) uint8 {
	if len(v) < 1 {
		return 0
	}
	return v[0]
}

func readU16BE(v []byte) uint16 {
	if len(v) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(v)
}

func readU32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return host.Uint32(v)
}

// readText reads a string that ends with a zero byte.
func readText(v []byte) string {
	for i, c := range v {
		if c == 0 {
			return string(v[:i])
		}
	}
	return string(v)
}

func readAddr(v []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(v)
	return a
}

// builder writes requests one behind another. Its buffer is used again.
type builder struct {
	b     []byte
	start int
}

func (w *builder) reset() { w.b = w.b[:0] }

// begin starts a message and returns its fixed part, size zero bytes to fill in
// before anything else is written: what is written moves the buffer.
func (w *builder) begin(typ, flags uint16, seq uint32, size int) []byte {
	w.start = len(w.b)
	w.b = append(w.b, make([]byte, unix.SizeofNlMsghdr+align(size))...)
	h := w.b[w.start:]
	host.PutUint16(h[4:], typ)
	host.PutUint16(h[6:], flags|unix.NLM_F_REQUEST)
	host.PutUint32(h[8:], seq)
	return h[unix.SizeofNlMsghdr:]
}

// end writes the length of the message that begin started.
func (w *builder) end() { host.PutUint32(w.b[w.start:], uint32(len(w.b)-w.start)) }

// ask sets NLM_F_ACK in the message last begun.
func (w *builder) ask() {
	flags := w.b[w.start+6:]
	host.PutUint16(flags, host.Uint16(flags)|unix.NLM_F_ACK)
}

func (w *builder) attr(typ uint16, size int) []byte {
	at := len(w.b)
	w.b = append(w.b, make([]byte, unix.SizeofNlAttr+align(size))...)
	host.PutUint16(w.b[at:], uint16(unix.SizeofNlAttr+size))
	host.PutUint16(w.b[at+2:], typ)
	return w.b[at+unix.SizeofNlAttr:]
}

func (w *builder) bytes(typ uint16, v []byte) { copy(w.attr(typ, len(v)), v) }

func (w *builder) text(typ uint16, v string) { copy(w.attr(typ, len(v)+1), v) }

func (w *builder) u8(typ uint16, v uint8) { w.attr(typ, 1)[0] = v }

func (w *builder) u16BE(typ uint16, v uint16) { binary.BigEndian.PutUint16(w.attr(typ, 2), v) }

func (w *builder) u32(typ uint16, v uint32) { host.PutUint32(w.attr(typ, 4), v) }

func (w *builder) addr(typ uint16, a netip.Addr) {
	if a.Is4() {
		v := a.As4()
		w.bytes(typ, v[:])
		return
	}
	v := a.As16()
	w.bytes(typ, v[:])
}

// nest starts a nested attribute and returns what close needs.
func (w *builder) nest(typ uint16) int {
	at := len(w.b)
	w.attr(typ|attrNested, 0)
	return at
}

func (w *builder) close(at int) { host.PutUint16(w.b[at:], uint16(len(w.b)-at)) }

// family is the address family of a.
func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
