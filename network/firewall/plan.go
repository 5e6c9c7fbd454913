package firewall

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// TableName is the name of Ripstop's own table, of nftables' family inet.
const TableName = "ripstop"

// Options are what the operator decides.
type Options struct {
	// Masquerade hides what pods send out of the cluster behind the node's own
	// address. Destinations in Unmasqueraded are left out.
	Masquerade    bool
	Unmasqueraded []netip.Prefix
	// Guard drops VXLAN packets of our VNI from all but peers.
	Guard bool
	// EchoPort is the UDP port at which peers are answered, which the guard keeps
	// others from, too; 0 for none.
	EchoPort uint16
	// ForwardRules lets pods' traffic pass iptables' FORWARD chain where that
	// would drop it.
	ForwardRules bool

	// forgetful leaves out who was dropped, for kernels that cannot note it.
	forgetful bool
}

// Network is the node's network, as far as rules speak of it.
type Network struct {
	// Ranges are the address spaces of all pods and Own the node's part of
	// them, for the families in use.
	Ranges, Own subnet.Subnets
	// Devices are the names of the VXLAN devices, for the families in use.
	Devices subnet.PerFamily[string]
	// At are the addresses of this host that peers may send to.
	At subnet.PerFamily[[]netip.Addr]
	// VNI and Port are the tunnel's; a Port of 0 means that there is none.
	VNI  uint32
	Port uint16
	// Flannels tells that the node was flannel's: its rules are to go.
	Flannels bool

	// pods are the interfaces that pods are behind, as far as they are known, and
	// elsewhere those that they are not behind, for judging others' rules.
	pods      subnet.PerFamily[string]
	elsewhere []string
}

// Names in our table. None is a word of nft's language, which it could not name then.
const (
	chainMasquerade = "leaving"
	chainGuard      = "guard"
	chainVXLAN      = "guarded"
	chainEcho       = "asked"
	chainReceived   = "received"
	chainSent       = "sent"
	counterDropped  = "forged"
)

var (
	peerSets     = subnet.PerFamily[string]{"peers4", "peers6"}
	strangerSets = subnet.PerFamily[string]{"strangers4", "strangers6"}
)

// Bounds of what is remembered of those whose packets were dropped: whoever forges
// sources fills no more than this, and an address is forgotten so long after its
// last packet.
const (
	mostStrangers  = 256
	strangersLast  = 10 * time.Minute
	rememberedText = "from no peer, by whom"
)

// kubeProxyMark is the bit that kube-proxy sets on what it masquerades itself
// (--iptables-masquerade-bit 14).
const kubeProxyMark = 0x4000

