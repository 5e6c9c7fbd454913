package firewall

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// probe is a packet that is forwarded, as far as it is known: the first of a TCP
// connection, from and to any port.
type probe struct {
	traffic  string
	iif, oif side
	src, dst netip.Addr
}

// side is an interface of which the name is known, or is none of others.
type side struct {
	name string
	not  []string
}

func (p probe) family() subnet.Family { return subnet.FamilyOf(p.src) }

// outsiders stand for what is no pod (RFC 5737, RFC 3849).
var outsiders = subnet.PerFamily[netip.Addr]{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// probes are the packets that must pass: between pods over the tunnel, both
// ways, and from pods to elsewhere.
func probes(n Network) []probe {
	var out []probe
	for _, f := range families(n) {
		tunnel := side{name: n.Devices[f]}
		pods := side{name: n.pods[f], not: append([]string{n.Devices[f], "lo"}, n.elsewhere...)}
		outside := side{not: []string{n.Devices[f], "lo"}}
		// No pod has the last address of a subnet, so that a rule for one pod alone, such as
		// Docker's for a published port, does not stand for what becomes of all.
		near := lastOf(n.Own[f])
		far := n.Ranges[f].Addr().Next()
		if n.Own[f].Contains(far) {
			far = lastOf(n.Ranges[f])
		}
		out = append(out,
			probe{"from other nodes' pods", tunnel, pods, far, near},
			probe{"to other nodes' pods", pods, tunnel, near, far},
			probe{"from pods to elsewhere", pods, outside, near, outsiders[f]})
	}
	return out
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b)
	return last
}

// fate is what becomes of a packet in a chain.
type fate uint8

const (
	passes fate = iota // It leaves the chain with no verdict.
	accepted
	refused
	returned
)

// trial follows one packet through chains. It is unsure as soon as a rule of
// which it is not known whether it matches could have let the packet pass.
type trial struct {
	*others
	probe  probe
	unsure bool
	// unread says that it may have gone through a chain that was not read.
	unread bool
	steps  int
	// by is the rule that dropped the packet, and top the index of the rule in
	// the base chain that led there.
	by  *otherChain
	at  int
	top int
}

// Bounds of a trial: the kernel's own depth (NFT_JUMP_STACK_SIZE) and a number
// of rules.
const (
	mostDepth = 16
	mostSteps = 100_000
)

// base follows the packet through a base chain. It tells whether it is dropped
// for certain; then by is where and at which rule, or -1 for the policy.
func (t *trial) base(c *otherChain) bool {
	t.unsure, t.unread, t.by, t.at = false, false, nil, -1
	t.top = len(c.rules)
	f := t.chain(c, 0)
	if f != accepted && f != refused && c.drop {
		f, t.by, t.at, t.top = refused, c, -1, len(c.rules)
	}
	return f == refused && !t.unsure
}

func (t *trial) chain(c *otherChain, depth int) fate {
	for i, r := range c.rules {
		if t.steps++; t.steps > mostSteps || depth > mostDepth {
			t.unsure = true
			return accepted
		}
		if depth == 0 {
			t.top = i
		}
		m := t.match(c.key.table, r)
		if m.sure == no || m.verdict == nil {
			continue
		}
		f := passes
		switch m.verdict.Kind {
		case expr.VerdictAccept:
			f = accepted
		case expr.VerdictDrop:
			f = refused
			if m.sure == yes {
				t.by, t.at = c, i
			}
		case expr.VerdictReturn:
			f = returned
		case expr.VerdictJump, expr.VerdictGoto:
			f = t.leads(c, m, depth)
		case expr.VerdictContinue, expr.VerdictBreak:
		default: // A queue, where a program decides.
			f, m.sure = accepted, maybe
		}
		if m.sure == maybe {
			t.unsure = t.unsure || f == accepted || f == returned
			continue
		}
		switch f {
		case accepted, refused:
			return f
		case returned:
			return passes
		}
	}
	if depth == 0 {
		t.top = len(c.rules)
	}
	return passes
}

