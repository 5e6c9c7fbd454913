package path

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ripstop-net/ripstop/network/doctor"
)

// The checks of a path, as verdicts name them.
const (
	// CheckHost: the peer's host answers.
	CheckHost = "path/host"
	// CheckDaemon: the peer's daemon answers.
	CheckDaemon = "path/daemon"
	// CheckUnderlay: the underlay takes packets both ways.
	CheckUnderlay = "path/underlay"
	// CheckOverlay: the overlay takes packets both ways.
	CheckOverlay = "path/overlay"
	// CheckMTU: it takes packets of the size that pods may send.
	CheckMTU = "path/mtu"
	// CheckLoss: it takes all of them.
	CheckLoss = "path/loss"
	// CheckPeer: the peer says nothing of a trouble of its own.
	CheckPeer = "path/peer"
)

// Checks are their ids.
var Checks = []string{CheckHost, CheckDaemon, CheckUnderlay, CheckOverlay, CheckMTU, CheckLoss, CheckPeer}

// Judge says what is wrong with the path to a target, the cause before what follows of
// it, and of a path that is well that it is.
func Judge(t Target, s Seen) []doctor.Verdict {
	j := judge{t: t, s: s, ways: deduce(s.Echoes)}
	switch {
	case !s.heard(Underlay) && !s.heard(Overlay):
		j.nothing()
	case t.hasOverlay() && !s.carries(Overlay):
		j.overlay()
		j.peer()
	default:
		j.underlay()
		j.daemon()
		j.mtu()
		j.loss()
		j.peer()
	}
	if doctor.Worst(j.out) < doctor.Warning {
		j.well()
	}
	return j.out
}

// judge collects verdicts on one path.
type judge struct {
	t    Target
	s    Seen
	ways ways
	out  []doctor.Verdict
}

func (j *judge) add(check string, severity doctor.Severity, summary string, evidence, remedy []string) {
	j.out = append(j.out, doctor.Verdict{
		Check: check, Severity: severity, Peer: j.t.Peer, Family: j.t.Family, Summary: summary, Evidence: evidence, Remedy: remedy,
	})
}

// nothing is for a peer of which nothing at all is heard.
func (j *judge) nothing() {
	t := j.t
	evidence := j.asked()
	remedy := []string{
		doctor.Command("ip route get %s from %s", t.Their[Underlay], t.Own[Underlay]),
		doctor.Command("ip neighbour show to %s", t.Their[Underlay]),
	}
	if o := j.s.Pings[Underlay]; o.Reply == Unreachable {
		summary := fmt.Sprintf("there is no way to %s at %s: %s", t.Peer, t.Their[Underlay], o.Detail)
		switch t.Life {
		case NoSign:
			summary += fmt.Sprintf("; %s gives no sign of life in the store either", t.Peer)
		case Living:
			summary += fmt.Sprintf("; %s lives, for its daemon gives signs of life in the store", t.Peer)
		}
		j.add(CheckHost, doctor.Failure, summary, evidence, append(remedy, fmt.Sprintf("Look whether %s is up and still has the address %s; else mend the route to it.", t.Peer, t.Their[Underlay])))
		return
	}
	switch t.Life {
	case Living:
		j.add(CheckUnderlay, doctor.Failure,
			fmt.Sprintf("%s lives, for its daemon gives signs of life in the store, but nothing comes back from %s: the network between, or a firewall on %s or %s itself, drops all that goes from %s to it, or all that comes back", t.Peer, t.Their[Underlay], t.Peer, t.Node, t.Node),
			evidence, append(remedy, fmt.Sprintf("Look at firewalls and routes between %s and %s.", t.Own[Underlay], t.Their[Underlay])))
	default:
		what := fmt.Sprintf("%s does not answer at %s, neither by the underlay nor by the overlay: its host is gone, or cut off", t.Peer, t.Their[Underlay])
		if t.Life == NoSign {
			what = fmt.Sprintf("%s is gone: it does not answer at %s, neither by the underlay nor by the overlay, and gives no sign of life in the store", t.Peer, t.Their[Underlay])
		}
		j.add(CheckHost, doctor.Failure, what, evidence, append(remedy,
			fmt.Sprintf("Bring %s back. If it is not to come back, its lease runs out by itself; 'ripstop cleanup --release-lease' on it gives it back at once.", t.Peer)))
	}
}

