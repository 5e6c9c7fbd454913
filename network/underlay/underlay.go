// Package underlay chooses the interface and the address by which a node is
// reached by its peers. Choosing is pure; the interfaces come from the kernel.
package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// ErrNone is wrapped where no interface serves; waiting may mend it, as when
// a host has not got its address yet.
var ErrNone = errors.New("no underlay")

// Wish is what the operator asked for. The zero Wish takes the interface of the
// default route.
type Wish struct {
	// Iface is an interface's name or one of its addresses, "" for none.
	Iface string
	// PublicIP is published in place of the interface's own address. One that
	// an interface has also chooses the interface.
	PublicIP subnet.PerFamily[netip.Addr]
}

// Choice is the underlay of a node for one family.
type Choice struct {
	Interface string
	// Local is an address of the interface, to which the tunnel is bound, and
	// Public the one at which peers send to it.
	Local, Public netip.Addr
	// MTU is the interface's, in bytes.
	MTU int
	// OnLink are the family's prefixes whose addresses are on its link.
	OnLink []netip.Prefix
	// Reason says why it was chosen, for the log.
	Reason string
}

// Choose picks the underlay for each of the given families. Every error says
// what was looked for and what there was.
func Choose(wish Wish, families []subnet.Family, host []backend.Interface) (subnet.PerFamily[Choice], error) {
	var out subnet.PerFamily[Choice]
	for _, f := range families {
		c, err := choose(wish, f, host)
		if err != nil {
			return out, fmt.Errorf("choose the %s underlay: %w", f, err)
		}
		if !c.Public.IsValid() {
			c.Public = c.Local
		}
		for _, i := range host {
			if i.Name == c.Interface {
				c.OnLink = onLink(i, f)
			}
		}
		out[f] = c
	}
	return out, nil
}

func onLink(i backend.Interface, f subnet.Family) (out []netip.Prefix) {
	for _, p := range i.OnLink {
		if subnet.FamilyOf(p.Addr()) == f {
			out = append(out, p)
		}
	}
	return out
}

func choose(wish Wish, f subnet.Family, host []backend.Interface) (Choice, error) {
	public := wish.PublicIP[f]
	if wish.Iface != "" {
		i, local, err := named(wish.Iface, f, host)
		if err != nil {
			return Choice{}, err
		}
		if has(i, public) {
			local = public
		}
		return Choice{Interface: i.Name, Local: local, Public: public, MTU: i.MTU, Reason: "named by --iface"}, nil
	}
	if public.IsValid() {
		for _, i := range host {
			if has(i, public) {
				return Choice{Interface: i.Name, Local: public, Public: public, MTU: i.MTU, Reason: "has the public address given"}, nil
			}
		}
	}
	for _, i := range host {
		if leadsOut(i, f) {
			local, ok := first(i, f)
			if !ok {
				return Choice{}, fmt.Errorf("%w: %s has the default route and no global %s address: add one, or name another with --iface", ErrNone, i.Name, f)
			}
			return Choice{Interface: i.Name, Local: local, Public: public, MTU: i.MTU, Reason: "has the default route"}, nil
		}
	}
	return Choice{}, fmt.Errorf("%w: there is no %s default route: name an interface with --iface; there are %s", ErrNone, f, list(host))
}

// named finds the interface that is called so or has that address. The address
// counts for its own family; the other's is then the interface's first.
func named(iface string, f subnet.Family, host []backend.Interface) (backend.Interface, netip.Addr, error) {
	want, err := netip.ParseAddr(iface)
	isAddr := err == nil
	for _, i := range host {
		if i.Name != iface && !(isAddr && has(i, want)) {
			continue
		}
		if isAddr && subnet.FamilyOf(want) == f {
			return i, want, nil
		}
		local, ok := first(i, f)
		if !ok {
			return i, local, fmt.Errorf("%w: interface %s has no global %s address: add one, or turn %s off in the network config", ErrNone, i.Name, f, f)
		}
		return i, local, nil
	}
	what := "called"
	if isAddr {
		what = "with the address"
	}
	return backend.Interface{}, netip.Addr{}, fmt.Errorf("%w: no interface %s %s (--iface): there are %s", ErrNone, what, iface, list(host))
}

func has(i backend.Interface, a netip.Addr) bool {
	for _, own := range i.Addresses {
		if a.IsValid() && own == a {
			return true
		}
	}
	return false
}

func first(i backend.Interface, f subnet.Family) (netip.Addr, bool) {
	for _, a := range i.Addresses {
		if subnet.FamilyOf(a) == f {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func leadsOut(i backend.Interface, f subnet.Family) bool {
	if f == subnet.V4 {
		return i.DefaultV4
	}
	return i.DefaultV6
}

func list(host []backend.Interface) string {
	var out []string
	for _, i := range host {
		addrs := make([]string, 0, len(i.Addresses))
		for _, a := range i.Addresses {
			addrs = append(addrs, a.String())
		}
		if len(addrs) == 0 {
			addrs = []string{"no address"}
		}
		out = append(out, fmt.Sprintf("%s (%s)", i.Name, strings.Join(addrs, ", ")))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
