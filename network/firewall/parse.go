package firewall

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// headerLen is that of struct nfgenmsg, in bytes.
const headerLen = 4

var errShort = errors.New("message is too short")

// decoder reads the attributes of a message of nftables.
func decoder(data []byte) (*netlink.AttributeDecoder, error) {
	if len(data) < headerLen {
		return nil, errShort
	}
	d, err := netlink.NewAttributeDecoder(data[headerLen:])
	if err != nil {
		return nil, err
	}
	d.ByteOrder = binary.BigEndian
	return d, nil
}

// parseRule reads a rule as nf_tables_fill_rule_info writes it.
func parseRule(family byte, data []byte) (r rule, err error) {
	d, err := decoder(data)
	if err != nil {
		return r, err
	}
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_RULE_HANDLE:
			r.handle = d.Uint64()
		case unix.NFTA_RULE_USERDATA:
			r.comment = commentOf(d.Bytes())
		case unix.NFTA_RULE_EXPRESSIONS:
			d.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(e *netlink.AttributeDecoder) error {
						r.exprs = append(r.exprs, parseExpression(family, e))
						return nil
					})
				}
				return nil
			})
		}
	}
	if r.comment == "" {
		for _, e := range r.exprs { // As iptables-nft has it.
			if m, ok := e.any.(*expr.Match); ok {
				if c, ok := m.Info.(*xt.Comment); ok {
					r.comment = string(*c)
				}
			}
		}
	}
	return r, d.Err()
}

// parseElements reads the addresses in a part of a set (nf_tables_dump_set).
func parseElements(data []byte, into *addresses) error {
	d, err := decoder(data)
	if err != nil {
		return err
	}
	for d.Next() {
		if d.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		d.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				// One element: its key comes first, and is a value.
				if a, ok := firstKey(list.Bytes()); ok {
					into.set(a, 1)
				}
			}
			return nil
		})
	}
	return d.Err()
}

// firstKey is the address of an element. It looks without a decoder, of which
// there would be two for each of thousands.
func firstKey(b []byte) (netip.Addr, bool) {
	for _, typ := range []uint16{unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE} {
		if len(b) < unix.SizeofNlAttr {
			return netip.Addr{}, false
		}
		length, got := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED
		if got != typ || length < unix.SizeofNlAttr || length > len(b) {
			return netip.Addr{}, false
		}
		b = b[unix.SizeofNlAttr:length]
	}
	return netip.AddrFromSlice(b)
}

// known makes the expressions that [judge] and [describe] know.
var known = map[string]func() expr.Any{
	"meta": func() expr.Any { return &expr.Meta{} }, "payload": func() expr.Any { return &expr.Payload{} },
	"cmp": func() expr.Any { return &expr.Cmp{} }, "bitwise": func() expr.Any { return &expr.Bitwise{} },
	"range": func() expr.Any { return &expr.Range{} }, "lookup": func() expr.Any { return &expr.Lookup{} },
	"ct": func() expr.Any { return &expr.Ct{} }, "immediate": func() expr.Any { return &expr.Immediate{} },
	"counter": func() expr.Any { return &expr.Counter{} }, "objref": func() expr.Any { return &expr.Objref{} },
	"log": func() expr.Any { return &expr.Log{} }, "reject": func() expr.Any { return &expr.Reject{} },
	"match": func() expr.Any { return &expr.Match{} }, "target": func() expr.Any { return &expr.Target{} },
}

func parseExpression(family byte, d *netlink.AttributeDecoder) (e expression) {
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case unix.NFTA_EXPR_NAME:
			e.name = d.String()
		case unix.NFTA_EXPR_DATA:
			data := d.Bytes()
			fresh, ok := known[e.name]
			if !ok {
				continue
			}
			e.any = fresh()
			if expr.Unmarshal(family, data, e.any) != nil {
				e.any = nil
			}
			// A verdict is an immediate value without data for the library.
			if i, ok := e.any.(*expr.Immediate); ok && i.Register == unix.NFT_REG_VERDICT {
				v := &expr.Verdict{}
				if e.any = v; expr.Unmarshal(family, data, v) != nil {
					e.any = nil
				}
			}
		}
	}
	return e
}

// Types of a rule's user data (enum nftnl_udata_rule_types of libnftnl).
const udataComment = 0

// userComment is a comment as nft keeps it: type, length, text and a zero.
func userComment(text string) []byte {
	return append(append([]byte{udataComment, byte(len(text) + 1)}, text...), 0)
}

// commentOf finds the comment in a rule's user data, which anybody wrote.
func commentOf(data []byte) string {
	for len(data) >= 2 {
		kind, length := data[0], int(data[1])
		if len(data) < 2+length {
			return ""
		}
		if kind == udataComment {
			return strings.TrimRight(string(data[2:2+length]), "\x00")
		}
		data = data[2+length:]
	}
	return ""
}