var multicast = subnet.PerFamily[netip.Prefix]{netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")}

// Priorities of our base chains (enum nf_ip_hook_priorities): raw is before the
// connection tracking, srcnat is where addresses are translated. The guard comes
// before the filter, so that others' rules do not see what it drops.
const (
	priorityRaw     = -300
	priorityGuard   = -10
	prioritySrcNAT  = 100
	priorityNothing = 0
)

// Plan returns what our table is to hold, with room for so many peers in its
// sets. An empty Ruleset means that there is to be no table.
func Plan(o Options, n Network, peers int) Ruleset {
	var r Ruleset
	if o.Masquerade {
		r.Chains = append(r.Chains, masquerade(o, n))
	}
	if n.Port == 0 {
		return r
	}
	if o.Guard {
		for _, f := range families(n) {
			r.Sets = append(r.Sets, Set{Name: peerSets[f], Family: f, Size: sizeFor(peers)})
			if !o.forgetful {
				r.Sets = append(r.Sets, Set{Name: strangerSets[f], Family: f, Size: mostStrangers, Lasts: strangersLast})
			}
		}
		r.Counters = append(r.Counters, counterDropped)
		r.Chains = append(r.Chains, guard(o, n)...)
	}
	r.Chains = append(r.Chains, untracked(n)...)
	return r
}

// smallestSet takes 16 KiB of the kernel's memory.
const smallestSet = 1 << 10

// sizeFor leaves room for as many peers again, so that a growing network seldom
// takes another size, for which the table is written anew.
func sizeFor(peers int) uint32 {
	size := uint32(smallestSet)
	for int(size) < 2*peers && size < 1<<30 {
		size *= 2
	}
	return size
}

func families(n Network) []subnet.Family {
	var in []subnet.Family
	for _, f := range subnet.Families {
		if n.Ranges[f].IsValid() {
			in = append(in, f)
		}
	}
	return in
}

// masquerade translates what comes from pods and goes elsewhere. What the node
// itself sends has the address of the interface that it leaves by, and what
// comes from elsewhere to pods keeps its own: the pods see who called.
func masquerade(o Options, n Network) Chain {
	c := Chain{Name: chainMasquerade, Type: "nat", Hook: "postrouting", Priority: prioritySrcNAT}
	c.add("kube-proxy masquerades what it marks", markSet(kubeProxyMark), doReturn)
	for _, f := range families(n) {
		pods := n.Ranges[f]
		for _, p := range o.Unmasqueraded {
			if subnet.FamilyOf(p.Addr()) == f {
				c.add("exempt by --non-masquerade-cidrs", proto(f), source(pods), destination(p), doReturn)
			}
		}
		c.add("pods to pods", proto(f), source(pods), destination(pods), doReturn)
		c.add("pods to multicast", proto(f), source(pods), destination(multicast[f]), doReturn)
		c.add("pods to what is no pod", proto(f), source(pods), doMasquerade)
	}
	return c
}

// guard drops at the hook input, where IPv4 packets are whole (ip_local_deliver).
// IPv6 packets are not unless connections are tracked: the hook comes before
// ipv6_frag_rcv. A first fragment has the UDP header at least (RFC 8200 section
// 4.5), and is dropped unless its VNI is there to be seen and another's; the rest
// is nothing without it.
//
// Who is dropped is noted by a rule of its own: one that finds the set full ends
// there (nft_dynset_eval breaks), and the next drops all the same. What packets
// put into a set, and what runs out in it, is announced to nobody.
//
// The echo's port is for peers, too: on the underlay by their public addresses, on
// the overlay by the pods', which come through the tunnel or directly. The echo
// knows its peers itself; this keeps others from crowding them out.
func guard(o Options, n Network) []Chain {
	in := Chain{Name: chainGuard, Type: "filter", Hook: "input", Priority: priorityGuard}
	vxlan := Chain{Name: chainVXLAN}
	for _, f := range families(n) {
		in.add("tunnel over "+f.String(), proto(f), udpTo(n.Port), jump(chainVXLAN))
		vxlan.add("from a peer", proto(f), sourceIn(f, peerSets[f]), doReturn)
	}
	vxlan.add("another network's", vniOther(n.VNI), doReturn)
	for _, f := range families(n) {
		if !o.forgetful {
			vxlan.add(rememberedText, proto(f), note(f, strangerSets[f]))
		}
	}
	vxlan.add("from no peer", countDrop(counterDropped))
	if o.EchoPort == 0 {
		return []Chain{in, vxlan}
	}
	echo := Chain{Name: chainEcho}
	for _, f := range families(n) {
		in.add("echo over "+f.String(), proto(f), udpTo(o.EchoPort), jump(chainEcho))
		echo.add("from a peer", proto(f), sourceIn(f, peerSets[f]), doReturn)
		echo.add("from the overlay", proto(f), source(n.Ranges[f]), doReturn)
	}
	echo.add("from no peer", doCountDrop)
	return []Chain{in, vxlan, echo}
}

// untracked keeps the tunnel's own packets out of the connection tracking, which
// they would fill (a connection for each source port), and out of reach of every
// address translation: the mark of an inner packet stays on the outer one, so
// that kube-proxy would masquerade both. A nested overlay's packets, which are
// merely forwarded, are none of ours: they go to others' addresses. (To ask the
// routes whether an address is local costs one part in 60 of a tunnel's throughput.)
func untracked(n Network) []Chain {
	in := Chain{Name: chainReceived, Type: "filter", Hook: "prerouting", Priority: priorityRaw}
	out := Chain{Name: chainSent, Type: "filter", Hook: "output", Priority: priorityRaw}
	for _, f := range families(n) {
		for _, a := range n.At[f] {
			to := destination(netip.PrefixFrom(a, a.BitLen()))
			in.add("received by the tunnel over "+f.String(), proto(f), udpTo(n.Port), to, vni(n.VNI), doNotTrack)
		}
		out.add("sent by the tunnel over "+f.String(), proto(f), udpTo(n.Port), vni(n.VNI), doNotTrack)
	}
	return []Chain{in, out}
}

// Check tells why options cannot be meant, nil if they can.
func (o Options) Check() error {
	if len(o.Unmasqueraded) > mostUnmasqueraded {
		return fmt.Errorf("%d prefixes are more than %d", len(o.Unmasqueraded), mostUnmasqueraded)
	}
	for _, p := range o.Unmasqueraded {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("%s is not the first address of a prefix", p)
		}
	}
	return nil
}

// mostUnmasqueraded bounds a chain that each new connection goes through.
const mostUnmasqueraded = 100
