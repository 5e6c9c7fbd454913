package host

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// ErrSetting means that a setting of the host's keeps pods from talking, or would,
// and that it cannot be changed from here.
var ErrSetting = errors.New("host setting is in the way")

// Needs are what a node needs of its host's settings.
type Needs struct {
	// Families are those of the pods.
	Families []subnet.Family
	// Networks are the pods' address spaces.
	Networks []netip.Prefix
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
	// ours tells that the host was made to forward IPv6, by us: its routers were heard
	// before.
	ours bool
}

// plan says what is to be set, in the order in which no setting costs the host
// anything: a link goes on to hear its routers before the host forwards, those of
// heard, which do so for our sake, are kept so, and one that comes to a host that
// forwards for our sake is made so. A host that forwarded before does not hear routers
// by its own choice.
func plan(n Needs, r reading, heard map[string]bool) (out []setting) {
	for _, f := range n.Families {
		if f == subnet.V6 {
			for _, link := range sortedKeys(r.acceptRA) {
				if r.acceptRA[link] == heedsUnlessForwarding && (!r.forwards[f] || r.ours || heard[link]) {
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

// nicKinds are the kinds of links (IFLA_INFO_KIND) by which a host hears routers of
// others, with and without an address; hardware has none.
var nicKinds = map[string]bool{"": true, "bond": true, "team": true, "vlan": true, "macvlan": true, "ipvlan": true, "ppp": true, "wwan": true}

// outward lists the links by which the host may hear routers. What pods hang on is not
// among them: else any pod could advertise itself as the host's default router. That
// is told by its kind, for whoever makes links of containers (veth, bridge, tap) keeps
// routers out only after it has made them; one of these that has an address of the
// host's, outside of the pods' network, is such as the host of a container has.
func outward(n Needs, links []backend.Link) (out []string) {
	own := func(a netip.Addr) bool {
		return !slices.ContainsFunc(n.Networks, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	for _, l := range links {
		switch {
		case l.Port:
		case nicKinds[l.Kind] || slices.ContainsFunc(l.Addresses, own):
			out = append(out, l.Name)
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

// Strict tells whether an interface drops IPv4 packets to whose sender the host's way is
// by another (RFC 3704 section 2.2): the larger of its rp_filter and that of all holds
// (IN_DEV_RPFILTER). An interface that is not there filters nothing.
func Strict(link string, get func(string) (int, error)) bool {
	most := 0
	for _, scope := range []string{"all", link} {
		if v, err := get("ipv4/conf/" + scope + "/rp_filter"); err == nil {
			most = max(most, v)
		}
	}
	return most == 1
}

// Loosen is the command that has an interface no longer do so.
func Loosen(link string) string {
	return "sysctl -w " + setting{key: "ipv4/conf/" + link + "/rp_filter", value: 2}.String()
}

// strict says where direct packets are dropped while the way back is another.
func strict(n Needs, get func(string) (int, error)) string {
	link := n.Underlay[subnet.V4]
	if !n.Direct || link == "" || !Strict(link, get) {
		return ""
	}
	return fmt.Sprintf("rp_filter is 1 on %s: what a peer sends directly is dropped while this node sends to it by the tunnel; if some nodes do so: %s", link, Loosen(link))
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
