package lab

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

const (
	tunnelPort, echoPort = 8472, 8473
	// mostUnderlay is the largest packet of the tunnel's, in bytes, that the underlay takes
	// where larger ones vanish.
	mostUnderlay = 1450
)

// loses has a host lose UDP packets to a port at a hook, those that are larger than so
// many bytes; where an interface is named, what comes by that one alone.
func loses(t *testing.T, h *Host, hook *nftables.ChainHook, port uint16, largerThan uint32, by ...string) {
	t.Helper()
	c := nft(t, h.Namespace)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "between"})
	chain := c.AddChain(&nftables.Chain{
		Table: table, Name: fmt.Sprintf("hook%d", *hook), Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw,
	})
	var match []expr.Any
	for _, name := range by {
		match = append(match,
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(name), 0)})
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(match,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, port)},
		&expr.Meta{Key: expr.MetaKeyLEN, Register: 1},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpGt, Register: 1, Data: binary.BigEndian.AppendUint32(nil, largerThan)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// pathFault is what is done to a peer, and the verdict of another host on the path to
// it.
type pathFault struct {
	name  string
	act   func(*testing.T, *Lab, *Host)
	check string
	least doctor.Severity
	says  []string
	// also are checks that have something to say besides.
	also []string
}

var pathFaults = []pathFault{
	{"nothing", func(*testing.T, *Lab, *Host) {}, "", 0, nil, nil},
	{"VXLAN to it is blocked", func(t *testing.T, _ *Lab, h *Host) {
		loses(t, h, nftables.ChainHookInput, tunnelPort, 0)
	}, "path/overlay", doctor.Failure, []string{"the underlay answers, VXLAN (UDP port 8472) is blocked from node1 to PEER, not the other way"}, nil},
	{"VXLAN from it is blocked", func(t *testing.T, _ *Lab, h *Host) {
		loses(t, h, nftables.ChainHookOutput, tunnelPort, 0)
	}, "path/overlay", doctor.Failure, []string{"requests arrive at PEER by the overlay, answers do not come back", "blocked from PEER to node1"}, nil},
	{"VXLAN is blocked both ways", func(t *testing.T, _ *Lab, h *Host) {
		loses(t, h, nftables.ChainHookInput, tunnelPort, 0)
		loses(t, h, nftables.ChainHookOutput, tunnelPort, 0)
	}, "path/overlay", doctor.Failure, []string{"blocked both from node1 to PEER and back"}, nil},
	{"the echo is blocked on the underlay", func(t *testing.T, _ *Lab, h *Host) {
		loses(t, h, nftables.ChainHookInput, echoPort, 0, hostInterface)
	}, "path/underlay", doctor.Note, []string{"UDP port 8473 is blocked on the underlay from node1 to PEER"}, nil},
	{"large packets vanish", func(t *testing.T, _ *Lab, h *Host) {
		loses(t, h, nftables.ChainHookInput, tunnelPort, mostUnderlay)
	}, "path/mtu", doctor.Failure, []string{"the tunnel works, packets over LARGEST bytes vanish from node1 to PEER: path MTU LARGEST"}, nil},
	{"its device has another MAC, and its daemon hangs", func(t *testing.T, _ *Lab, h *Host) {
		hang(t, h)
		err := vxlans(h, func(n *netlink.Handle, v *netlink.Vxlan) error {
			return n.LinkSetHardwareAddr(v, []byte{2, 0, 0, 0, 0, 9})
		})
		if err != nil {
			t.Fatal(err)
		}
	}, "path/underlay", doctor.Failure, []string{"answers pings", "its daemon hangs"}, nil},
	{"its daemon is dead", func(t *testing.T, _ *Lab, h *Host) {
		kill(t, h)
	}, "path/daemon", doctor.Warning, []string{"the daemon of PEER does not run; its overlay works on"}, nil},
	{"its daemon is dead and has lost an entry", func(t *testing.T, l *Lab, h *Host) {
		kill(t, h)
		env, err := l.Hosts[0].Env()
		if err != nil {
			t.Fatal(err)
		}
		ours := belongs(l.Hosts[0], env)
		err = vxlans(h, func(n *netlink.Handle, v *netlink.Vxlan) error {
			return deleteOn(n, v, func(e target) bool { return e.kind == "fdb" }, ours)
		})
		if err != nil {
			t.Fatal(err)
		}
	}, "path/daemon", doctor.Failure, []string{"the daemon of PEER does not run, and its overlay does not answer"}, nil},
	{"its host is gone", func(t *testing.T, l *Lab, h *Host) {
		kill(t, h)
		downUnderlay(t, h)
		forget(t, l, h)
	}, "path/host", doctor.Failure, []string{
		"PEER", "no sign of life in the store", "ping underlay", "ping overlay", "echo asked by underlay, answer by underlay: no ", "store: the daemon gives no sign of life",
		"$ ip route get ADDRESS from ", "$ ip neighbour show to ADDRESS",
	}, nil},
	{"another's rule drops pods' packets there", func(t *testing.T, _ *Lab, h *Host) {
		c := nft(t, h.Namespace)
		drop := nftables.ChainPolicyDrop
		c.AddChain(&nftables.Chain{
			Table: c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "strict"}), Name: "forward",
			Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
		daemon := probeOf(t, h)
		_, in := timeUntil(30*time.Second, func() bool {
			s, err := daemon.client.Status(t.Context())
			return err == nil && len(s.Firewall.Findings) > 0
		})
		if !in {
			t.Fatalf("%s: the daemon did not see the rule", h.Name)
		}
	}, "path/peer", doctor.Warning, []string{"the daemon of PEER says that something is wrong there", "firewall rule"}, nil},
	{"its guard does not know the node", func(t *testing.T, l *Lab, h *Host) {
		hang(t, h)
		c := nft(t, h.Namespace)
		for f, name := range guardSets {
			a := l.Hosts[0].Address(subnet.Family(f))
			if err := c.SetDeleteElements(&nftables.Set{Table: guardTable(), Name: name}, []nftables.SetElement{{Key: a.AsSlice()}}); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}, "path/underlay", doctor.Failure, []string{"answers pings", "its guard drops both"}, nil},
	// The last one: its signs of life in the store last a minute.
	{"its underlay is down", func(t *testing.T, _ *Lab, h *Host) {
		downUnderlay(t, h)
	}, "path/underlay", doctor.Failure, []string{"PEER lives"}, nil},
}

// TestDoctorNamesWhatBreaksAPath: each of many peers has a fault of its own, and one run
// of the doctor on another host names them all, and finds nothing where there is none.
func TestDoctorNamesWhatBreaksAPath(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 1 + len(pathFaults), Mode: Dual, NoPods: true})
	allKnow(t, l)
	for i, f := range pathFaults {
		f.act(t, l, l.Hosts[1+i])
	}
	if _, err := toolPath(); err != nil { // Building it is not the doctor's time.
		t.Fatal(err)
	}
	began := time.Now()
	d := diagnose(t, l.Hosts[0], "--check=path", fmt.Sprintf("--peers=%d", len(pathFaults)))
	took := time.Since(began)
	t.Logf("%d verdicts after %s", len(d.verdicts), took.Round(time.Millisecond))
	if d.code != doctor.ExitFailures {
		t.Errorf("exit code %d", d.code)
	}
	for i, f := range pathFaults {
		f.isNamed(t, d, l.Hosts[1+i])
	}
	if limit := soonIll(); took > limit {
		t.Errorf("took %s, more than %s", took, limit)
	}
	for i, f := range pathFaults {
		if !slices.Contains(slowPaths, f.name) {
			continue
		}
		// By itself, with all the rest that there is to be said of the node.
		d := diagnose(t, l.Hosts[0], "--peers=0", "--peer="+l.Hosts[1+i].Name)
		t.Logf("%s: %s", f.name, d.took.Round(time.Millisecond))
		if f.isNamed(t, d, l.Hosts[1+i]); d.took > soonIll() {
			t.Errorf("%s: took %s, more than %s", f.name, d.took, soonIll())
		}
	}
}