// leads follows a jump or a goto.
func (t *trial) leads(c *otherChain, m matched, depth int) fate {
	to := t.chains[chainKey{c.key.table, m.verdict.Chain}]
	if to == nil || to.unread {
		t.unsure, t.unread = true, true
		return passes
	}
	by, at := t.by, t.at
	f := t.chain(to, depth+1)
	if m.sure != yes {
		t.by, t.at = by, at
	}
	if f == passes && m.verdict.Kind == expr.VerdictGoto {
		return returned
	}
	return f
}

// sureness is whether a rule matches.
type sureness uint8

const (
	yes sureness = iota
	maybe
	no
)

type matched struct {
	sure    sureness
	verdict *expr.Verdict
}

// registers hold what expressions load: sixteen of four bytes, of which some are
// known (struct nft_regs).
type registers struct {
	data  [64]byte
	known [64]bool
	// not are the names that the interface loaded last does not have.
	not []string
}

// span is where a register is: NFT_REG_1 to 4 have 16 bytes, NFT_REG32_00 and
// on have 4.
func span(register uint32, length int) (from, to int, ok bool) {
	switch {
	case register >= unix.NFT_REG_1 && register <= unix.NFT_REG_4:
		from = int(register-unix.NFT_REG_1) * 16
	case register >= unix.NFT_REG32_00 && register <= unix.NFT_REG32_15:
		from = int(register-unix.NFT_REG32_00) * 4
	default:
		return 0, 0, false
	}
	to = from + length
	return from, to, length >= 0 && to <= 64
}

func (r *registers) set(register uint32, data []byte, known bool) {
	from, to, ok := span(register, len(data))
	if !ok {
		return
	}
	copy(r.data[from:to], data)
	for i := from; i < to; i++ {
		r.known[i] = known
	}
}

// get returns bytes and which of them are known.
func (r *registers) get(register uint32, length int) (data []byte, known []bool, ok bool) {
	from, to, ok := span(register, length)
	if !ok {
		return nil, nil, false
	}
	return r.data[from:to], r.known[from:to], true
}

// match tells whether a rule matches and what it does then.
func (t *trial) match(table tableKey, r rule) (m matched) {
	var regs registers
	apply := func(s sureness) { m.sure = max(m.sure, s) }
	for _, e := range r.exprs {
		switch e := e.any.(type) {
		case *expr.Meta:
			if !e.SourceRegister {
				data, known := t.meta(e.Key)
				regs.set(e.Register, data, known)
				regs.not = t.not(e.Key)
			}
		case *expr.Payload:
			if e.OperationType == expr.PayloadLoad {
				t.payload(&regs, e)
			}
		case *expr.Ct:
			if !e.SourceRegister {
				data, known := ctValue(e.Key)
				regs.set(e.Register, data, known)
			}
		case *expr.Bitwise:
			bitwise(&regs, e)
		case *expr.Immediate:
			regs.set(e.Register, e.Data, true)
		case *expr.Cmp:
			apply(compare(&regs, e))
		case *expr.Range:
			apply(within(&regs, e))
		case *expr.Lookup:
			s, v := t.lookup(&regs, table, e)
			apply(s)
			if v != nil {
				m.verdict = v
			}
		case *expr.Match:
			apply(matchXT(e))
		case *expr.Target:
			if e.Name == "REJECT" {
				m.verdict = &expr.Verdict{Kind: expr.VerdictDrop}
			} else if e.Name == "NFQUEUE" {
				m.verdict = &expr.Verdict{Kind: expr.VerdictQueue}
			}
		case *expr.Reject:
			m.verdict = &expr.Verdict{Kind: expr.VerdictDrop}
		case *expr.Verdict:
			m.verdict = e
		case *expr.Counter, *expr.Log, *expr.Objref:
		default:
			apply(maybe)
			clear(regs.known[:])
		}
		if m.sure == no {
			return m
		}
	}
	return m
}