// overlay is for a peer whose host is heard and whose overlay takes nothing there and
// back.
func (j *judge) overlay() {
	t := j.t
	evidence := j.asked()
	here, there := t.Node, t.Peer
	if len(t.Lacks) > 0 {
		j.add(CheckOverlay, doctor.Failure, fmt.Sprintf("the host of %s answers by the underlay, not by the overlay, and this host lacks what it takes to send there", there), append(slices.Clone(t.Lacks), evidence...),
			[]string{"See the check 'entries'."})
		return
	}
	if !j.s.answered() {
		j.overlayWithoutDaemon(evidence)
		return
	}
	out, back := j.ways[Overlay][Out], j.ways[Overlay][Back]
	underlay := "the underlay answers"
	if j.s.Echoes[Underlay][Underlay].Reply != Answered {
		underlay = "the underlay answers in part"
	}
	switch {
	case out == Broken && back == Works:
		j.add(CheckOverlay, doctor.Failure, fmt.Sprintf("%s, %s from %s to %s, not the other way", underlay, j.blocked(), here, there), evidence, j.look(here, there))
	case out == Works && back == Broken:
		j.add(CheckOverlay, doctor.Failure, fmt.Sprintf("requests arrive at %s by the overlay, answers do not come back: %s, %s from %s to %s", there, underlay, j.blocked(), there, here),
			evidence, append([]string{fmt.Sprintf("Run 'ripstop doctor --peer %s' on %s: what it has of %s is to be looked at there.", here, there, here)}, j.look(there, here)...))
	case out == Works && back == Works:
		j.add(CheckOverlay, doctor.Failure,
			fmt.Sprintf("the overlay takes packets from %s to %s, and others from %s to %s, and none that go there and come back by it: a firewall on one of the two drops answers, or nearly all is lost", here, there, there, here),
			evidence, []string{
				"A firewall that tracks connections drops what it takes for invalid or did not see the beginning of, or translates an address on the way. Look at its rules on both hosts:",
				doctor.Command("ripstop doctor --check foreign-rules,rp_filter,conntrack"), doctor.Command("nft list ruleset"),
			})
	case out == Broken && back == Broken:
		j.add(CheckOverlay, doctor.Failure, fmt.Sprintf("%s, %s both from %s to %s and back", underlay, j.blocked(), here, there), evidence, j.look(here, there))
	default: // Not all was asked.
		j.add(CheckOverlay, doctor.Failure, fmt.Sprintf("%s, %s from %s to %s or back, or both", underlay, j.blocked(), here, there), evidence, j.look(here, there))
	}
}

// blocked says what does not get through.
func (j *judge) blocked() string {
	if j.t.Direct {
		return "packets of pods' addresses, which go without a tunnel, are lost"
	}
	return fmt.Sprintf("VXLAN (UDP port %d) is blocked", j.t.TunnelPort)
}

// look says what to look at when packets are lost from one node to another.
func (j *judge) look(from, to string) []string {
	if j.t.Direct {
		return []string{
			"Let the network between pass packets from and to pods' addresses (clouds check sources and destinations), or set \"DirectRouting\" to false.",
			fmt.Sprintf("On %s, rp_filter of the underlay's interface and of all must not be 1 while some nodes send directly and others do not:", to),
			doctor.Command("sysctl net.ipv4.conf.all.rp_filter"),
		}
	}
	return []string{
		fmt.Sprintf("Open UDP port %d from %s to %s in whatever firewall stands between, or on either host; the checks 'firewall' and 'entries' say what is wrong on this host.", j.t.TunnelPort, from, to),
		fmt.Sprintf("On %s, see whether it arrives:", to),
		doctor.Command("tcpdump -ni any udp port %d", j.t.TunnelPort),
		"If it does, look there at the host's own rules for what comes in, which no check judges:",
		doctor.Command("nft list ruleset"),
	}
}

// overlayWithoutDaemon is for a peer's host of which only the kernel answers.
func (j *judge) overlayWithoutDaemon(evidence []string) {
	t := j.t
	switch {
	case t.EchoPort == 0:
		j.add(CheckOverlay, doctor.Failure,
			fmt.Sprintf("the host of %s answers by the underlay, not by the overlay: %s from %s to it or back (its daemon, a flannel or an old one, does not tell which)", t.Peer, j.blocked(), t.Node),
			evidence, j.look(t.Node, t.Peer))
	case j.s.refused() || t.Life == NoSign:
		j.add(CheckDaemon, doctor.Failure,
			fmt.Sprintf("the daemon of %s does not run, and its overlay does not answer: nothing mends there what is broken", t.Peer),
			evidence, []string{
				fmt.Sprintf("On %s:", t.Peer), doctor.Command("systemctl start ripstopd"),
				fmt.Sprintf("'ripstop doctor' on %s says what is broken.", t.Peer),
			})
	default:
		j.add(CheckUnderlay, doctor.Failure,
			fmt.Sprintf("the host of %s answers pings, but neither VXLAN (UDP port %d) nor the echo (UDP port %d) gets there and back: its daemon hangs, UDP is blocked between, or %s does not know %s as a peer, so that its guard drops both", t.Peer, t.TunnelPort, t.EchoPort, t.Peer, t.Node),
			evidence, append([]string{
				fmt.Sprintf("On %s, see whether its daemon answers, knows this node at %s, and what its guard drops:", t.Peer, t.Own[Underlay]),
				doctor.Command("ripstop peers --node %s", t.Node), doctor.Command("ripstop doctor"),
			}, j.look(t.Node, t.Peer)...))
	}
}

