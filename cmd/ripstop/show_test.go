package main

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ripstop-net/ripstop/network/status"
)

var update = flag.Bool("update", false, "write the goldens anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("differs from %s (-update writes it anew):\n%s", path, d)
	}
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func before(d time.Duration) time.Time { return now.Add(-d) }

// nodes are how a node can be.
func nodes() map[string]status.Status {
	well := status.Status{
		Version: 1, Node: "worker-1", Backend: "vxlan", Up: true,
		Daemon: status.Daemon{Version: "v0.2.0", PID: 4711, Started: before(50 * time.Hour), LogLevel: "info", Beat: before(time.Second)},
		Lease: status.Lease{
			Held: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.87.0/24"), netip.MustParsePrefix("fd00:10:5:57::/64")},
			Renewed: before(20 * time.Minute), Expires: now.Add(23*time.Hour + 40*time.Minute), Renewals: 51,
		},
		Underlay: []status.Underlay{
			{Family: "IPv4", Interface: "bond0.100", Address: netip.MustParseAddr("192.0.2.11"), Public: netip.MustParseAddr("203.0.113.11"), MTU: 9000, Reason: "has the default route"},
			{Family: "IPv6", Interface: "bond0.100", Address: netip.MustParseAddr("2001:db8::11"), Public: netip.MustParseAddr("2001:db8::11"), MTU: 9000, Reason: "has the default route"},
		},
		Devices: []status.Device{
			{Name: "ripstop-v6.1", VNI: 1, Port: 8472, MAC: "ce:7c:09:5e:c7:c3", MTU: 8930, Local: netip.MustParseAddr("2001:db8::11"), Addresses: []netip.Prefix{netip.MustParsePrefix("fd00:10:5:57::/128")}, Right: true},
			{Name: "ripstop.1", VNI: 1, Port: 8472, MAC: "7e:ac:fd:3a:1c:7c", MTU: 8950, Local: netip.MustParseAddr("192.0.2.11"), Addresses: []netip.Prefix{netip.MustParsePrefix("10.5.87.0/32")}, Right: true},
		},
		Peers: status.Peers{Count: 1204, GraceSeconds: 300},
		Store: status.Store{State: status.Current, Revision: 90210, Heard: before(12 * time.Second), Listings: 1, Changes: 88},
		Loop: status.Loop{
			Passes: 130, LastPass: before(90 * time.Second), LastSeconds: 0.00042, Wanted: 9636, Drift: 3, Ops: 9700, Failures: 2,
			Dumps: status.Dumps{Start: 1, Doubt: 2, Audit: 500},
		},
		Host: status.Host{Kept: true, Settings: []status.Setting{
			{Name: "net.ipv4.ip_forward", Want: 1, Have: 1, Right: true, Forwards: "IPv4"},
			{Name: "net.ipv6.conf.all.forwarding", Want: 1, Have: 1, Right: true, Forwards: "IPv6"},
		}},
		Firewall: status.Firewall{Kept: true, Guard: true, Peers: 2408, Writes: 1207},
		Probing: status.Probing{
			Port: 8473, EverySeconds: 30, Answered: 41_000, Ignored: 2,
			Layers: []status.ProbedLayer{
				{
					Layer: "underlay", Asked: 18_000, Lost: 3,
					RoundTrips: status.Times{Count: 17_997, Sum: 5.4, Buckets: []status.Bucket{{Within: .00025, Count: 9000}, {Within: .0005, Count: 17_997}}},
				},
				{Layer: "overlay", Asked: 18_000, Lost: 4},
			},
		},
		SubnetFile: status.File{Path: "/run/flannel/subnet.env"},
	}
	change := func(f func(*status.Status)) status.Status {
		s := well
		s.Devices = append([]status.Device(nil), well.Devices...)
		f(&s)
		return s
	}
	out := map[string]status.Status{
		"well": well,
		"starting": {
			Version: 1, Node: "worker-1", Daemon: well.Daemon, SubnetFile: well.SubnetFile,
			Waiting: &status.Waiting{For: "network config", Reason: "there is no network config in the store: write one with 'ripstop config set'"},
			Store:   status.Store{State: status.Unread},
		},
		"ran-out": change(func(s *status.Status) {
			s.Lease.Renewed, s.Lease.Expires = before(26*time.Hour), before(2*time.Hour)
			s.Store.State, s.Store.Heard = status.Stale, before(26*time.Hour)
			s.Store.Outage = &status.Outage{Since: before(26 * time.Hour), Failures: 91000, Reason: "https://192.0.2.1:2379: connection refused"}
		}),
		"leases-only": change(func(s *status.Status) {
			s.Backend, s.Devices, s.Host, s.Firewall = "alloc", nil, status.Host{}, status.Firewall{}
			s.Loop = status.Loop{Passes: 1, LastPass: before(90 * time.Second), LastSeconds: 0.00002}
		}),
		"no-rules": change(func(s *status.Status) {
			s.Firewall.Guard, s.Firewall.Peers = false, 0
			s.Firewall.Problem = "the kernel has no nftables: load the modules nf_tables, nft_ct"
		}),
		"store-away": change(func(s *status.Status) {
			s.Store.State, s.Store.Heard = status.Stale, before(10*time.Minute)
			s.Store.Outage = &status.Outage{Since: before(10 * time.Minute), Failures: 580, Reason: "https://192.0.2.1:2379: connection refused"}
		}),
		"in-trouble": change(func(s *status.Status) {
			s.Lease.Held, s.Lease.Problem = false, "hold 10.5.87.0-24&fd00:10:5:57::-64: lease lost: its record was overwritten by worker-9 (192.0.2.19)"
			s.Trouble = "lease 10.5.87.0/24,fd00:10:5:57::/64 is held by worker-9 (192.0.2.19)"
			s.Devices[1].Right, s.Devices[1].Problem = false, "is down: an outside hand (NetworkManager, process 812) does it again and again, 17 times so far"
			s.Peers.Held, s.Peers.PassedOver = 900, 2
			s.Peers.Records = []status.Record{{Key: "10.5.9.0-24", Reason: "VNI is 7, this node's is 1: packets would be lost"}, {Key: "junk", Reason: "key is no subnet"}}
			s.Store.Config = "the network config in the store was changed: it takes effect when this daemon is restarted"
			s.SubnetFile.Restored = 1
			s.Daemon.Listen, s.Daemon.ListenProblem = "127.0.0.1:8285", "listen tcp 127.0.0.1:8285: bind: address already in use"
			s.Host = status.Host{Kept: true, Restored: 23, LastRestored: before(4 * time.Second), Settings: []status.Setting{
				{Name: "net.ipv4.ip_forward", Want: 1, Forwards: "IPv4", Restored: 23, Fought: true},
				{Name: "net.ipv6.conf.all.forwarding", Want: 1, Have: 1, Right: true, Forwards: "IPv6"},
				{Name: "net.ipv6.conf.eth0.accept_ra", Want: 2, Have: 2, Right: true},
			}}
			s.Firewall.Heals, s.Firewall.LastHeal, s.Firewall.Dropped = 3, before(40*time.Second), 17
			s.Firewall.Findings = []status.Rule{
				{
					Table: "inet firewalld", Chain: "filter_FORWARD", Rule: "reject", Traffic: "from pods to pods of other nodes, from pods out of the cluster", Certain: true,
					Mend: "firewall-cmd --permanent --zone=trusted --add-source=10.5.0.0/16; firewall-cmd --reload",
				},
				{Table: "legacy ip filter", Chain: "FORWARD", Rule: "unreadable: operation not permitted", Traffic: "from and to pods", Mend: "iptables-legacy -S FORWARD shows them"},
			}
			s.Probing.Problem, s.Probing.Unnamed, s.Probing.CutOff = "open UDP port 8473 for IPv4: address already in use", 3, before(5*time.Minute)
			s.Probing.Silent = []status.SilentPeer{{
				Node: "worker-9", Subnets: s.Lease.Subnets[:1], Layer: "overlay", Since: before(7 * time.Minute), Asked: 5, Reason: "IPv4: no answer",
			}}
			s.Loop.Failing, s.Loop.Fought, s.Loop.Drift = 1, 1, 512
			s.Loop.Problems = []status.Problem{
				{Entry: "link ripstop.1", Reason: "an outside hand (NetworkManager, process 812) undid it 17 times", Fought: true},
				{Entry: "route 10.5.3.0/24 by nexthop via 10.5.3.0 dev ripstop.1", Reason: "in the way: route 10.5.3.0/24 of protocol static stands there: file exists", Foreign: true},
			}
		}),
	}
	for name, s := range out {
		s.Conditions = status.Judge(s, now, "")
		for i := range s.Conditions {
			s.Conditions[i].Since = before(10 * time.Minute)
		}
		s.Ready = status.Met(s.Conditions)
		out[name] = s
	}
	return out
}

