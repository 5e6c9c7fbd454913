package main

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/ripstop-net/ripstop/subnet"
)

// found is an address of the host that bears on pods.
type found struct {
	link    string
	address netip.Prefix
	// ports counts what is plugged into the link, where it is a bridge.
	ports int
}

// survey looks for addresses of the host that are, or were, pods' gateways: the
// gateway itself, others in the node's subnet, and those of the plugin's bridge.
func survey(h *netlink.Handle, c config, n node) ([]found, error) {
	var out []found
	suspect := func(link string, p netip.Prefix) bool {
		f := subnet.FamilyOf(p.Addr())
		if c.Mode == bridged && link == c.Bridge && p == netip.PrefixFrom(n.gateway(f), n.subnets[f].Bits()) {
			return false // As it should be.
		}
		return link == c.Bridge && !p.Addr().IsLinkLocalUnicast() || p.Addr() == n.gateway(f) || n.holds(p.Addr()) && !p.IsSingleIP()
	}
	names := map[int]netlink.Link{}
	for _, f := range n.families() {
		addrs, err := addressesOf(h, nil, f)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			// The label of an address need not be the link's name, and IPv6 has
			// none: only a link that might matter is asked for its name.
			p := prefixOf(a)
			link, known := names[a.LinkIndex]
			if !known && (n.holds(p.Addr()) || c.Mode == bridged && !p.IsSingleIP()) {
				if link, err = h.LinkByIndex(a.LinkIndex); err != nil {
					continue // It is just gone, and its address with it.
				}
				names[a.LinkIndex] = link
			}
			if link != nil && suspect(link.Attrs().Name, p) {
				out = append(out, found{link: link.Attrs().Name, address: p})
			}
		}
	}
	return out, countPorts(h, out)
}

// countPorts fills in the ports of those that are bridges.
func countPorts(h *netlink.Handle, all []found) error {
	if !slices.ContainsFunc(all, func(f found) bool { return !f.address.IsSingleIP() }) {
		return nil
	}
	links, err := whole(h.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for i := range all {
		for _, bridge := range links {
			if bridge.Attrs().Name != all[i].link {
				continue
			}
			for _, port := range links {
				if port.Attrs().MasterIndex == bridge.Attrs().Index {
					all[i].ports++
				}
			}
		}
	}
	return nil
}

// inTheWay says which pods of another subnet, or connected in the other mode,
// keep new ones from being connected. A bridge without ports has no pods.
func inTheWay(all []found, c config, n node) error {
	for _, o := range all {
		f := subnet.FamilyOf(o.address.Addr())
		gateway := netip.PrefixFrom(n.gateway(f), n.subnets[f].Bits())
		switch {
		case c.Mode == ptp && o.ports > 0 && n.holds(o.address.Addr()):
			return fail(codeOccupied, fmt.Sprintf(`either set "mode" to %q for this node, or end those pods (drain the node) and delete %s`, bridged, o.link),
				"bridge %s has address %s and %d ports: its pods take the node's whole subnet for their own link, and would not reach pods of mode %q", o.link, o.address, o.ports, ptp)
		case c.Mode == ptp:
		case o.link == c.Bridge && o.address != gateway && o.ports > 0:
			return fail(codeOccupied, fmt.Sprintf("end the pods of the old subnet (drain the node); %s gets the new address with the first new pod", o.link),
				"bridge %s has address %s and %d ports, and the node's subnet is %s: those are pods of another subnet", o.link, o.address, o.ports, n.subnets[f])
		case o.link != c.Bridge && o.address.IsSingleIP():
			return fail(codeOccupied, fmt.Sprintf(`either set "mode" to %q for this node, or end those pods (drain the node)`, ptp),
				"the gateway %s is on %s, which is a pod's of mode %q: pods on a bridge would not reach it", o.address.Addr(), o.link, ptp)
		case o.link != c.Bridge:
			return fail(codeOccupied, fmt.Sprintf(`either set "bridge" to %q, or take the address away from it`, o.link),
				"address %s, of the node's subnet, is on %s and not on %s", o.address, o.link, c.Bridge)
		}
	}
	return nil
}