// meta is what is known of a packet's meta data.
func (t *trial) meta(key expr.MetaKey) (data []byte, known bool) {
	f := t.probe.family()
	name := func(s side) ([]byte, bool) {
		padded := make([]byte, unix.IFNAMSIZ)
		copy(padded, s.name)
		return padded, s.name != ""
	}
	switch key {
	case expr.MetaKeyIIFNAME:
		return name(t.probe.iif)
	case expr.MetaKeyOIFNAME:
		return name(t.probe.oif)
	case expr.MetaKeyNFPROTO:
		return []byte{nfprotos[f]}, true
	case expr.MetaKeyL4PROTO:
		return []byte{unix.IPPROTO_TCP}, true
	case expr.MetaKeyPROTOCOL:
		return binary.BigEndian.AppendUint16(nil, subnet.PerFamily[uint16]{unix.ETH_P_IP, unix.ETH_P_IPV6}[f]), true
	case expr.MetaKeyMARK:
		return make([]byte, 4), true
	}
	return make([]byte, 16), false
}

// not lists the names that an interface does not have.
func (t *trial) not(key expr.MetaKey) []string {
	switch key {
	case expr.MetaKeyIIFNAME:
		return t.probe.iif.not
	case expr.MetaKeyOIFNAME:
		return t.probe.oif.not
	}
	return nil
}

// payload loads from the packet, of which only the addresses and the protocol
// are known.
func (t *trial) payload(regs *registers, e *expr.Payload) {
	f := t.probe.family()
	packet, known := make([]byte, 64), make([]bool, 64)
	put := func(at uint32, data []byte) {
		for i, b := range data {
			packet[int(at)+i], known[int(at)+i] = b, true
		}
	}
	if e.Base == expr.PayloadBaseNetworkHeader {
		put(sourceAt[f], t.probe.src.AsSlice())
		put(destinationAt[f], t.probe.dst.AsSlice())
		put(subnet.PerFamily[uint32]{9, 6}[f], []byte{unix.IPPROTO_TCP})
	}
	from, to, ok := span(e.DestRegister, int(e.Len))
	if !ok || uint64(e.Offset)+uint64(e.Len) > uint64(len(packet)) {
		clear(regs.known[:])
		return
	}
	copy(regs.data[from:to], packet[e.Offset:])
	copy(regs.known[from:to], known[e.Offset:])
}

// ctNew is the state of a connection of which this is the first packet
// (NF_CT_STATE_BIT(IP_CT_NEW)).
const ctNew = 8

// ctValue is what is known of a new connection that nobody has translated.
func ctValue(key expr.CtKey) (data []byte, known bool) {
	switch key {
	case expr.CtKeySTATE:
		return binary.NativeEndian.AppendUint32(nil, ctNew), true
	case expr.CtKeySTATUS, expr.CtKeyMARK:
		return make([]byte, 4), true
	case expr.CtKeyDIRECTION:
		return []byte{0}, true
	}
	return make([]byte, 16), false
}

func bitwise(regs *registers, e *expr.Bitwise) {
	n := int(e.Len)
	data, known, ok := regs.get(e.SourceRegister, n)
	from, to, ok2 := span(e.DestRegister, n)
	if !ok || !ok2 || len(e.Mask) != n || len(e.Xor) != n { // A shift, or what newer kernels have.
		clear(regs.known[:])
		return
	}
	data, known = slices.Clone(data), slices.Clone(known)
	for i := range n {
		data[i] = data[i]&e.Mask[i] ^ e.Xor[i]
		known[i] = known[i] || e.Mask[i] == 0
	}
	copy(regs.data[from:to], data)
	copy(regs.known[from:to], known)
}

func sure(b bool) sureness {
	if b {
		return yes
	}
	return no
}