func TestStatusOnScreens(t *testing.T) {
	for name, s := range nodes() {
		for _, width := range []int{80, 200} {
			var out bytes.Buffer
			showStatus(screen{to: &out, width: width}, s, now, width == 200)
			golden(t, fmt.Sprintf("status-%s-%d", name, width), out.String())
			fits(t, name, out.String(), width)
		}
	}
}

func fits(t *testing.T, name, text string, width int) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > width {
			t.Errorf("%s: a line of %d columns on a screen of %d: %s", name, n, width, line)
		}
	}
}

func page() status.Page {
	p := status.Page{Version: 1, Total: 5, Revision: 7}
	way := func(family, prefix, public string, path status.Path, entries status.Presence, reason string) status.Way {
		w := status.Way{
			Family: family, Subnet: netip.MustParsePrefix(prefix), Public: netip.MustParseAddr(public), Path: path, Device: "ripstop.1", MTU: 1450,
			MAC: "7e:ac:fd:3a:1c:7c", Entries: entries, Reason: reason,
		}
		if path == status.Direct {
			w.Device, w.MAC, w.MTU = "eth0", "", 1500
		}
		return w
	}
	p.Peers = []status.Peer{
		{Node: "worker-2", Ways: []status.Way{way("IPv4", "10.5.2.0/24", "192.0.2.12", status.Tunnel, status.Present, ""), way("IPv6", "fd00:10:5:2::/64", "2001:db8::12", status.Tunnel, status.Present, "")}},
		{Node: "worker-3", Ways: []status.Way{way("IPv4", "10.5.3.0/24", "192.0.2.13", status.Direct, status.Failing, "in the way: route 10.5.3.0/24 of protocol static stands there: file exists")}},
		{Node: "a-worker-with-quite-a-long-name.rack-17.example.org", Ways: []status.Way{way("IPv4", "10.5.4.0/24", "192.0.2.14", status.Tunnel, status.Missing, "")}},
		{Node: "", Ways: []status.Way{way("IPv4", "10.5.5.0/24", "192.0.2.15", status.Tunnel, status.Unknown, "")}, Held: true},
	}
	return p
}

