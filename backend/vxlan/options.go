// Package vxlan plans the VXLAN backend's forwarding state: which entries a
// node owes for itself and for each peer. It is pure.
package vxlan

import (
	"encoding/json"
	"fmt"

	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/subnet"
)

// Type is the backend's name in the network config and in records.
const Type = "vxlan"

// Defaults of the config's Backend object.
const (
	DefaultVNI  = 1
	DefaultPort = 8472 // Linux's own, from before IANA assigned 4789; flannel's too.
)

// Options are the keys of the config's Backend object.
type Options struct {
	// VNI is the VXLAN network identifier, 1 to 16777215.
	VNI uint32
	// Port is the UDP port.
	Port uint16
	// MTU is an upper bound on the device's MTU in bytes, 0 for none.
	MTU int
	// DirectRouting sends to peers on the underlay's link without the tunnel.
	DirectRouting bool
	// GBP and Learning are read and not acted on; see Unheeded.
	GBP, Learning bool
}

// ParseOptions reads a config's backend. It refuses another type than vxlan
// and values that the wire or the kernel cannot have; its errors wrap
// [subnet.ErrMalformedConfig].
func ParseOptions(b subnet.Backend) (Options, error) {
	if b.Type != Type {
		return Options{}, fmt.Errorf("%w: Backend: there is no backend of Type %q: use %q", subnet.ErrMalformedConfig, b.Type, Type)
	}
	var raw struct {
		VNI                          *int64
		Port, MTU                    int
		GBP, Learning, DirectRouting bool
	}
	if err := json.Unmarshal([]byte(b.Options), &raw); err != nil {
		return Options{}, fmt.Errorf("%w: Backend: %w", subnet.ErrMalformedConfig, err)
	}
	vni, port := int64(DefaultVNI), raw.Port
	if raw.VNI != nil {
		vni = *raw.VNI
	}
	if port == 0 {
		port = DefaultPort
	}
	switch {
	case vni < 1 || vni > 1<<24-1:
		return Options{}, fmt.Errorf("%w: Backend: VNI %d is outside 1 to %d", subnet.ErrMalformedConfig, vni, 1<<24-1)
	case port < 1 || port > 1<<16-1:
		return Options{}, fmt.Errorf("%w: Backend: Port %d is outside 1 to 65535", subnet.ErrMalformedConfig, port)
	case raw.MTU != 0 && (raw.MTU < subnet.MinMTU[subnet.V4] || raw.MTU > subnet.MaxMTU):
		return Options{}, fmt.Errorf("%w: Backend: MTU %d is outside %d to %d", subnet.ErrMalformedConfig, raw.MTU, subnet.MinMTU[subnet.V4], subnet.MaxMTU)
	}
	return Options{
		VNI: uint32(vni), Port: uint16(port), MTU: raw.MTU,
		GBP: raw.GBP, Learning: raw.Learning, DirectRouting: raw.DirectRouting,
	}, nil
}

// UnknownKeys names the keys of a config's Backend object that mean nothing,
// sorted.
func UnknownKeys(b subnet.Backend) []string {
	return subnet.UnknownKeys([]byte(b.Options), "Type", "VNI", "Port", "MTU", "GBP", "Learning", "DirectRouting")
}

// Unheeded names the options that are set and have no effect, with what
// happens instead.
func (o Options) Unheeded() []string {
	var out []string
	if o.GBP {
		out = append(out, "GBP: group policy is not carried")
	}
	if o.Learning {
		out = append(out, "Learning: entries come from the leases alone")
	}
	return out
}

// Means implements plan.Options.
func (o Options) Means() plan.Means {
	return plan.Means{VNI: o.VNI, Port: o.Port, Direct: o.DirectRouting}
}

// OnWire tells whether nodes with these options and with others reach one
// another. Direct routes are each node's own decision.
func (o Options) OnWire(other Options) bool { return o.VNI == other.VNI && o.Port == other.Port }
