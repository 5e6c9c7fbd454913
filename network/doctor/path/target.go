package path

import (
	"net/netip"
	"time"
)

// Layer is one of the two networks that two nodes share.
type Layer int

// The layers.
const (
	// Underlay is the machines' own network.
	Underlay Layer = iota
	// Overlay is the pods' network, to which a node belongs with the base address of
	// its subnet.
	Overlay
)

func (l Layer) String() string { return [...]string{"underlay", "overlay"}[l] }

func (l Layer) other() Layer { return 1 - l }

// Direction is one way of a path.
type Direction int

// The directions.
const (
	// Out is from this node to the peer.
	Out Direction = iota
	// Back is from the peer to this node.
	Back
)

// Target is a peer that is examined, in one family.
type Target struct {
	// Node and Peer name the two ends, Family is IPv4 or IPv6.
	Node, Peer, Family string
	// Own and Their are the ends' addresses by layer. Those of the overlay are zero
	// where the backend gives a node none.
	Own, Their [2]netip.Addr
	// Interface is that of this host by which packets leave, "" where it is not known.
	Interface string
	// EchoPort is the UDP port at which the peer's daemon answers, 0 where it does
	// not, as a flannel.
	EchoPort uint16
	// TunnelPort is the UDP port of VXLAN. Direct tells that pods' packets go to this
	// peer without it.
	TunnelPort uint16
	Direct     bool
	// MTU is what pods may send to the peer, in bytes of an IP packet; Overhead what
	// the tunnel adds to that on the underlay, 0 on a direct path.
	MTU, Overhead int
	// Lacks names entries that this host's kernel should have for the peer and has not.
	Lacks []string
	// Life is what the store knows of the peer's daemon.
	Life Life
}

// tunnels tells whether the path of the overlay is a tunnel.
func (t Target) tunnels() bool { return !t.Direct }

// hasOverlay tells whether there is an overlay to be tried.
func (t Target) hasOverlay() bool { return t.Own[Overlay].IsValid() && t.Their[Overlay].IsValid() }

// Life is what is known of a daemon by its signs of life in the store.
type Life int

// What the store may know.
const (
	// LifeUnknown: the store was not asked, or could not be.
	LifeUnknown Life = iota
	// Living: there was a sign within the last minute or so.
	Living
	// NoSign: there was none.
	NoSign
)

// Reply says what became of requests.
type Reply int

// What can become of them.
const (
	// Unasked: none was sent.
	Unasked Reply = iota
	// Answered: at least one was.
	Answered
	// Silent: nothing came back.
	Silent
	// Refused: the other host says that nobody listens at that port.
	Refused
	// Unresolved: nothing came back, for nobody answered ARP or neighbour discovery as
	// the next hop. How long the kernel looks for it, and so whether that is what is seen
	// or Silent, is a matter of time.
	Unresolved
	// Unreachable: a host on the way, or this one, says that there is no way.
	Unreachable
)

func (r Reply) String() string {
	return [...]string{"not asked", "answered", "no answer", "refused: nobody listens there", "no answer to ARP or neighbour discovery", "no way there"}[r]
}

// lost tells that requests were sent and nobody said anything.
func (r Reply) lost() bool { return r == Silent || r == Unresolved }

// Outcome is what became of several equal requests.
type Outcome struct {
	Reply
	// Sent and Back count requests and those that were answered.
	Sent, Back int
	// RTT is the shortest round trip.
	RTT time.Duration
	// Detail is the error's text where there was one.
	Detail string
}

// Seen is what trying a target has shown.
type Seen struct {
	// Pings are answered by the peer's kernel, by layer.
	Pings [2]Outcome
	// Echoes are answered by the peer's daemon, by the layer of the request and that
	// of the answer.
	Echoes [2][2]Outcome
	// Trouble names what the peer's daemon says is wrong there.
	Trouble []string
	// Largest is the size of the largest packet that went through the overlay in a
	// direction, in bytes: the target's MTU where all is well, 0 where that is not
	// known. Round is the same of packets that go and come back in one size, where
	// nothing tells the directions apart.
	Largest [2]int
	Round   int
	// Carrier is the largest that went through the underlay and back. It is asked for
	// where the overlay does not take packets of the full size, else 0.
	Carrier int
	// Known is the MTU, in bytes, that this host's kernel gave as the reason for not
	// sending a packet of the full size; 0 as a rule.
	Known int
}