func TestPeersOnScreens(t *testing.T) {
	for _, width := range []int{80, 200, 0} {
		var out bytes.Buffer
		listPeers(screen{to: &out, width: width}, page(), width == 0)
		golden(t, fmt.Sprintf("peers-%d", width), out.String())
		if width > 0 {
			fits(t, "peers", out.String(), width)
		}
	}
	for what, p := range map[string]status.Page{
		"none of 7 peers matches\n": {Total: 7}, "no peers: no other node has a lease that this one can use\n": {Revision: 7},
		"no peers yet: they have not been read from the store\n": {},
	} {
		var out bytes.Buffer
		if listPeers(screen{to: &out}, p, false); out.String() != what {
			t.Errorf("got %q, want %q", out.String(), what)
		}
	}
}

// TestPeersOfABackendWithoutAWay: with alloc it is said of each that there is none, and
// why.
func TestPeersOfABackendWithoutAWay(t *testing.T) {
	p := page()
	p.Backend, p.Total, p.Peers = "alloc", 1, p.Peers[:1]
	for i := range p.Peers[0].Ways {
		w := &p.Peers[0].Ways[i]
		*w = status.Way{Family: w.Family, Subnet: w.Subnet, Public: w.Public, Path: status.NoPath, Entries: status.NoneOwed}
	}
	for _, width := range []int{80, 200} {
		var out bytes.Buffer
		listPeers(screen{to: &out, width: width}, p, false)
		golden(t, fmt.Sprintf("peers-leases-only-%d", width), out.String())
		fits(t, "peers", out.String(), width)
	}
}

