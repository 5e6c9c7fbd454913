package vxlan

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/subnet"
)

// Overhead is what the tunnel adds to an inner packet, in bytes, by the family of the
// outer one.
func Overhead(f subnet.Family) int { return overhead[f] }

// overhead is what the tunnel adds to an inner packet, in bytes, by the outer
// family: its header, UDP (8), VXLAN (8) and the inner Ethernet header (14);
// RFC 7348 section 5.
var overhead = subnet.PerFamily[int]{20 + 8 + 8 + 14, 40 + 8 + 8 + 14}

// maxName is the longest name of a device: IFNAMSIZ less the closing zero.
const maxName = 15

var (
	namePrefix  = subnet.PerFamily[string]{"ripstop.", "ripstop-v6."}
	shortPrefix = subnet.PerFamily[string]{"rs.", "rs-v6."}
)

// DeviceName names the device of a family's tunnel: "ripstop.1", "ripstop-v6.1",
// with a shorter first part where the VNI is too long for 15 characters.
func DeviceName(f subnet.Family, vni uint32) string {
	number := strconv.FormatUint(uint64(vni), 10)
	if name := namePrefix[f] + number; len(name) <= maxName {
		return name
	}
	return shortPrefix[f] + number
}

// OwnsDevice tells whether a device's name is one that [DeviceName] gives, for
// whatever VNI: such a VXLAN device is ours.
func OwnsDevice(name string) bool {
	for _, f := range subnet.Families {
		for _, prefix := range []string{namePrefix[f], shortPrefix[f]} {
			number, ok := strings.CutPrefix(name, prefix)
			if vni, err := strconv.ParseUint(number, 10, 24); ok && err == nil && DeviceName(f, uint32(vni)) == name {
				return true
			}
		}
	}
	return false
}

// DeviceMAC derives the MAC of a node's device from the node's name: the same
// after a reboot and whatever becomes of the device. It is unicast and locally
// administered.
func DeviceMAC(node string, f subnet.Family, vni uint32) subnet.MAC {
	sum := sha256.Sum256(fmt.Appendf(nil, "ripstop vtep\x00%s\x00%d\x00%d", node, f, vni))
	mac := subnet.MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// MTUFor returns a device's MTU for an underlay of the given MTU, both in bytes.
func (o Options) MTUFor(f subnet.Family, underlay int) (int, error) {
	mtu := min(underlay, subnet.MaxMTU) - overhead[f]
	if o.MTU != 0 {
		mtu = min(mtu, o.MTU)
	}
	if mtu < subnet.MinMTU[f] {
		return 0, fmt.Errorf("MTU %d is below %s's least of %d: the underlay has %d and the tunnel takes %d",
			mtu, f, subnet.MinMTU[f], underlay, overhead[f])
	}
	return mtu, nil
}

// Self is what the planner knows of the node itself.
type Self struct {
	plan.Self
	Options Options
}

// Planner implements plan.Options.
func (o Options) Planner(s plan.Self) plan.Planner { return Self{Self: s, Options: o} }

// Endpoints implements plan.Options.
func (o Options) Endpoints(self plan.Self, public subnet.PerFamily[netip.Addr]) subnet.PerFamily[subnet.Endpoint] {
	var out subnet.PerFamily[subnet.Endpoint]
	for _, f := range subnet.Families {
		if public[f].IsValid() {
			out[f] = subnet.Endpoint{PublicIP: public[f], VNI: o.VNI, MAC: Self{self, o}.mac(f)}
		}
	}
	return out
}

// device names the device of a family.
func (s Self) device(f subnet.Family) string {
	if name := s.Devices[f].Name; name != "" {
		return name
	}
	return DeviceName(f, s.Options.VNI)
}

// mac is that of the device of a family.
func (s Self) mac(f subnet.Family) subnet.MAC {
	if mac := s.Devices[f].MAC; mac != (subnet.MAC{}) {
		return mac
	}
	return DeviceMAC(s.Node, f, s.Options.VNI)
}

// Own returns the entries that the node owes for itself: a device and its
// address for each family. With direct routes there is a device all the same, for
// peers that are not on the link, and for those that send through the tunnel.
func (s Self) Own() ([]backend.Entry, error) {
	var out []backend.Entry
	for _, f := range subnet.Families {
		if !s.Subnets[f].IsValid() {
			continue
		}
		mtu, err := s.Options.MTUFor(f, s.Underlay[f].MTU)
		if err != nil {
			return nil, err
		}
		name, lower := s.device(f), ""
		if s.Devices[f].Name != "" {
			lower = s.Underlay[f].Interface
		}
		out = append(out, backend.Device{
			Name: name, VNI: s.Options.VNI, Port: s.Options.Port, Local: s.Underlay[f].Addr,
			MAC: backend.MAC(s.mac(f)), MTU: mtu, NoTxChecksum: s.NoTxChecksum, Lower: lower,
		}, backend.Address{Dev: name, Prefix: hostPrefix(s.Subnets[f])})
	}
	return out, nil
}

// MTU is what pods may send, in bytes: the least of the node's devices.
func (s Self) MTU() (int, error) {
	least := 0
	for _, f := range subnet.Families {
		if !s.Uses(f) {
			continue
		}
		mtu, err := s.Options.MTUFor(f, s.Underlay[f].MTU)
		if err != nil {
			return 0, fmt.Errorf("interface %s: %w", s.Underlay[f].Interface, err)
		}
		if least == 0 || mtu < least {
			least = mtu
		}
	}
	return least, nil
}

func hostPrefix(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), p.Addr().BitLen()) }
