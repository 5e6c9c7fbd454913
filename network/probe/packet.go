package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/ripstop-net/ripstop/subnet"
)

// A request and its answer are one UDP datagram each. All numbers are big-endian;
// what follows the header, up to the datagram's size, means nothing.
//
//	 0  magic, 4 bytes
//	 4  version, 1
//	 5  kind: 1 request, 2 answer
//	 6  layer by which this datagram was sent: 0 underlay, 1 overlay
//	 7  flags: 1 answer by the other layer, 2 answer unfragmented
//	 8  nonce, 8 bytes, of the request
//	16  request: size that the answer is to have; answer: size that arrived
//	18  zero, 2 bytes
//	20  answer: what is wrong at the answerer (Trouble); request: zero
//
// Sizes are of UDP's payload, in bytes.
const (
	magic   = 0x5270ec40
	version = 1

	offVersion = 4
	offKind    = 5
	offLayer   = 6
	offFlags   = 7
	offNonce   = 8
	offSize    = 16
	offZero    = 18
	offTrouble = 20
	header     = 24
)

// MinPayload is the size in bytes that a datagram has at least: more than the
// header, so that later versions have room in which no answer outgrows its
// request. MaxPayload is the most that UDP carries over IPv4.
const (
	MinPayload = 64
	MaxPayload = subnet.MaxMTU - 28
)

// overhead is what IP and UDP add to a payload, in bytes.
var overhead = subnet.PerFamily[int]{20 + 8, 40 + 8}

// Layer is a way on which nodes reach each other.
type Layer uint8

// The layers.
const (
	// Underlay: from public address to public address.
	Underlay Layer = iota
	// Overlay: from subnet to subnet, as pods' packets go.
	Overlay
)

// Layers lists both.
var Layers = [2]Layer{Underlay, Overlay}

// PerLayer holds one value for each layer.
type PerLayer[T any] [2]T

// Other is the other layer.
func (l Layer) Other() Layer { return 1 - l }

// String returns "underlay" or "overlay".
func (l Layer) String() string {
	if l == Underlay {
		return "underlay"
	}
	return "overlay"
}

// Address is where a lease's holder answers on a layer, the zero Addr where the
// lease has no address of the family.
func (l Layer) Address(f subnet.Family, of subnet.Lease) (a netip.Addr) {
	if l == Underlay {
		return of.Endpoints[f].PublicIP
	}
	if p := of.Subnets[f]; p.IsValid() {
		a = p.Addr()
	}
	return a
}

// kind is what a datagram is.
type kind uint8

const (
	request kind = 1
	answer  kind = 2
)

const (
	flagOther = 1 << iota
	flagWhole
	flagsKnown = flagOther | flagWhole
)

// packet is a datagram's header.
type packet struct {
	kind  kind
	layer Layer
	// other asks for the answer by the other layer, whole for one that nobody may
	// split on its way.
	other, whole bool
	nonce        uint64
	// size is what the answer is to have, or what arrived: see above.
	size    int
	trouble Trouble
}

var errJunk = errors.New("no echo packet")

// parse reads the header of a datagram, of which b may be the first bytes alone,
// and whose size is in bytes. What it does not know entirely is junk.
func parse(b []byte, size int) (packet, error) {
	if len(b) < header || size < MinPayload || binary.BigEndian.Uint32(b) != magic || b[offVersion] != version {
		return packet{}, errJunk
	}
	p := packet{
		kind: kind(b[offKind]), layer: Layer(b[offLayer]),
		other: b[offFlags]&flagOther != 0, whole: b[offFlags]&flagWhole != 0,
		nonce: binary.BigEndian.Uint64(b[offNonce:]), size: int(binary.BigEndian.Uint16(b[offSize:])),
		trouble: Trouble(binary.BigEndian.Uint32(b[offTrouble:])),
	}
	switch {
	case p.kind != request && p.kind != answer, p.layer > Overlay, b[offFlags]&^flagsKnown != 0:
		return packet{}, errJunk
	case binary.BigEndian.Uint16(b[offZero:]) != 0, p.kind == request && p.trouble != 0:
		return packet{}, errJunk
	case p.size < MinPayload || p.size > MaxPayload, p.kind == request && p.size > size:
		return packet{}, errJunk
	}
	return p, nil
}

// put writes the header to the beginning of b, which has room for it.
func (p packet) put(b []byte) {
	clear(b[:header])
	binary.BigEndian.PutUint32(b, magic)
	b[offVersion], b[offKind], b[offLayer] = version, byte(p.kind), byte(p.layer)
	if p.other {
		b[offFlags] |= flagOther
	}
	if p.whole {
		b[offFlags] |= flagWhole
	}
	binary.BigEndian.PutUint64(b[offNonce:], p.nonce)
	binary.BigEndian.PutUint16(b[offSize:], uint16(p.size))
	binary.BigEndian.PutUint32(b[offTrouble:], uint32(p.trouble))
}

// reply makes the answer to a request that came by a layer, and tells its size,
// which is the request's at most.
func (p packet) reply(arrived int, trouble Trouble) (out packet, size int) {
	out = packet{kind: answer, layer: p.layer, other: p.other, whole: p.whole, nonce: p.nonce, size: arrived, trouble: trouble}
	if p.other {
		out.layer = p.layer.Other()
	}
	return out, min(p.size, arrived)
}

// Trouble is what is wrong at a node, as its answers tell: bit i says that the
// i-th condition of readiness does not hold there.
type Trouble uint32

// InTheWay says that another's firewall rule drops pods' packets there.
const InTheWay Trouble = 1 << 31

// Condition is the trouble with the condition of a number, 0 to 30.
func Condition(i int) Trouble { return 1 << i }

// payload is what a packet of IP's of the given size carries behind UDP's header,
// both in bytes. 0 takes the least.
func payload(f subnet.Family, size int) (int, error) {
	if size == 0 {
		return MinPayload, nil
	}
	if least := overhead[f] + MinPayload; size < least || size > overhead[f]+MaxPayload {
		return 0, fmt.Errorf("an %s packet of %d bytes is not one of %d to %d", f, size, least, overhead[f]+MaxPayload)
	}
	return size - overhead[f], nil
}