func compare(regs *registers, e *expr.Cmp) sureness {
	data, known, ok := regs.get(e.Register, len(e.Data))
	if !ok {
		return maybe
	}
	all := true
	for i := range data {
		if !known[i] {
			all = false
		} else if data[i] != e.Data[i] && (e.Op == expr.CmpOpEq || e.Op == expr.CmpOpNeq) {
			return sure(e.Op == expr.CmpOpNeq)
		}
	}
	if !all {
		name := strings.TrimRight(string(e.Data), "\x00")
		whole := len(e.Data) == unix.IFNAMSIZ || len(name) < len(e.Data) // Else it is a beginning of names.
		if whole && slices.Contains(regs.not, name) && (e.Op == expr.CmpOpEq || e.Op == expr.CmpOpNeq) {
			return sure(e.Op == expr.CmpOpNeq)
		}
		return maybe
	}
	c := bytes.Compare(data, e.Data)
	switch e.Op {
	case expr.CmpOpEq:
		return sure(c == 0)
	case expr.CmpOpNeq:
		return sure(c != 0)
	case expr.CmpOpLt:
		return sure(c < 0)
	case expr.CmpOpLte:
		return sure(c <= 0)
	case expr.CmpOpGt:
		return sure(c > 0)
	case expr.CmpOpGte:
		return sure(c >= 0)
	}
	return maybe
}

func within(regs *registers, e *expr.Range) sureness {
	data, known, ok := regs.get(e.Register, len(e.FromData))
	if !ok || len(e.FromData) != len(e.ToData) || slices.Contains(known, false) {
		return maybe
	}
	in := bytes.Compare(data, e.FromData) >= 0 && bytes.Compare(data, e.ToData) <= 0
	return sure(in == (e.Op == expr.CmpOpEq))
}

// lookup looks into a set or a map. A map's verdict is what the rule does.
func (t *trial) lookup(regs *registers, table tableKey, e *expr.Lookup) (sureness, *expr.Verdict) {
	s := t.sets[setKey{table, e.SetName}]
	if s == nil || len(s.elements) == 0 {
		if s != nil && s.elements != nil {
			return sure(e.Invert), nil
		}
		return t.unknownMap(s, e)
	}
	data, known, ok := regs.get(e.SourceRegister, len(s.elements[0].Key))
	if !ok || slices.Contains(known, false) {
		return t.unknownMap(s, e)
	}
	element, found := s.lookup(data)
	if found == e.Invert {
		return no, nil
	}
	if !e.IsDestRegSet {
		return yes, nil
	}
	if e.DestRegister == unix.NFT_REG_VERDICT {
		if v := verdictOf(element); v != nil {
			return yes, v
		}
		return t.unknownMap(nil, e)
	}
	regs.set(e.DestRegister, element.Val, true)
	return yes, nil
}

// unknownMap is a lookup of which the result is not known: a map may lead to
// anything, also to an accept.
func (t *trial) unknownMap(s *otherSet, e *expr.Lookup) (sureness, *expr.Verdict) {
	if !e.IsDestRegSet || e.DestRegister != unix.NFT_REG_VERDICT {
		return maybe, nil
	}
	if s != nil && len(s.elements) > 0 && !slices.ContainsFunc(s.elements, func(e nftables.SetElement) bool {
		v := verdictOf(e)
		return v == nil || v.Kind != expr.VerdictDrop
	}) {
		return maybe, &expr.Verdict{Kind: expr.VerdictDrop}
	}
	return maybe, &expr.Verdict{Kind: expr.VerdictAccept}
}

// matchXT judges a match of iptables. The bits of a state are those of ctNew there
// too (XT_CONNTRACK_STATE_BIT).
func matchXT(e *expr.Match) sureness {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.ConntrackMtinfo3:
		if info.MatchFlags&^uint16(xt.ConntrackStateAlias) == uint16(xt.ConntrackState) {
			return sure((info.StateMask&ctNew != 0) == (info.InvertFlags&uint16(xt.ConntrackState) == 0))
		}
	}
	return maybe
}
