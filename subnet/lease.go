package subnet

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// MAC is a 48-bit Ethernet address.
type MAC [6]byte

// String returns the usual form, as 02:00:5e:10:00:01.
func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// ParseMAC reads an address of exactly six bytes.
func ParseMAC(s string) (MAC, error) {
	if m, ok := scanMAC(s); ok {
		return m, nil
	}
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%q is not a 48-bit MAC address", s)
	}
	return MAC(hw), nil
}

// Subnets is the pair of subnets that one lease holds; a family without one
// has the zero Prefix. It identifies a lease: the store's key says the same.
type Subnets PerFamily[netip.Prefix]

// String lists the subnets, separated by a comma.
func (s Subnets) String() string {
	var parts []string
	for _, p := range s {
		if p.IsValid() {
			parts = append(parts, p.String())
		}
	}
	return strings.Join(parts, ",")
}

// Overlaps tells whether both have a part of a network, in any family.
func (s Subnets) Overlaps(o Subnets) bool {
	for _, f := range Families {
		if s[f].IsValid() && o[f].IsValid() && s[f].Overlaps(o[f]) {
			return true
		}
	}
	return false
}

// Lease is a node's hold on its subnets, together with what its peers need to
// reach it.
type Lease struct {
	Subnets Subnets
	// Node is the identity that holds the lease, "" where it is a flannel's.
	Node string
	// Backend is the type of backend by which the node is reached, "" where a
	// reservation waits for its node.
	Backend string
	// Endpoints says per family where the node's tunnel ends.
	Endpoints PerFamily[Endpoint]
	// MTU is the largest packet in bytes that the node's pods take, 0 where it is
	// not known, as with flannel.
	MTU int
	// EchoPort is the UDP port at which the node answers peers that ask whether it
	// can be reached, 0 where it answers nobody, as flannel's nodes do.
	EchoPort uint16

	// ID is the store's own lease under which the record lives. It is 0 for a
	// reservation, which never expires.
	ID int64
	// Created and Modified are the store's revisions of the record.
	Created, Modified int64
}

// Endpoint is one end of a tunnel.
type Endpoint struct {
	// PublicIP is the node's address on the underlay.
	PublicIP netip.Addr
	// VNI and MAC are the VXLAN device's; a backend without a device has
	// neither, and flannel before v0.12 published no VNI.
	VNI uint32
	MAC MAC
	// Translated says that no interface of the node's has the public address, as
	// behind a 1:1 NAT: packets of pods must be sent there by a tunnel, for whoever
	// has the address does not pass on others'.
	Translated bool
}

// Reservation tells whether the lease never expires.
func (l Lease) Reservation() bool { return l.ID == 0 }

// content is the lease without what the store alone decides.
func (l Lease) content() Lease {
	l.ID, l.Created, l.Modified = 0, 0, 0
	return l
}

// SameContent tells whether two leases say the same, whatever the store's
// revisions are.
func (l Lease) SameContent(o Lease) bool { return l.content() == o.content() }

// Holder names who holds the lease, for people.
func (l Lease) Holder() string {
	var at []string
	for _, e := range l.Endpoints {
		if e.PublicIP.IsValid() {
			at = append(at, e.PublicIP.String())
		}
	}
	switch where := strings.Join(at, ", "); {
	case l.Node == "" && where == "":
		return "nobody named"
	case l.Node == "":
		return where
	case where == "":
		return l.Node
	default:
		return l.Node + " (" + where + ")"
	}
}

// DefaultLeaseTTL is how long a lease outlives its node, flannel's day.
const DefaultLeaseTTL = 24 * time.Hour

// CheckNodeName tells why a name cannot identify a node: it becomes part of a
// key in the store and of messages.
func CheckNodeName(name string) error {
	if name == "" || len(name) > 253 {
		return fmt.Errorf("node name %q must have 1 to 253 characters", name)
	}
	for _, c := range name {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.ContainsRune("-._", c):
		default:
			return fmt.Errorf("node name %q has %q in it: letters, digits and -._ are allowed", name, c)
		}
	}
	return nil
}
