package firewall

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// mostText bounds the text of a rule, in bytes.
const mostText = 300

// describe is a rule's text in nft's language as far as it goes, for people to
// find it by. What is not known here is named.
func describe(r rule) string {
	var words []string
	var in loaded
	commented := false
	for _, each := range r.exprs {
		switch e := each.any.(type) {
		case *expr.Meta:
			in = loaded{what: metaNames[e.Key]}
		case *expr.Payload:
			in = payloadLoaded(e)
		case *expr.Ct:
			in = loaded{what: "ct"}
			if e.Key == expr.CtKeySTATE {
				in.what = ctState
			}
		case *expr.Bitwise:
			in.mask = e.Mask
		case *expr.Cmp:
			words = append(words, in.compared(e))
		case *expr.Range:
			words = append(words, in.what+" in a range")
		case *expr.Lookup:
			words = append(words, in.what+" @"+e.SetName)
		case *expr.Match:
			if c, ok := e.Info.(*xt.Comment); ok {
				commented = true
				words = append(words, fmt.Sprintf("comment %q", string(*c)))
			} else {
				words = append(words, "match "+e.Name)
			}
		case *expr.Target:
			words = append(words, strings.ToLower(e.Name))
		case *expr.Reject:
			words = append(words, "reject")
		case *expr.Verdict:
			words = append(words, strings.TrimSpace(verdictNames[e.Kind]+" "+e.Chain))
		case *expr.Counter, *expr.Log, *expr.Objref, *expr.Immediate:
		default:
			words = append(words, "("+each.name+")")
		}
	}
	if r.comment != "" && !commented {
		words = append(words, fmt.Sprintf("comment %q", r.comment))
	}
	text := strings.Join(words, " ")
	return text[:min(len(text), mostText)]
}

const ctState = "ct state"

var metaNames = map[expr.MetaKey]string{
	expr.MetaKeyIIFNAME: "iifname", expr.MetaKeyOIFNAME: "oifname", expr.MetaKeyIIF: "iif", expr.MetaKeyOIF: "oif",
	expr.MetaKeyL4PROTO: "meta l4proto", expr.MetaKeyNFPROTO: "meta nfproto", expr.MetaKeyMARK: "meta mark",
}

var verdictNames = map[expr.VerdictKind]string{
	expr.VerdictAccept: "accept", expr.VerdictDrop: "drop", expr.VerdictReturn: "return",
	expr.VerdictJump: "jump", expr.VerdictGoto: "goto", expr.VerdictQueue: "queue",
}

// loaded is what a rule has in its register, and the mask laid over it.
type loaded struct {
	what string
	mask []byte
	// bytes is the whole length of an address, 0 for what is none.
	bytes int
}

func payloadLoaded(e *expr.Payload) loaded {
	if e.Base == expr.PayloadBaseNetworkHeader {
		for f, header := range headerNames {
			if e.Len <= addressLen[f] {
				switch e.Offset {
				case sourceAt[f]:
					return loaded{what: header + " saddr", bytes: int(addressLen[f])}
				case destinationAt[f]:
					return loaded{what: header + " daddr", bytes: int(addressLen[f])}
				}
			}
		}
	}
	base := map[expr.PayloadBase]string{expr.PayloadBaseNetworkHeader: "nh", expr.PayloadBaseTransportHeader: "th", expr.PayloadBaseLLHeader: "ll"}[e.Base]
	if e.Base == expr.PayloadBaseTransportHeader && e.Len == 2 && e.Offset == portAt {
		return loaded{what: "th dport"}
	}
	return loaded{what: fmt.Sprintf("@%s,%d,%d", base, e.Offset*8, e.Len*8)}
}

var operators = map[expr.CmpOp]string{
	expr.CmpOpNeq: "!= ", expr.CmpOpLt: "< ", expr.CmpOpLte: "<= ", expr.CmpOpGt: "> ", expr.CmpOpGte: ">= ",
}

// compared is the text of a comparison with what is loaded.
func (l loaded) compared(e *expr.Cmp) string {
	if l.what == ctState && len(l.mask) == 4 {
		return ctState + " " + stateNames(binary.NativeEndian.Uint32(l.mask), e.Op != expr.CmpOpNeq)
	}
	return l.what + " " + operators[e.Op] + l.value(e.Data)
}

func (l loaded) value(data []byte) string {
	switch {
	case l.bytes >= len(data) && len(data) > 0:
		whole := append(bytes.Clone(data), make([]byte, l.bytes-len(data))...)
		length := len(data) * 8
		if l.mask != nil {
			length = 0
			for _, b := range l.mask {
				length += bits.OnesCount8(b)
			}
		}
		a, _ := netip.AddrFromSlice(whole)
		return netip.PrefixFrom(a, length).String()
	case l.what == "iifname" || l.what == "oifname":
		name, whole := bytes.CutSuffix(data, []byte{0})
		if !whole && len(data) < unix.IFNAMSIZ { // A beginning of names.
			return fmt.Sprintf("%q", string(name)+"*")
		}
		return fmt.Sprintf("%q", strings.TrimRight(string(data), "\x00"))
	case l.what == "meta l4proto" && len(data) == 1:
		names := map[byte]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp", unix.IPPROTO_ICMP: "icmp", unix.IPPROTO_ICMPV6: "icmpv6"}
		if name, ok := names[data[0]]; ok {
			return name
		}
	case l.what == "th dport" && len(data) == 2:
		return fmt.Sprint(binary.BigEndian.Uint16(data))
	case len(l.mask) > 0:
		return fmt.Sprintf("& %#x == %#x", l.mask, data)
	}
	return fmt.Sprintf("%#x", data)
}

// stateNames are those of the bits of a connection's state.
func stateNames(mask uint32, none bool) string {
	var names []string
	for bit, name := range map[uint32]string{1: "invalid", 2: "established", 4: "related", ctNew: "new", 64: "untracked"} {
		if mask&bit != 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	text := strings.Join(names, ",")
	if none {
		return "not " + text
	}
	return text
}