// TestNothingIsCut: whatever the width, each word of a status and of a table of peers
// is there.
func TestNothingIsCut(t *testing.T) {
	words := func(width int) map[string]bool {
		var out bytes.Buffer
		s := screen{to: &out, width: width}
		showStatus(s, nodes()["in-trouble"], now, false)
		listPeers(s, page(), false)
		all := map[string]bool{}
		for _, w := range strings.Fields(out.String()) {
			all[strings.TrimRight(w, ":")] = true
		}
		return all
	}
	whole := words(0)
	for _, width := range []int{1, 10, 40, 80, 200} {
		if d := cmp.Diff(whole, words(width)); d != "" {
			t.Errorf("on %d columns:\n%s", width, d)
		}
	}
}

// TestColoursAreForTerminals: what is no terminal gets none, and with colours the
// columns stand where they stand without.
func TestColoursAreForTerminals(t *testing.T) {
	var with, without bytes.Buffer
	showStatus(screen{to: &with, width: 80, colour: true}, nodes()["in-trouble"], now, false)
	showStatus(screen{to: &without, width: 80}, nodes()["in-trouble"], now, false)
	listPeers(screen{to: &with, width: 80, colour: true}, page(), false)
	listPeers(screen{to: &without, width: 80}, page(), false)
	bare := with.String()
	for _, c := range []colour{bold, red, green, yellow} {
		bare = strings.ReplaceAll(bare, fmt.Sprintf("\x1b[%dm", c), "")
	}
	if bare = strings.ReplaceAll(bare, "\x1b[0m", ""); bare != without.String() || with.Len() == without.Len() {
		t.Errorf("differ:\n%s", cmp.Diff(without.String(), bare))
	}
	if s := newScreen(&with); s.colour || s.terminal || s.width != 0 {
		t.Errorf("a buffer is taken for %+v", s)
	}
	t.Setenv("COLUMNS", "123")
	if s := newScreen(&with); s.width != 123 {
		t.Errorf("COLUMNS is not heeded: %+v", s)
	}
}

func TestAgo(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 999 * time.Millisecond: "0s", 61 * time.Second: "1m1s", 20 * time.Minute: "20m", 10 * time.Second: "10s", 3*time.Hour + 62*time.Second: "3h1m", 47 * time.Hour: "47h0m", 49 * time.Hour: "2d",
	} {
		if got := ago(now.Add(-d), now); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
}

// TestReadmeShowsWhatIsShown: the screens of README.md are the tool's.
func TestReadmeShowsWhatIsShown(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, screens, _ := strings.Cut(string(readme), "## Looking inside\n\n```console\n")
	screens, _, _ = strings.Cut(screens, "```")
	way := func(prefix, public string) []status.Way {
		return []status.Way{{Subnet: netip.MustParsePrefix(prefix), Public: netip.MustParseAddr(public), Path: status.Tunnel, MTU: 1450, Entries: status.Present}}
	}
	s := nodes()["well"]
	s.Lease.Subnets = []netip.Prefix{netip.MustParsePrefix("10.5.87.0/24")}
	eth := netip.MustParseAddr("10.0.0.11")
	s.Underlay = []status.Underlay{{Family: "IPv4", Interface: "eth0", Address: eth, Public: eth, MTU: 1500, Reason: "is the way to the store at 10.0.0.1"}}
	s.Devices = s.Devices[1:]
	s.Devices[0].MTU = 1450
	s.Peers.Count, s.Firewall.Peers = 2, 2
	s.Store.Revision, s.Loop.Wanted, s.Loop.Drift = 14, 10, 0
	s.Host.Settings = s.Host.Settings[:1]
	for i := range s.Probing.Layers {
		s.Probing.Layers[i].Asked = 11494 // Two peers each 30 s, for two days.
	}
	var out bytes.Buffer
	to := screen{to: &out}
	fmt.Fprintln(&out, "# ripstop status")
	showStatus(to, s, now, false)
	fmt.Fprintln(&out, "# ripstop peers")
	listPeers(to, status.Page{Total: 2, Peers: []status.Peer{{Node: "worker-2", Ways: way("10.5.98.0/24", "10.0.0.12")}, {Node: "worker-3", Ways: way("10.5.126.0/24", "10.0.0.13")}}}, false)
	if d := cmp.Diff(out.String(), screens); d != "" {
		t.Errorf("README.md differs:\n%s", d)
	}
}
