package host

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/ripstop-net/ripstop/subnet"
)

// ErrSetting means that a setting of the host's keeps pods from talking, or would,
// and that it cannot be changed from here.
var ErrSetting = errors.New("host setting is in the way")

// Needs are what a node needs of its host's settings.
type Needs struct {
	// Families are those of the pods.
	Families []subnet.Family
	// Underlay are the interfaces by which packets leave the host.
	Underlay subnet.PerFamily[string]
	// Direct tells that pods' packets come over the underlay as they are, too.
	Direct bool
}

// forwardingKey turns forwarding on for all interfaces and those that come.
var forwardingKey = subnet.PerFamily[string]{"ipv4/ip_forward", "ipv6/conf/all/forwarding"}

func acceptRA(link string) string { return "ipv6/conf/" + link + "/accept_ra" }

// Values of accept_ra: a host that forwards hears no router unless it is 2
// (ipv6_accept_ra), and forgets those that it heard (rt6_purge_dflt_routers).
const (
	heedsUnlessForwarding = 1
	heedsAlways           = 2
)

// reading is how things stand.
type reading struct {
	// forwards tells of the families in use whether the host forwards.
	forwards subnet.PerFamily[bool]
	// acceptRA has that of the links by which a default route leaves, or may, that
	// routers advertise.
	acceptRA map[string]int
}

// plan says what is to be set, in the order in which no setting costs the host
// anything: a link goes on to hear its routers before the host forwards, and those
// of heard, which do so for our sake, are kept so.
func plan(n Needs, r reading, heard map[string]bool) (out []setting) {
	for _, f := range n.Families {
		if f == subnet.V6 {
			for _, link := range sortedKeys(r.acceptRA) {
				if r.acceptRA[link] == heedsUnlessForwarding && (!r.forwards[f] || heard[link]) {
					out = append(out, setting{key: acceptRA(link), value: heedsAlways, link: link})
				}
			}
		}
		if !r.forwards[f] {
			out = append(out, setting{key: forwardingKey[f], value: 1})
		}
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// refusal says what to do where settings cannot be written, nil where all can, or
// the lack is made good over netlink.
func refusal(steps []setting, writable func(string) error) error {
	var failed error
	var commands []string
	for _, s := range steps {
		if s.key == forwardingKey[subnet.V4] {
			continue // Each interface's own can be set over netlink.
		}
		commands = append(commands, s.String())
		if err := writable(s.key); err != nil && failed == nil {
			failed = err
		}
	}
	if failed == nil {
		return nil
	}
	return fmt.Errorf("%w: IPv6 is not forwarded, or not so that the host goes on to hear its routers, and that cannot be changed from here (%w): run on the host: sysctl -w %s",
		ErrSetting, failed, strings.Join(commands, " "))
}

// strict says where direct packets are dropped while the way back is another: the
// larger of an interface's rp_filter and that of all holds (IN_DEV_RPFILTER).
func strict(n Needs, get func(string) (int, error)) string {
	link := n.Underlay[subnet.V4]
	if !n.Direct || link == "" {
		return ""
	}
	most := 0
	for _, scope := range []string{"all", link} {
		if v, err := get("ipv4/conf/" + scope + "/rp_filter"); err == nil {
			most = max(most, v)
		}
	}
	if most != 1 {
		return ""
	}
	return fmt.Sprintf("rp_filter is 1 on %s: what a peer sends directly is dropped while this node sends to it by the tunnel; if some nodes do so: sysctl -w %s",
		link, setting{key: "ipv4/conf/" + link + "/rp_filter", value: 2})
}

// missing explains a family that the kernel lacks.
func missing(f subnet.Family, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := "/proc/sys is not there to be read"
	if f == subnet.V6 {
		text = "the kernel has no IPv6 (module ipv6, CONFIG_IPV6, or turned off by ipv6.disable=1 at boot): turn it on, or turn EnableIPv6 off in the network config"
	}
	return fmt.Errorf("%w: %s: %w", ErrSetting, text, err)
}
