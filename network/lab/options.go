package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ripstop-net/ripstop/subnet"
)

// Mode says which families a lab has, on its underlay and on its pods alike.
type Mode string

// The modes.
const (
	IPv4 Mode = "ipv4"
	IPv6 Mode = "ipv6"
	Dual Mode = "dual"
)

// Modes lists all modes.
var Modes = []Mode{IPv4, IPv6, Dual}

// ParseMode reads a mode's name.
func ParseMode(s string) (Mode, error) {
	if m := Mode(s); slices.Contains(Modes, m) {
		return m, nil
	}
	return "", fmt.Errorf("%q is none of ipv4, ipv6, dual", s)
}

// Families lists the families of the mode.
func (m Mode) Families() []subnet.Family {
	switch m {
	case IPv4:
		return []subnet.Family{subnet.V4}
	case IPv6:
		return []subnet.Family{subnet.V6}
	default:
		return subnet.Families[:]
	}
}

// The most hosts that a lab takes, and the most pods behind each.
const (
	MaxNodes = 250
	MaxPods  = 100
)

// Prefix is where the lab's config and leases lie in its etcd.
const Prefix = "/coreos.com/network"

// Options say what a lab is made of.
type Options struct {
	// Nodes is the number of hosts to begin with, at most MaxNodes.
	Nodes int
	Mode  Mode
	// Far is how many of these, the last ones, are on a link of their own behind a
	// router. A lab that has such has at most 16 nodes.
	Far int
	// MTUs are those of the hosts' interfaces on the underlay, in bytes; 0, or
	// none, takes 1500, which is the most.
	MTUs []int
	// PodsPerNode is 1 where it is 0.
	PodsPerNode int
	// NoPods leaves the pods, and their bridge, to others.
	NoPods bool
	// NoDaemons leaves it to others to start the daemons, and to make pods.
	NoDaemons bool
	// Dir receives logs, state and etcd's data, and stays. Where it is empty a
	// temporary folder serves and is removed by Close.
	Dir string
	// Daemon is the path of ripstopd, DaemonArgs are flags beyond the lab's own.
	Daemon     string
	DaemonArgs []string
	// AnyInterface leaves it to the daemons to choose the underlay's interface.
	AnyInterface bool
	// Config is the network config; empty takes the usual one for the mode.
	Config string
	// Progress is called with one line for each thing done. It may be nil; it
	// is called from one goroutine at a time.
	Progress func(line string)
}

func (o *Options) complete() error {
	switch {
	case o.Nodes < 1 || o.Nodes > MaxNodes:
		return fmt.Errorf("a lab has 1 to %d nodes, not %d", MaxNodes, o.Nodes)
	case o.Far < 0 || o.Far > o.Nodes || o.Far > 0 && o.Nodes > fewHosts:
		return fmt.Errorf("%d of %d hosts cannot be behind a router", o.Far, o.Nodes)
	case slices.ContainsFunc(o.MTUs, func(mtu int) bool { return mtu < 0 || mtu > underlayMTU }):
		return fmt.Errorf("the underlay carries at most %d bytes: %v", underlayMTU, o.MTUs)
	case o.PodsPerNode < 0 || o.PodsPerNode > MaxPods:
		return fmt.Errorf("a node of the lab has 1 to %d pods, not %d", MaxPods, o.PodsPerNode)
	case o.Daemon == "":
		return errors.New("the path of ripstopd is missing")
	}
	if o.PodsPerNode == 0 {
		o.PodsPerNode = 1
	}
	if o.Mode == "" {
		o.Mode = IPv4
	}
	if _, err := ParseMode(string(o.Mode)); err != nil {
		return err
	}
	if o.Config == "" {
		o.Config = UsualConfig(o.Mode)
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	return nil
}

// UsualConfig is the network config of a lab: VXLAN with VNI 1 on port 8472.
func UsualConfig(m Mode) string {
	keys := []string{`"Backend": {"Type": "vxlan"}`}
	for _, f := range m.Families() {
		keys = append(keys, subnet.PerFamily[string]{
			subnet.V4: `"Network": "10.5.0.0/16"`,
			subnet.V6: `"EnableIPv6": true, "IPv6Network": "fd00:10:5::/48"`,
		}[f])
	}
	if m == IPv6 {
		keys = append(keys, `"EnableIPv4": false`)
	}
	return "{" + strings.Join(keys, ", ") + "}"
}

// The underlay's last bytes that are no host's.
const (
	gatewayNumber = 254
	etcdNumber    = 253
)

// prefix is the address of the n-th machine on a link of the underlay.
func (s segment) prefix(f subnet.Family, n int) netip.Prefix {
	if f == subnet.V4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, s.network, 0, byte(n)}), 24)
	}
	// The number is written as decimal digits, fd99::12 is node12's; the two
	// that are not hosts have letters, so that they meet no host.
	digits := strconv.Itoa(n)
	switch n {
	case gatewayNumber:
		digits = "fe"
	case etcdNumber:
		digits = "fd"
	}
	return netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd%d::%s", s.network, digits)), 64)
}