// slowPaths are those of pathFaults that take the doctor longest, and none.
var slowPaths = []string{"nothing", "large packets vanish", "its host is gone"}

// soonIll is how long the doctor may take where a peer is not reached: 15 s, and more
// where daemons have the race detector and other tests beside them.
func soonIll() time.Duration {
	if raceDetector {
		return 30 * time.Second
	}
	return 15 * time.Second
}

// isNamed checks what is said of a peer: the fault in each family, and nothing else.
func (f pathFault) isNamed(t *testing.T, d diagnosis, h *Host) {
	t.Helper()
	var about diagnosis
	families := map[string]bool{}
	for _, v := range d.verdicts {
		if v.Peer != h.Name || v.Check == "entries" {
			continue
		}
		about.verdicts = append(about.verdicts, v)
		families[v.Family] = true
		if v.Severity > doctor.OK && v.Check != f.check && !slices.Contains(f.also, v.Check) {
			t.Errorf("%s: named besides: %s", f.name, line(v))
		}
	}
	if len(families) != len(h.lab.Families()) {
		t.Errorf("%s: something is said of %d families: %s", f.name, len(families), about.text())
	}
	if f.check == "" {
		return
	}
	for _, family := range h.lab.Families() {
		var says []string
		for _, text := range append([]string{" " + family.String() + "]"}, f.says...) {
			says = append(says, strings.NewReplacer("PEER", h.Name, "ADDRESS", h.Address(family).String(), "LARGEST", strconv.Itoa(mostUnderlay-overheadOf(family))).Replace(text))
		}
		if !about.names(f.check, f.least, says...) {
			t.Errorf("%s: not named as %s %q:\n%s", f.name, f.check, says, about.text())
		}
	}
}

