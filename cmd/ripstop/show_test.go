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
		Version: 1, Node: "worker-1", Up: true,
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
		Firewall:   status.Firewall{Kept: true, Guard: true, Peers: 2408, Writes: 1207},
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
			s.Firewall.Heals, s.Firewall.LastHeal, s.Firewall.Dropped = 3, before(40*time.Second), 17
			s.Firewall.Findings = []status.Rule{
				{
					Table: "inet firewalld", Chain: "filter_FORWARD", Rule: "reject", Traffic: "from pods to pods of other nodes, from pods out of the cluster", Certain: true,
					Mend: "firewall-cmd --permanent --zone=trusted --add-source=10.5.0.0/16; firewall-cmd --reload",
				},
				{Table: "legacy ip filter", Chain: "FORWARD", Rule: "unreadable: operation not permitted", Traffic: "from and to pods", Mend: "iptables-legacy -S FORWARD shows them"},
			}
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
	var out bytes.Buffer
	listPeers(screen{to: &out}, status.Page{Total: 7}, false)
	if out.String() != "no peers (of 7)\n" {
		t.Errorf("got %q", out.String())
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