// underlay is for a peer that is heard, of whose underlay a part may be blocked.
func (j *judge) underlay() {
	t := j.t
	echo := j.s.Echoes[Underlay][Underlay].Reply
	switch {
	case !t.hasOverlay() && !j.s.carries(Underlay):
		j.add(CheckUnderlay, doctor.Failure, fmt.Sprintf("the underlay takes nothing to %s and back", t.Peer), j.asked(),
			[]string{doctor.Command("ip route get %s from %s", t.Their[Underlay], t.Own[Underlay])})
	case echo.lost() && j.s.Echoes[Overlay][Overlay].Reply == Answered:
		way := "in one direction or both"
		switch {
		case j.ways[Underlay][Out] == Broken && j.ways[Underlay][Back] == Works:
			way = fmt.Sprintf("from %s to %s", t.Node, t.Peer)
		case j.ways[Underlay][Out] == Works && j.ways[Underlay][Back] == Broken:
			way = fmt.Sprintf("from %s to %s", t.Peer, t.Node)
		}
		j.add(CheckUnderlay, doctor.Note, fmt.Sprintf("the overlay works; the echo's UDP port %d is blocked on the underlay %s, so that probing and this doctor tell less", t.EchoPort, way),
			j.asked(), []string{fmt.Sprintf("Open UDP port %d between the nodes.", t.EchoPort)})
	}
}

// daemon is for a peer whose overlay works.
func (j *judge) daemon() {
	t := j.t
	if t.EchoPort == 0 || j.s.answered() {
		return
	}
	switch {
	case j.s.refused(), t.Life == NoSign:
		j.add(CheckDaemon, doctor.Warning, fmt.Sprintf("the daemon of %s does not run; its overlay works on, and nothing mends it or keeps its lease", t.Peer),
			j.asked(), []string{fmt.Sprintf("On %s:", t.Peer), doctor.Command("systemctl start ripstopd")})
	default:
		j.add(CheckDaemon, doctor.Warning, fmt.Sprintf("the overlay of %s works, and its daemon does not answer at UDP port %d: it hangs, or the port is blocked", t.Peer, t.EchoPort),
			j.asked(), []string{fmt.Sprintf("On %s:", t.Peer), doctor.Command("ripstop status")})
	}
}

// mtu is for packets of the full size.
func (j *judge) mtu() {
	t, s := j.t, j.s
	if s.Known != 0 && s.Known < t.MTU {
		j.add(CheckMTU, doctor.Failure, fmt.Sprintf("this host sends packets of at most %d bytes to %s, where pods are told %d", s.Known, t.Peer, t.MTU), nil,
			[]string{doctor.Command("ip route get %s", t.Their[Overlay]), "A device, a route or what the kernel has learnt of the path has a smaller MTU; the check 'mtu' says what this host's devices have."})
		return
	}
	largest, where := t.MTU, []string{}
	for d, text := range [2]string{Out: fmt.Sprintf("from %s to %s", t.Node, t.Peer), Back: fmt.Sprintf("from %s to %s", t.Peer, t.Node)} {
		if n := s.Largest[d]; n != 0 && n < t.MTU {
			largest, where = min(largest, n), append(where, text)
		}
	}
	if len(where) == 0 && s.Round != 0 && s.Round < t.MTU {
		largest, where = s.Round, []string{"in one direction or both"}
	}
	if len(where) == 0 {
		return
	}
	through := "tunnel"
	if t.Direct {
		through = "path"
	}
	var evidence []string
	for d, text := range [2]string{Out: "to " + t.Peer, Back: "from " + t.Peer} {
		if s.Largest[d] != 0 {
			evidence = append(evidence, fmt.Sprintf("%s: packets of %d bytes arrive, pods may send %d", text, s.Largest[d], t.MTU))
		}
	}
	full := t.MTU + t.Overhead
	if largest <= smallest { // No larger one was seen to pass, or there was no time to see.
		j.add(CheckMTU, doctor.Failure, fmt.Sprintf("the %s works: small packets pass, those of %d bytes vanish %s", through, t.MTU, strings.Join(where, " and ")), nil,
			[]string{fmt.Sprintf("Let the network between take packets of %d bytes. How large they may be on the way:", full), doctor.Command("tracepath -n %s", t.Their[Underlay])})
		return
	}
	switch {
	case s.Carrier > smallest && s.Carrier < full:
		evidence = append(evidence, fmt.Sprintf("underlay: packets of %d bytes go there and back, %d do not: it is the network between", s.Carrier, full))
	case s.Carrier >= full:
		evidence = append(evidence, fmt.Sprintf("underlay: packets of %d bytes go there and back: what is lost is lost as VXLAN, or on a host", full))
	}
	remedy := []string{
		fmt.Sprintf("Let the network between take packets of %d bytes, or tell the nodes what it takes: give the underlay's interface an MTU of %d, here and on %s (the daemon follows),", full, largest+t.Overhead, t.Peer),
	}
	if t.Interface != "" {
		remedy = append(remedy, doctor.Command("ip link set dev %s mtu %d", t.Interface, largest+t.Overhead))
	}
	j.add(CheckMTU, doctor.Failure,
		fmt.Sprintf("the %s works, packets over %d bytes vanish %s: path MTU %d", through, largest, strings.Join(where, " and "), largest),
		evidence, append(remedy,
			fmt.Sprintf("or set \"MTU\": %d in \"Backend\" of the network config ('ripstop config set') and restart the daemons. Pods that run keep their MTU until they are made again.", largest)))
}

