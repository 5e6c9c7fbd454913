package host

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// flannelNames are what the names of flannel's devices begin with; the VNI follows.
var flannelNames = subnet.PerFamily[string]{"flannel.", "flannel-v6."}

// Device is what a node goes on with, see [Takeover].
type Device struct {
	// Name is that of a device which was flannel's, "" where there is none.
	Name string
	// MAC is what the node's record says, by which peers know the node; zero where it
	// says nothing.
	MAC subnet.MAC
}

// Takeover is what a node goes on with of what another daemon, or its own earlier
// life, had for it.
type Takeover struct {
	Devices subnet.PerFamily[Device]
	// New names the devices that are flannel's yet, and are to be ours.
	New []string
	// Routes are flannel's direct ones, to a node's subnet by its public address.
	Routes []backend.HostRoute
	direct map[backend.HostRoute]struct{}
	// Refused says of devices that look like flannel's why they are not taken over.
	Refused map[string]string
}

// Records are what the store, or what was saved of it, knows.
type Records struct {
	// Own is the node's own, the zero Lease where there is none.
	Own subnet.Lease
	// All are those of all nodes.
	All []subnet.Lease
}

// TakeOver judges which devices on a host are to be the node's own though their names
// are flannel's: those that were taken over before, and those that are flannel's for
// certain. That they are if name, VNI, port and form are, and the node's own record
// knows the device's MAC, and its subnet's base is the device's only address in the
// network. Where the node's record bears the node's name already, a device without an
// address will do: then it is ours, from a life that ended before it had one.
//
// Whoever has no device goes on with the MAC of its record all the same, so that no
// peer needs to change anything.
func TakeOver(n Network, s backend.Survey, records Records) Takeover {
	t := Takeover{Refused: map[string]string{}}
	t.Routes = records.direct(s.Routes)
	t.direct = make(map[backend.HostRoute]struct{}, len(t.Routes))
	for _, r := range t.Routes {
		t.direct[r] = struct{}{}
	}
	if n.VNI == 0 {
		return t
	}
	for _, f := range n.families() {
		t.Devices[f].MAC = records.mac(f, n.VNI)
		for _, o := range s.Tunnels {
			if !n.contends(o, f) {
				continue
			}
			if o.Adopted {
				t.Devices[f].take(o)
				continue
			}
			if o.Name != flannelNames[f]+strconv.FormatUint(uint64(n.VNI), 10) {
				continue
			}
			if why := unlikeFlannels(n, s, records.Own, f, o); why != "" {
				t.Refused[o.Name] = why
				continue
			}
			t.Devices[f].take(o)
			t.New = append(t.New, o.Name)
		}
	}
	return t
}

func (d *Device) take(o backend.Tunnel) {
	d.Name = o.Name
	if d.MAC == (subnet.MAC{}) {
		d.MAC = subnet.MAC(o.MAC)
	}
}

// has tells whether a device is one that the node goes on with.
func (t Takeover) has(name string) bool {
	return slices.ContainsFunc(t.Devices[:], func(d Device) bool { return d.Name == name && name != "" })
}

// Adopts tells whether the node has a device that was flannel's, or is to have routes of it.
func (t Takeover) Adopts() bool {
	return len(t.Routes) > 0 || slices.ContainsFunc(t.Devices[:], func(d Device) bool { return d.Name != "" })
}

// contends tells whether a device is where a family's own is to be.
func (n Network) contends(o backend.Tunnel, f subnet.Family) bool {
	return o.Port == n.Port && o.VNI == n.VNI && o.V6 == (f == subnet.V6)
}

// mac is what the node's record says of its device, zero where it does not, or what
// no device can have, or what another's record says too.
func (r Records) mac(f subnet.Family, vni uint32) subnet.MAC {
	e := r.Own.Endpoints[f]
	shared := slices.ContainsFunc(r.All, func(l subnet.Lease) bool {
		return l.Subnets != r.Own.Subnets && l.Endpoints[f].MAC == e.MAC
	})
	if e.VNI != vni || e.MAC[0]&1 != 0 || shared {
		return subnet.MAC{}
	}
	return e.MAC
}

// unlikeFlannels says what of a device is not as flannel leaves it on this host, ""
// for nothing.
func unlikeFlannels(n Network, s backend.Survey, own subnet.Lease, f subnet.Family, o backend.Tunnel) string {
	e := own.Endpoints[f]
	switch {
	case o.Exclusive || o.Odd != "":
		return "it " + o.Odd
	case !own.Subnets[f].IsValid():
		return "no record in the store is of this host's public address"
	case own.Backend != "vxlan" || e.VNI != 0 && e.VNI != n.VNI:
		return fmt.Sprintf("this node's record %s is of another backend or VNI", own.Subnets)
	case e.MAC != subnet.MAC(o.MAC):
		return fmt.Sprintf("its MAC is %s, that of this node's record %s is %s", o.MAC, own.Subnets, e.MAC)
	}
	base, there := own.Subnets[f].Masked().Addr(), own.Node != ""
	for _, a := range s.Addresses {
		switch {
		case a.Dev != o.Name || subnet.FamilyOf(a.Prefix.Addr()) != f:
		case a.Prefix.Addr() != base || a.Prefix.Bits() != base.BitLen():
			return fmt.Sprintf("it has address %s, this node's record %s", a.Prefix, own.Subnets)
		default:
			there = true
		}
	}
	if !there {
		return fmt.Sprintf("it does not have address %s of this node's record", base)
	}
	return ""
}

// takes tells whether a route is one of those that flannel makes: on its devices, to a
// subnet via the subnet's base address, or direct.
func (t Takeover) takes(r backend.HostRoute) bool {
	_, direct := t.direct[r]
	return direct || t.has(r.Dev) && r.Gateway == r.Dst.Addr() && byHand(r)
}

// direct picks the routes that lead to just the subnet of another node's record, by just
// the public address there.
func (r Records) direct(routes []backend.HostRoute) (out []backend.HostRoute) {
	type way struct {
		to netip.Prefix
		by netip.Addr
	}
	ways := map[way]struct{}{}
	for _, l := range r.All {
		for f, e := range l.Endpoints {
			if l.Subnets != r.Own.Subnets {
				ways[way{l.Subnets[f], e.PublicIP}] = struct{}{}
			}
		}
	}
	for _, route := range routes {
		if _, known := ways[way{route.Dst, route.Gateway}]; known && byHand(route) {
			out = append(out, route)
		}
	}
	return out
}

// byHand tells whether a route bears a number of what is set by hand or at boot, as
// flannel's do.
func byHand(r backend.HostRoute) bool {
	return !r.Nowhere && (r.Protocol == unix.RTPROT_BOOT || r.Protocol == unix.RTPROT_STATIC)
}
