package main

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"

	"github.com/ripstop-net/ripstop/subnet"
)

// attachment is one interface of one container in one network.
type attachment struct {
	network, container, ifName string
}

// aliasPrefix begins the alias of every host end.
const aliasPrefix = "ripstop-cni"

// alias tells people, and GC, what a host end belongs to. Names of networks,
// containers and interfaces have no spaces. The kernel takes 255 bytes
// (IFALIASZ), so a long container's name is cut short.
func (a attachment) alias() string {
	s := strings.Join([]string{aliasPrefix, a.network, a.ifName, a.container}, " ")
	return s[:min(len(s), 255)]
}

// hostName is the name of the host's end of the pair: the same whenever it is
// asked for, so that DEL finds it without the container.
func (a attachment) hostName() string {
	sum := sha256.Sum256([]byte(a.network + "\x00" + a.container + "\x00" + a.ifName))
	return "rs" + hex.EncodeToString(sum[:6])
}

// address is what a pod has in one family.
type address struct {
	family subnet.Family
	// pod has the length that the pod's interface is given: that of the subnet
	// on a bridge, else one for the address alone.
	pod     netip.Prefix
	gateway netip.Addr
	subnet  netip.Prefix
}

// wiring is how an attachment is to look in the kernel.
type wiring struct {
	attachment
	mode string
	// bridge is the bridge's name in bridge mode, and bridgeMAC what it has.
	bridge    string
	bridgeMAC net.HardwareAddr
	hostMAC   net.HardwareAddr
	podMAC    net.HardwareAddr
	mtu       int
	addresses []address
}

// wire plans an attachment with the addresses that were allocated for it.
func wire(a attachment, c config, n node, pods subnet.PerFamily[netip.Addr], mac net.HardwareAddr) wiring {
	w := wiring{attachment: a, mode: c.Mode, bridge: c.Bridge, mtu: n.mtu, podMAC: mac, hostMAC: madeMAC("host " + a.hostName())}
	for _, f := range n.families() {
		bits := f.Bits()
		if c.Mode == bridged {
			bits = n.subnets[f].Bits()
		}
		w.addresses = append(w.addresses, address{family: f, pod: netip.PrefixFrom(pods[f], bits), gateway: n.gateway(f), subnet: n.subnets[f]})
	}
	if w.podMAC == nil && len(w.addresses) > 0 {
		// An address that goes from one pod to the next keeps its MAC, so that
		// nobody's neighbour entry for it is wrong.
		w.podMAC = madeMAC("pod " + w.addresses[0].pod.Addr().String())
	}
	return w
}

// bridgeMAC is that of a node's bridge. One that the kernel chooses changes
// with the bridge's ports (br_stp_recalculate_bridge_id), and systemd's udev
// replaces a MAC that was not given at creation.
func bridgeMAC(name string, n node) net.HardwareAddr {
	return madeMAC("bridge " + name + " " + n.subnets.String())
}

// madeMAC makes a locally administered unicast MAC out of a text.
func madeMAC(text string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(text))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// anywhere is the default route's destination.
func anywhere(f subnet.Family) netip.Prefix {
	return subnet.PerFamily[netip.Prefix]{
		subnet.V4: netip.PrefixFrom(netip.IPv4Unspecified(), 0), subnet.V6: netip.PrefixFrom(netip.IPv6Unspecified(), 0),
	}[f]
}

// alone is the prefix of one address only.
func alone(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// ipNet is a prefix as the libraries have it.
func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
