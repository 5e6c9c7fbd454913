package kerneltest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Tables is all that a namespace's kernel says of links, addresses, neighbours,
// FDB entries, nexthops, routes, rules and nftables, as bytes. What counts packets or time
// is left out, and so are neighbours that the kernel found by itself.
func Tables(t testing.TB, ns *os.File) []string {
	t.Helper()
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS: those of IPv6.
	const filter = unix.NFNL_SUBSYS_NFTABLES << 8
	var out []string
	for _, part := range []struct {
		name   string
		get    int
		family byte
		size   int
		counts []uint16
	}{
		{"link", unix.RTM_GETLINK, 0, 16, []uint16{unix.IFLA_STATS, unix.IFLA_STATS64}},
		{"address", unix.RTM_GETADDR, 0, 8, []uint16{unix.IFA_CACHEINFO}},
		{"neighbour", unix.RTM_GETNEIGH, 0, 12, []uint16{unix.NDA_CACHEINFO}},
		{"fdb", unix.RTM_GETNEIGH, unix.AF_BRIDGE, 12, []uint16{unix.NDA_CACHEINFO}},
		{"nexthop", unix.RTM_GETNEXTHOP, 0, 8, nil},
		{"route", unix.RTM_GETROUTE, unix.AF_INET, 12, []uint16{unix.RTA_CACHEINFO}},
		{"route6", unix.RTM_GETROUTE, unix.AF_INET6, 12, []uint16{unix.RTA_CACHEINFO}},
		{"rule", unix.RTM_GETRULE, unix.AF_INET, 12, nil},
		{"rule6", unix.RTM_GETRULE, unix.AF_INET6, 12, nil},
		{"nftables", filter | unix.NFT_MSG_GETTABLE, 0, 4, nil},
		{"nftables chain", filter | unix.NFT_MSG_GETCHAIN, 0, 4, nil},
		{"nftables set", filter | unix.NFT_MSG_GETSET, 0, 4, nil},
		{"nftables rule", filter | unix.NFT_MSG_GETRULE, 0, 4, nil},
	} {
		Do(t, ns, func() error {
			r := nl.NewNetlinkRequest(part.get, unix.NLM_F_DUMP)
			head := make([]byte, part.size)
			head[0] = part.family
			r.AddData(raw(head))
			if part.get == unix.RTM_GETLINK {
				r.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
			}
			protocol, ofFilter := unix.NETLINK_ROUTE, part.get&filter == filter
			if ofFilter {
				protocol = unix.NETLINK_NETFILTER
			}
			messages, err := r.Execute(protocol, 0)
			if err != nil {
				return fmt.Errorf("dump %s: %w", part.name, err)
			}
			for _, m := range messages {
				if part.name == "neighbour" && binary.NativeEndian.Uint16(m[8:])&unix.NUD_PERMANENT == 0 {
					continue
				}
				if ofFilter {
					clear(m[2:4]) // The generation, which each change of any table raises.
				}
				text := part.name + " " + hex.EncodeToString(m[:part.size])
				attrs, err := nl.ParseRouteAttr(m[part.size:])
				if err != nil {
					return err
				}
				for _, a := range attrs {
					// A bridge's own data has timers that run.
					timers := part.get == unix.RTM_GETLINK && a.Attr.Type == unix.IFLA_LINKINFO && strings.Contains(string(a.Value), "bridge")
					if part.get == unix.RTM_GETLINK && a.Attr.Type == unix.IFLA_AF_SPEC {
						forgetReachableTime(a.Value)
					}
					if !slices.Contains(part.counts, a.Attr.Type) && !timers {
						text += fmt.Sprintf(" %d:%x", a.Attr.Type, a.Value)
					}
				}
				out = append(out, text)
			}
			return nil
		})
	}
	slices.Sort(out)
	return out
}

// forgetReachableTime takes out of a link's settings the time for which a neighbour
// counts as reachable, which the kernel draws anew every few minutes
// (neigh_rand_reach_time): the third of the four numbers of IFLA_INET6_CACHEINFO.
func forgetReachableTime(settings []byte) {
	const inet6CacheInfo, nested = 5, unix.SizeofRtAttr
	walk := func(b []byte, typ uint16, each func([]byte)) {
		for len(b) >= nested {
			size := int(binary.NativeEndian.Uint16(b))
			if size < nested || size > len(b) {
				return
			}
			if binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED == typ {
				each(b[nested:size])
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
	walk(settings, unix.AF_INET6, func(family []byte) {
		walk(family, inet6CacheInfo, func(info []byte) { clear(info[8:12]) })
	})
}

// Settled is Tables once nothing changes by itself any more: a carrier is noted a
// moment after it came (linkwatch_do_dev).
func Settled(t testing.TB, ns *os.File) []string {
	t.Helper()
	last, same := Tables(t, ns), 0
	for end := time.Now().Add(time.Minute); same < 6; time.Sleep(250 * time.Millisecond) {
		now := Tables(t, ns)
		if same++; !slices.Equal(now, last) {
			last, same = now, 0
		}
		if time.Now().After(end) {
			t.Fatal("the namespace does not come to rest")
		}
	}
	return last
}

type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }
