package firewall

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Stranger is an address of no peer from which the tunnel's packets came that the
// guard dropped.
type Stranger struct {
	Address netip.Addr
	// Packets counts them from the first on, as long as no more than ten minutes
	// or so passed between two.
	Packets uint64
}

// mostNamed bounds the strangers that are told of.
const mostNamed = 10

// meet notes the strangers of now. It is for the holder of the turn.
func (f *Firewall) meet(ctx context.Context) {
	var all []Stranger
	err := f.with(ctx, func(c *conn) (err error) {
		all, err = c.readStrangers()
		return err
	})
	if err != nil {
		return // As in count.
	}
	f.note(func(s *Status) { s.Strangers = all })
}

// readStrangers lists the busiest. A table without such sets has none.
func (c *conn) readStrangers() ([]Stranger, error) {
	sets, err := c.nft.GetSets(ownTable())
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	var all []Stranger
	for _, s := range sets {
		if !slices.Contains(strangerSets[:], s.Name) {
			continue
		}
		answers, err := c.dump(unix.NFT_MSG_GETSETELEM, unix.NFPROTO_INET, TableName, s.Name)
		if err != nil {
			return nil, fmt.Errorf("list elements of %s: %w", s.Name, err)
		}
		for _, m := range answers {
			if all, err = parseStrangers(m.Data, all); err != nil {
				return nil, fmt.Errorf("list elements of %s: %w", s.Name, err)
			}
		}
	}
	slices.SortFunc(all, func(a, b Stranger) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), a.Address.Compare(b.Address))
	})
	return all[:min(len(all), mostNamed)], nil
}

// parseStrangers reads elements with their counters (nf_tables_fill_setelem).
func parseStrangers(data []byte, into []Stranger) ([]Stranger, error) {
	d, err := decoder(data)
	if err != nil {
		return into, err
	}
	for d.Next() {
		if d.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		d.Nested(func(list *netlink.AttributeDecoder) error {
			for list.Next() {
				a, ok := firstKey(list.Bytes())
				if !ok {
					continue
				}
				s := Stranger{Address: a}
				list.Nested(func(e *netlink.AttributeDecoder) error {
					e.ByteOrder = binary.BigEndian
					for e.Next() {
						if e.Type() == unix.NFTA_SET_ELEM_EXPR {
							e.Nested(s.count)
						}
					}
					return nil
				})
				into = append(into, s)
			}
			return nil
		})
	}
	return into, d.Err()
}

// count reads the counter of an element: the name of its expression, then its data.
func (s *Stranger) count(d *netlink.AttributeDecoder) error {
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		if d.Type() != unix.NFTA_EXPR_DATA {
			continue
		}
		d.Nested(func(data *netlink.AttributeDecoder) error {
			data.ByteOrder = binary.BigEndian
			for data.Next() {
				if data.Type() == unix.NFTA_COUNTER_PACKETS {
					s.Packets = data.Uint64()
				}
			}
			return nil
		})
	}
	return nil
}