// TestDoctorNamesWhatIsMissingOnTheWay: where this host's own kernel lacks an entry for
// a peer, that is said of the path to it, with the entry. The daemon is dead, for it
// would put it back at once.
func TestDoctorNamesWhatIsMissingOnTheWay(t *testing.T) {
	t.Parallel()
	missing := []struct{ kind, line string }{{"fdb", "not there: fdb "}, {"neighbour", "not there: neigh "}, {"nexthop", "not there: nexthop "}, {"route", "not there: route "}}
	l := startLab(t, Options{Nodes: 2 + len(missing), Mode: Dual, NoPods: true})
	h := l.Hosts[0]
	allKnow(t, l)
	kill(t, h)
	for i, m := range missing {
		deleteFor(t, h, l.Hosts[1+i], m.kind)
	}
	d := diagnose(t, h, "--check=path", fmt.Sprintf("--peers=%d", len(l.Hosts)-1))
	for i, m := range missing {
		f := pathFault{name: m.kind, check: "path/overlay", least: doctor.Failure, says: []string{
			"the host of PEER answers by the underlay, not by the overlay, and this host lacks what it takes to send there", m.line, "ping underlay ADDRESS: answered", "entries",
		}}
		f.isNamed(t, d, l.Hosts[1+i])
	}
	pathFault{name: "nothing"}.isNamed(t, d, l.Hosts[len(l.Hosts)-1])
}