// loss is for requests of which a part is lost.
func (j *judge) loss() {
	for _, l := range []Layer{Underlay, Overlay} {
		o := j.s.Pings[l]
		if o.Reply != Answered || o.Back == o.Sent {
			continue
		}
		j.add(CheckLoss, doctor.Warning, fmt.Sprintf("the %s to %s loses packets: %d of %d pings came back", l, j.t.Peer, o.Back, o.Sent), j.asked(),
			[]string{"Look at the error counters of the interfaces between:", doctor.Command("ip -s link")})
		return // What the underlay loses, the overlay loses too.
	}
}

// peer is what the peer's daemon says of itself.
func (j *judge) peer() {
	if len(j.s.Trouble) == 0 {
		return
	}
	j.add(CheckPeer, doctor.Warning, fmt.Sprintf("the daemon of %s says that something is wrong there: %s", j.t.Peer, strings.Join(j.s.Trouble, ", ")), nil,
		[]string{fmt.Sprintf("On %s:", j.t.Peer), doctor.Command("ripstop doctor")})
}

// well says what was found of a path on which nothing is wrong.
func (j *judge) well() {
	path := "tunnel"
	if j.t.Direct {
		path = "direct path"
	}
	var parts []string
	for _, l := range []Layer{Underlay, Overlay} {
		o := j.s.Pings[l]
		if o.Reply != Answered {
			o = j.s.Echoes[l][l]
		}
		if o.Reply == Answered {
			parts = append(parts, fmt.Sprintf("%s %s", l, o.RTT.Round(time.Microsecond)))
		}
	}
	summary := fmt.Sprintf("the %s to %s works both ways", path, j.t.Peer)
	if !j.t.hasOverlay() {
		summary = fmt.Sprintf("%s is reached by the underlay", j.t.Peer)
	}
	if len(parts) > 0 {
		summary += ", there and back by " + strings.Join(parts, ", ")
	}
	if j.s.Largest[Out] >= j.t.MTU || j.s.Round >= j.t.MTU && j.t.MTU != 0 {
		summary += fmt.Sprintf("; packets of %d bytes pass", j.t.MTU)
	}
	check := CheckOverlay
	if !j.t.hasOverlay() {
		check = CheckUnderlay
	}
	j.add(check, doctor.OK, summary, j.asked(), nil)
}

// asked lists what was tried, as evidence.
func (j *judge) asked() (lines []string) {
	line := func(what string, o Outcome) {
		if o.Reply == Unasked {
			return
		}
		text := what + ": " + o.Reply.String()
		switch {
		case o.Reply == Answered:
			text += fmt.Sprintf(", %d of %d, %s", o.Back, o.Sent, o.RTT.Round(time.Microsecond))
		case o.Detail != "":
			text += ": " + o.Detail
		}
		lines = append(lines, text)
	}
	for l, o := range j.s.Pings {
		line(fmt.Sprintf("ping %s %s", Layer(l), j.t.Their[l]), o)
	}
	for there := range j.s.Echoes {
		for here, o := range j.s.Echoes[there] {
			line(fmt.Sprintf("echo asked by %s, answer by %s", Layer(there), Layer(here)), o)
		}
	}
	switch j.t.Life {
	case Living:
		lines = append(lines, "store: the daemon gives signs of life")
	case NoSign:
		lines = append(lines, "store: the daemon gives no sign of life")
	}
	return lines
}
