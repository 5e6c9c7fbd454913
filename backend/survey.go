package backend

import "net/netip"

// Survey is what a host has of its own that may be in the way of a network: what
// is ours is left out, but for the addresses of our devices.
type Survey struct {
	// Routes are those of the main table that share addresses with the network,
	// default routes aside, whatever becomes of the packets.
	Routes []HostRoute
	// Addresses are those of its interfaces that are in the network.
	Addresses []HostAddress
	// Tunnels are its VXLAN devices, with those that we have adopted.
	Tunnels []Tunnel
	// Flanneld is the number of a process that serves the host as flannel's daemon,
	// as far as such are visible, 0 for none.
	Flanneld int
}

// HostRoute is a route of the host's.
type HostRoute struct {
	Dst netip.Prefix
	// Dev and Gateway are the first by which it leads on, "" and the zero Addr
	// where it has none.
	Dev     string
	Gateway netip.Addr
	// Protocol says who made it (rtm_protocol).
	Protocol uint8
	// Nowhere tells that it is to discard packets.
	Nowhere bool
}

// HostAddress is an address of an interface, with the length of its link's prefix.
type HostAddress struct {
	Prefix netip.Prefix
	Dev    string
	// Ours tells that the interface is a device of ours.
	Ours bool
}

// Tunnel is a VXLAN device that is not ours, or was not once.
type Tunnel struct {
	Name string
	VNI  uint32
	Port uint16
	MAC  MAC
	// Adopted tells that it is ours by now.
	Adopted bool
	// Odd, where not empty, says what it has that can be neither borne nor changed in
	// place.
	Odd string
	// V6 is the family of its outer packets.
	V6 bool
	// Exclusive tells that ours cannot receive on the same port: it takes any VNI, or
	// has another form of VXLAN.
	Exclusive bool
}

// Link is an interface of a host's, as far as it matters who may be heard by it.
type Link struct {
	Name string
	// Kind is the kernel's word for what it is (IFLA_INFO_KIND), "" for hardware.
	Kind string
	// Port tells that it is a part of another, such as of a bridge or a bond.
	Port bool
	// Addresses are its global ones, whatever their state.
	Addresses []netip.Addr
	// NoForwarding tells that it does not forward IPv4 packets.
	NoForwarding bool
}

// Segments are the largest packets in bytes that the kernel hands to a link, or makes of
// what it hears by it, in one piece (IFLA_GSO_MAX_SIZE and so on). Those of IPv4 are 0
// where the kernel does not tell.
type Segments struct {
	Name                   string
	GSO, GRO, GSOv4, GROv4 uint32
}