// deleteFor deletes a host's entries of a kind that are a peer's, in each family.
func deleteFor(t *testing.T, h, peer *Host, kind string) {
	t.Helper()
	env, err := peer.Env()
	if err != nil {
		t.Fatal(err)
	}
	of := belongs(peer, env)
	match := func(e target) bool { return e.peer && e.kind == kind }
	err = vxlans(h, func(n *netlink.Handle, v *netlink.Vxlan) error { return deleteOn(n, v, match, of) })
	if err == nil {
		err = gone(deleteNexthops(h.Namespace, func(p hop) bool { return match(target{"nexthop", of(p.gateway)}) }))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDoctorNamesTheFilterOnADirectPath: while one node sends directly already and its
// peer by the tunnel yet, a strict rp_filter at the peer drops what comes directly. The
// one with the filter is told by its own check, the other one by the path.
func TestDoctorNamesTheFilterOnADirectPath(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: IPv4})
	if err := l.SetConfig(t.Context(), configWith(IPv4, directRoutes)); err != nil {
		t.Fatal(err)
	}
	first, behind, beside := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	for _, h := range []*Host{first, beside} {
		if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	everyPairTalks(t, l, talkLimit)
	for _, h := range l.Hosts {
		set(t, h, "ipv4/conf/all/rp_filter=0", "ipv4/conf/"+hostInterface+"/rp_filter=1")
	}
	d := diagnose(t, first)
	pathFault{
		name: "rp_filter at the peer", check: "path/overlay", least: doctor.Failure, says: []string{
			"the underlay answers, packets of pods' addresses, which go without a tunnel, are lost from node1 to PEER, not the other way",
			"On PEER, rp_filter of the underlay's interface", "$ sysctl net.ipv4.conf.all.rp_filter",
		},
	}.isNamed(t, d, behind)
	pathFault{name: "rp_filter at a peer that sends directly too"}.isNamed(t, d, beside)
	if !d.names("rp_filter", doctor.Warning, "rp_filter is strict on eth0: what a peer sends directly is dropped while this node sends to it by the tunnel", "$ sysctl -w net/ipv4/conf/eth0/rp_filter=2") {
		t.Errorf("the host's own filter: %s", d.text())
	}
	set(t, behind, "ipv4/conf/"+hostInterface+"/rp_filter=2")
	pathFault{name: "a loose filter"}.isNamed(t, diagnose(t, first, "--peer="+behind.Name), behind)
}

// TestDoctorOfAPathWithoutTheStore: with etcd away, paths are looked at all the same.
func TestDoctorOfAPathWithoutTheStore(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: IPv4, NoPods: true})
	for _, h := range l.Hosts {
		p := probeOf(t, h)
		eventually(t, talkLimit, "the other is known", func() bool {
			page, err := p.client.Peers(t.Context(), status.Query{})
			return err == nil && len(page.Peers) == 1
		})
	}
	if err := l.Etcd.Kill(); err != nil {
		t.Fatal(err)
	}
	// What the daemon saves it saves now and then.
	var d diagnosis
	if _, in := timeUntil(20*time.Second, func() bool {
		d = diagnose(t, l.Hosts[0], "--peer=node2")
		return d.looked("path/overlay")
	}); !in {
		t.Errorf("the path was not looked at:\n%+v", d.verdicts)
	}
	if !d.names("store", doctor.Warning) {
		t.Errorf("etcd is away, and not named:\n%s", d.text())
	}
	for _, v := range d.verdicts {
		if v.Peer == "node2" && v.Severity > doctor.OK {
			t.Errorf("%s", line(v))
		}
	}
	if d := diagnose(t, l.Hosts[0], "--check=path", "--peer=nobody"); !d.names("path/host", doctor.Failure, "there is no peer nobody") {
		t.Errorf("a peer that there is not:\n%s", d.text())
	}
}

// hang has a host's daemon do nothing more until the test ends, which waits for it.
func hang(t *testing.T, h *Host) {
	t.Helper()
	pid := h.DaemonPID()
	if err := standStill(pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = goOn(pid) })
}

func kill(t *testing.T, h *Host) {
	t.Helper()
	if _, _, err := h.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// downUnderlay sets the host's interface down, as somebody pulls the plug.
func downUnderlay(t *testing.T, h *Host) {
	t.Helper()
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		link, err := n.LinkByName(hostInterface)
		if err != nil {
			return err
		}
		return n.LinkSetDown(link)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// forget has the store forget that a host lives, which it does by itself a minute after
// the last sign.
func forget(t *testing.T, l *Lab, h *Host) {
	t.Helper()
	if _, err := openStore(t, l).Delete(t.Context(), Prefix+"/ripstop/nodes/"+h.Name); err != nil {
		t.Fatal(err)
	}
}
