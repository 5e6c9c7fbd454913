package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// Errors of a host that a network cannot be on as it is.
var (
	// ErrOverlap means that addresses of the network are in use on the host.
	ErrOverlap = errors.New("network overlaps the host's own")
	// ErrTunnel means that another's VXLAN device has what ours needs.
	ErrTunnel = errors.New("another VXLAN device is in the way")
)

// Network is what a node is to be in.
type Network struct {
	// Ranges are the pods' address spaces of the families in use, and Lengths those
	// of a node's subnet in them, in bits.
	Ranges  subnet.Subnets
	Lengths subnet.PerFamily[int]
	// Own are the subnets that the node has or had, as far as is known: there its
	// pods' addresses and routes are in their place.
	Own []subnet.Subnets
	// VNI and Port are those of the tunnel, 0 for none.
	VNI  uint32
	Port uint16
}

// families are those in use.
func (n Network) families() (out []subnet.Family) {
	for _, f := range subnet.Families {
		if n.Ranges[f].IsValid() {
			out = append(out, f)
		}
	}
	return out
}

// Obstacles says what of the host's is in the network's way. Its error wraps
// [ErrTunnel] or [ErrOverlap], names both sides and says what to do; a VXLAN
// device goes first, for its routes go with it. What is taken over is in nobody's way
// once flannel's daemon has ended. notes are about what may stay.
func Obstacles(n Network, s backend.Survey, t Takeover) (notes []string, err error) {
	if len(t.Routes) > 0 && s.Flanneld != 0 {
		return nil, fmt.Errorf("%w: flanneld (process %d) serves this host with route %s: stop it for good, and what it made is taken over", ErrTunnel, s.Flanneld, describe(t.Routes[0]))
	}
	if n.VNI != 0 {
		if notes, err = tunnels(n, s, t); err != nil {
			return nil, err
		}
	}
	return notes, overlaps(n, s, t)
}

func tunnels(n Network, s backend.Survey, t Takeover) (notes []string, err error) {
	for _, o := range s.Tunnels {
		switch {
		case o.Adopted, t.has(o.Name) && s.Flanneld == 0:
			continue
		case t.has(o.Name):
			return nil, fmt.Errorf("%w: flanneld (process %d) serves this host with %s: stop it for good, and what it made is taken over", ErrTunnel, s.Flanneld, o.Name)
		}
		for _, f := range n.families() {
			switch {
			case o.Port == n.Port && o.Exclusive:
				return nil, fmt.Errorf("%w: %s takes UDP port %d for itself alone: %s, or give this network another Port in its config", ErrTunnel, o.Name, o.Port, removal(o.Name))
			case n.contends(o, f):
				why := ""
				if reason := t.Refused[o.Name]; reason != "" {
					why = ", and is not taken over as flannel's, for " + reason
				}
				return nil, fmt.Errorf("%w: %s has VNI %d on UDP port %d%s: %s, or give this network another VNI or Port in its config", ErrTunnel, o.Name, o.VNI, o.Port, why, removal(o.Name))
			}
		}
		switch {
		case o.Port == n.Port:
			notes = append(notes, fmt.Sprintf("VXLAN device %s has VNI %d on our UDP port %d, and both may be; if it is no longer needed: %s", o.Name, o.VNI, o.Port, removal(o.Name)))
		case o.VNI == n.VNI:
			notes = append(notes, fmt.Sprintf("VXLAN device %s has our VNI %d on UDP port %d, and both may be; if it is no longer needed: %s", o.Name, o.VNI, o.Port, removal(o.Name)))
		}
	}
	return notes, nil
}

// removal says how a VXLAN device is done away with.
func removal(name string) string {
	command := "ip link delete " + name
	if slices.ContainsFunc(flannelNames[:], func(first string) bool { return strings.HasPrefix(name, first) }) {
		return "stop flannel on this host for good, then: " + command
	}
	return "stop what made it, then: " + command
}

// pluginProtocol is the number of routes that our CNI plugin makes (ripstop-cni).
const pluginProtocol = 83

func overlaps(n Network, s backend.Survey, t Takeover) error {
	own := ownPrefixes(n, s.Addresses)
	inOwn := func(p netip.Prefix) bool {
		return slices.ContainsFunc(own, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
	}
	for _, f := range n.families() {
		network := n.Ranges[f]
		for _, a := range s.Addresses {
			at := netip.PrefixFrom(a.Prefix.Addr(), a.Prefix.Addr().BitLen())
			if !a.Ours && network.Contains(at.Addr()) && !inOwn(at) {
				return fmt.Errorf("%w: network %s has address %s of %s in it: remove the address, or choose another %s with 'ripstop config set'", ErrOverlap, network, a.Prefix, a.Dev, networkKey[f])
			}
		}
		for _, r := range s.Routes {
			if r.Protocol == pluginProtocol || !r.Dst.Overlaps(network) || asDefault(r.Dst) || inOwn(r.Dst) || t.takes(r) {
				continue
			}
			if r.Nowhere && r.Dst.Bits() <= network.Bits() {
				continue // What is wider discards only what has no better route.
			}
			return fmt.Errorf("%w: network %s and route %s: remove the route, or choose another %s with 'ripstop config set'", ErrOverlap, network, describe(r), networkKey[f])
		}
	}
	return nil
}

var networkKey = subnet.PerFamily[string]{"Network", "IPv6Network"}

// ownPrefixes are the node's own subnets, also by the addresses that its devices
// have from an earlier time.
func ownPrefixes(n Network, addresses []backend.HostAddress) (out []netip.Prefix) {
	for _, s := range n.Own {
		for _, f := range n.families() {
			if s[f].IsValid() {
				out = append(out, s[f].Masked())
			}
		}
	}
	for _, a := range addresses {
		f := subnet.FamilyOf(a.Prefix.Addr())
		if p, err := a.Prefix.Addr().Prefix(n.Lengths[f]); a.Ours && err == nil && n.Lengths[f] > 0 {
			out = append(out, p)
		}
	}
	return out
}

// asDefault tells whether a route stands for a default route: VPN clients put two
// halves in its place (0.0.0.0/1 and 128.0.0.0/1), and for IPv6 2000::/3 is used.
func asDefault(p netip.Prefix) bool {
	return p.Bits() <= 1 || p.Addr().Is6() && p.Bits() <= 3
}

// describe is in the notation of ip route.
func describe(r backend.HostRoute) string {
	text := r.Dst.String()
	if r.Nowhere {
		text += " that discards packets"
	}
	if r.Gateway.IsValid() {
		text += " via " + r.Gateway.String()
	}
	if r.Dev != "" {
		text += " dev " + r.Dev
	}
	return text
}
