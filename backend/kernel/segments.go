package kernel

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// Segments tells of all links, ours too, how large packets may be that are handed over
// in one piece.
func (k *Kernel) Segments(ctx context.Context) ([]backend.Segments, error) {
	release, err := k.take(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	out, err := collect(ctx, k, dumpLinks(""), func(m message) (s backend.Segments, ok bool) {
		if len(m.body) < sizeLinkMessage {
			return s, false
		}
		for typ, v := range attributes(m.body[sizeLinkMessage:]) {
			switch typ {
			case unix.IFLA_IFNAME:
				s.Name = readText(v)
			case unix.IFLA_GSO_MAX_SIZE:
				s.GSO = readU32(v)
			case unix.IFLA_GRO_MAX_SIZE:
				s.GRO = readU32(v)
			case unix.IFLA_GSO_IPV4_MAX_SIZE:
				s.GSOv4 = readU32(v)
			case unix.IFLA_GRO_IPV4_MAX_SIZE:
				s.GROv4 = readU32(v)
			}
		}
		return s, s.Name != ""
	})
	if err != nil {
		return nil, fmt.Errorf("dump links: %w", err)
	}
	return out, nil
}
