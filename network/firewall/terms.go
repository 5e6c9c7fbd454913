package firewall

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// reg is the register that all terms use.
const reg = 1

// Where things are, in bytes: addresses in the IP headers, the destination port
// in UDP's, and the VNI after that in VXLAN's (RFC 7348 section 5).
var (
	sourceAt      = subnet.PerFamily[uint32]{12, 8}
	destinationAt = subnet.PerFamily[uint32]{16, 24}
	addressLen    = subnet.PerFamily[uint32]{4, 16}
	nfprotos      = subnet.PerFamily[byte]{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}
	protoNames    = subnet.PerFamily[string]{"ipv4", "ipv6"}
	headerNames   = subnet.PerFamily[string]{"ip", "ip6"}
	setTypes      = subnet.PerFamily[nftables.SetDatatype]{nftables.TypeIPAddr, nftables.TypeIP6Addr}
)

const (
	portAt = 2
	vniAt  = 8 + 4
	vniLen = 3
)

func load(base expr.PayloadBase, at, length uint32) expr.Any {
	return &expr.Payload{DestRegister: reg, Base: base, Offset: at, Len: length}
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func is(data []byte) expr.Any    { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data} }
func isNot(data []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: data} }

func proto(f subnet.Family) term {
	return term{"meta nfproto " + protoNames[f], []expr.Any{meta(expr.MetaKeyNFPROTO), is([]byte{nfprotos[f]})}}
}

// udpTo matches packets to a port. Of fragments it matches the first alone
// (nft_payload_eval).
func udpTo(port uint16) term {
	return term{fmt.Sprintf("udp dport %d", port), []expr.Any{
		meta(expr.MetaKeyL4PROTO), is([]byte{unix.IPPROTO_UDP}),
		load(expr.PayloadBaseTransportHeader, portAt, 2), is(binary.BigEndian.AppendUint16(nil, port)),
	}}
}

func vniBytes(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n)[1:] }

func vni(n uint32) term {
	return term{fmt.Sprintf("@th,%d,%d 0x%x", vniAt*8, vniLen*8, n), []expr.Any{load(expr.PayloadBaseTransportHeader, vniAt, vniLen), is(vniBytes(n))}}
}

// vniOther matches packets that show another VNI, and none that is too short to
// show one.
func vniOther(n uint32) term {
	return term{fmt.Sprintf("@th,%d,%d != 0x%x", vniAt*8, vniLen*8, n), []expr.Any{load(expr.PayloadBaseTransportHeader, vniAt, vniLen), isNot(vniBytes(n))}}
}

func source(p netip.Prefix) term      { return address("saddr", sourceAt, p) }
func destination(p netip.Prefix) term { return address("daddr", destinationAt, p) }

func address(field string, at subnet.PerFamily[uint32], p netip.Prefix) term {
	f := subnet.FamilyOf(p.Addr())
	return term{fmt.Sprintf("%s %s %s", headerNames[f], field, p), inPrefix(at[f], p)}
}

// inPrefix compares an address in the IP header as iptables-nft does, which
// understands rules written in its own way only: a prefix of whole bytes is
// loaded alone, another is masked.
func inPrefix(at uint32, p netip.Prefix) []expr.Any {
	addr := p.Masked().Addr().AsSlice()
	if p.Bits()%8 == 0 && p.Bits() > 0 {
		n := p.Bits() / 8
		return []expr.Any{load(expr.PayloadBaseNetworkHeader, at, uint32(n)), is(addr[:n])}
	}
	mask := make([]byte, len(addr))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		load(expr.PayloadBaseNetworkHeader, at, uint32(len(addr))),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: uint32(len(addr)), Mask: mask, Xor: make([]byte, len(addr))},
		is(addr),
	}
}

func sourceIn(f subnet.Family, set string) term {
	return term{fmt.Sprintf("%s saddr @%s", headerNames[f], set), []expr.Any{
		load(expr.PayloadBaseNetworkHeader, sourceAt[f], addressLen[f]),
		&expr.Lookup{SourceRegister: reg, SetName: set},
	}}
}

// note puts a packet's source into a set that rules fill, and counts it there.
func note(f subnet.Family, set string) term {
	return term{fmt.Sprintf("update @%s { %s saddr counter }", set, headerNames[f]), []expr.Any{
		load(expr.PayloadBaseNetworkHeader, sourceAt[f], addressLen[f]),
		&expr.Dynset{SrcRegKey: reg, SetName: set, Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{&expr.Counter{}}},
	}}
}

func markSet(bit uint32) term {
	value := binary.NativeEndian.AppendUint32(nil, bit)
	return term{fmt.Sprintf("meta mark & 0x%08x == 0x%08x", bit, bit), []expr.Any{
		meta(expr.MetaKeyMARK),
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: value, Xor: make([]byte, 4)},
		is(value),
	}}
}

var (
	doReturn   = term{"return", []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}}
	doNotTrack = term{"notrack", []expr.Any{&expr.Notrack{}}}
	// A port that is drawn at random does not collide with another's, where two
	// packets of one moment get the next free port both.
	doMasquerade = term{"masquerade fully-random", []expr.Any{&expr.Masq{FullyRandom: true}}}
)

func jump(chain string) term {
	return term{"jump " + chain, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}}
}

// doCountDrop has a counter of its own, for whoever lists the rules.
var doCountDrop = term{"counter drop", []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}}

func countDrop(counter string) term {
	return term{fmt.Sprintf("counter name %q drop", counter), []expr.Any{
		&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: counter},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}}
}
