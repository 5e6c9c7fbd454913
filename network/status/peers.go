package status

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"

	"github.com/ripstop-net/ripstop/subnet"
)

// Bounds of a page of peers.
const (
	UsualPeers = 100
	MostPeers  = 1000
)

// Path is how packets get to a peer.
type Path string

// The paths.
const (
	Tunnel Path = "tunnel"
	Direct Path = "direct"
	// NoPath: this node makes no way there, as with a backend that leases subnets only.
	NoPath Path = "none"
)

// Presence says whether the kernel has what a peer owes.
type Presence string

// What can be said of a peer's entries.
const (
	// Present: all of them.
	Present Presence = "yes"
	// Missing: not all, and nothing has been tried yet or nothing failed.
	Missing Presence = "no"
	// Failing: not all, and the reason is known.
	Failing Presence = "failing"
	// Unknown: the loop is busy and did not answer in time.
	Unknown Presence = "unknown"
	// NoneOwed: it owes none.
	NoneOwed Presence = "none"
)

// Peer is another node, as this one reaches it.
type Peer struct {
	Node string `json:"node"`
	// Ways has one for each family that both have.
	Ways []Way `json:"ways"`
	// Held tells that its record is gone and that it is kept for a time of grace.
	Held bool `json:"held,omitempty"`
}

// Way is how a peer's subnet of one family is reached.
type Way struct {
	Family string       `json:"family"`
	Subnet netip.Prefix `json:"subnet"`
	Public netip.Addr   `json:"public"`
	Path   Path         `json:"path"`
	// Device is by which packets leave, MTU what they may have, in bytes. Both are
	// empty where there is no path.
	Device string `json:"device"`
	MTU    int    `json:"mtu"`
	// MAC is that of the peer's device, empty on a direct path.
	MAC     string   `json:"mac,omitempty"`
	Entries Presence `json:"entries"`
	// Reason says why entries fail.
	Reason string `json:"reason,omitempty"`
}

// Page is a part of the peers, in the order of their subnets.
type Page struct {
	Version int    `json:"version"`
	Peers   []Peer `json:"peers"`
	// Backend is as in Status.
	Backend string `json:"backend,omitempty"`
	// Total is how many peers there are, whatever was asked for.
	Total int `json:"total"`
	// Revision is the store's as of which they are.
	Revision int64 `json:"revision"`
	// Continue is what to ask for the next page with; empty on the last one.
	Continue string `json:"continue,omitempty"`
}

// Query asks for a page.
type Query struct {
	// Limit is 1 to MostPeers, 0 for UsualPeers.
	Limit int
	// After is the last one that was seen; zero for the beginning.
	After subnet.Subnets
	// Node, where not empty, is whose subnets are asked for.
	Node string
	// Within, where valid, must overlap with a peer's subnet.
	Within netip.Prefix
}

// Match tells whether a lease is asked for.
func (q Query) Match(l subnet.Lease) bool {
	if q.Node != "" && l.Node != q.Node {
		return false
	}
	if !q.Within.IsValid() {
		return true
	}
	for _, p := range l.Subnets {
		if p.IsValid() && p.Overlaps(q.Within) {
			return true
		}
	}
	return false
}

// Cursor gives what continues after a lease.
func Cursor(last subnet.Subnets) string { return last.Key() }

// Values gives the query as it stands in a URL.
func (q Query) Values() url.Values {
	v := url.Values{}
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	if q.After != (subnet.Subnets{}) {
		v.Set("continue", Cursor(q.After))
	}
	if q.Node != "" {
		v.Set("node", q.Node)
	}
	if q.Within.IsValid() {
		v.Set("subnet", q.Within.String())
	}
	return v
}

// ParseQuery reads what Values gave, from whoever.
func ParseQuery(v url.Values) (q Query, err error) {
	q.Limit = UsualPeers
	if text := v.Get("limit"); text != "" {
		if q.Limit, err = strconv.Atoi(text); err != nil || q.Limit < 1 || q.Limit > MostPeers {
			return q, fmt.Errorf("limit: %q is no number from 1 to %d", text, MostPeers)
		}
	}
	if text := v.Get("continue"); text != "" {
		if q.After, err = subnet.ParseKey(text); err != nil {
			return q, fmt.Errorf("continue: %q is not from an earlier page: %w", text, err)
		}
	}
	if q.Node = v.Get("node"); q.Node != "" {
		if err := subnet.CheckNodeName(q.Node); err != nil {
			return q, fmt.Errorf("node: %w", err)
		}
	}
	if text := v.Get("subnet"); text != "" {
		if q.Within, err = ParseWithin(text); err != nil {
			return q, fmt.Errorf("subnet: %w", err)
		}
	}
	return q, nil
}

// ParseWithin reads a prefix, or an address as the prefix that is it alone.
func ParseWithin(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is neither a prefix such as 10.5.87.0/24 nor an address", text)
	}
	return p.Masked(), nil
}
