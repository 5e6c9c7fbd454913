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
	// Tunnels are its VXLAN devices.
	Tunnels []Tunnel
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

// Tunnel is a VXLAN device that is not ours.
type Tunnel struct {
	Name string
	VNI  uint32
	Port uint16
	// V6 is the family of its outer packets.
	V6 bool
	// Exclusive tells that ours cannot receive on the same port: it takes any VNI, or
	// has another form of VXLAN.
	Exclusive bool
}
