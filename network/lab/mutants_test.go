//go:build mutants

package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// mutant is a daemon that has stopped to do one thing.
type mutant struct {
	name string
	// file, below the module's root, has was exactly once; is stands in its place.
	file, was, is string
	// walks are faults of the walk, as regular expressions, direct such of the walk
	// with direct routes, and tests are others, of this package or the one that they
	// name. Each of them alone is to notice the mutant.
	walks, direct, tests []string
}

const (
	kernelEvents = "backend/kernel/events.go"
	storeWatch   = "subnet/etcd/watch.go"
)

var mutants = []mutant{
	{
		name: "announced neighbours ignored", file: kernelEvents,
		was:   "e.tell(m, backend.Neighbour{Dev: dev, IP: n.dst, MAC: n.mac}, deleted || !n.shownNeighbour())",
		walks: []string{"^neighbours deleted$", "^neighbours given another MAC$", "^neighbour added$"},
	},
	{
		name: "announced FDB entries ignored", file: kernelEvents,
		was:   "e.tell(m, n.fdb(dev), deleted)",
		walks: []string{"^FDB entries deleted$", "^FDB entries led elsewhere$", "^FDB entry added$"},
	},
	{
		name: "announced routes ignored", file: kernelEvents,
		was: "e.tell(m, entry, gone)", is: "_, _ = entry, gone",
		walks: []string{"^routes deleted$", "^routes given an MTU$", "^route added$"}, tests: []string{"TestFaults/direct/direct-route-deleted"},
	},
	{
		name: "announced nexthops that go ignored", file: kernelEvents,
		was: "e.tell(m, was, true)", is: "_ = was",
		walks: []string{"^nexthops deleted$"},
	},
	{
		name: "announced nexthops that come ignored", file: kernelEvents,
		was: "e.tell(m, k.hops.add(hop, n.plain, n.id), false)", is: "k.hops.add(hop, n.plain, n.id)",
		walks: []string{"^nexthop added$"},
	},
	{
		name: "changes of our devices ignored", file: kernelEvents,
		was: "case was || e.owns(l.name):\n\t\te.lost()", is: "case was || e.owns(l.name):",
		walks: []string{"^device down$", "^device down and up$", "^device with another MTU$", "^device with another local address$"},
	},
	{
		name: "kernel not read again after a change of our device", file: kernelEvents,
		was: "case was || e.owns(l.name):\n\t\te.lost()", is: "case was || e.owns(l.name):\n\t\te.tell(m, l.device(), m.typ == unix.RTM_DELLINK)",
		walks: []string{"^device down$", "^device down and up$", "^device's carrier lost$"},
	},
	{
		name: "lost carrier of our device ignored", file: "backend/kernel/dump.go",
		was: "Down: !l.up || l.protoDown", is: "Down: !l.up",
		walks: []string{"^device's carrier lost$"},
	},
	{
		name: "changes of our addresses ignored", file: kernelEvents,
		was: "\tcase ours || carries", is: "\tcase ours:\n\tcase carries",
		walks: []string{"^addresses deleted$", "^address added$"},
	},
	{
		name: "lost announcements ignored", file: kernelEvents,
		was: "case errors.Is(err, unix.ENOBUFS):\n\t\t\te.lost()", is: "case errors.Is(err, unix.ENOBUFS):",
		walks: []string{"^entries deleted, which is not announced$"},
	},
	{
		name: "links of direct routes ignored", file: kernelEvents,
		was: "if k.carriers.changed(l, m.typ == unix.RTM_DELLINK) {", is: "if k.carriers.changed(l, m.typ == unix.RTM_DELLINK) && false {",
		direct: []string{"^underlay's interface bounced"},
	},
	{
		name: "IPv4 routes that go with a nexthop not counted", file: "backend/correct.go",
		was: "ok && s.usersOf(via) > 0 {", is: "ok && s.usersOf(via) > 1<<30 {",
		walks: []string{"^nexthops deleted$"},
	},
	{
		name: "source address kept when the local one changes", file: "backend/kernel/device.go",
		was: "k.renewAround(ctx, l, func() error { return k.changeVXLAN(ctx, d, l.index) })", is: "k.changeVXLAN(ctx, d, l.index)",
		tests: []string{"TestFaults/store/peer-restarted-at-another-address-and-back"},
	},
	{
		name: "watch drops every second delete", file: storeWatch,
		was: "c.Gone = append(c.Gone, s.lastPart(e.Kv.Key))", is: "if c.Revision%2 == 0 {\n\tc.Gone = append(c.Gone, s.lastPart(e.Kv.Key))\n}",
		walks: []string{"^ghost (gone|written)$"},
	},
	{
		name: "watch drops every second record", file: storeWatch,
		was: "s.read(e.Kv, &c.Leases, &c.Bad)", is: "if c.Revision%2 == 0 {\n\ts.read(e.Kv, &c.Leases, &c.Bad)\n}",
		walks: []string{"^ghost written$"},
	},
	{
		name: "another store not recognised", file: "subnet/etcd/epoch.go",
		was: "\tpast, held := seen.get(), s.held.all()", is: "\tif seen != nil {\n\t\treturn nil\n\t}\n\tpast, held := seen.get(), s.held.all()",
		walks: []string{"^etcd wiped$"},
	},
	{
		name: "another epoch ignored", file: "subnet/etcd/epoch.go",
		was: "case now != past.epoch:", is: "case false:", // As a rule, revisions and records tell as much.
		tests: []string{"subnet/etcd.TestAnotherClusterIDIsAnotherStore"},
	},
	{
		name: "peers held that left", file: "subnet/grace.go",
		was: "return there >= massPeers && 2*peers > there", is: "return there >= 0",
		walks: []string{"^ghost (gone|written)$"},
	},
	{
		name: "holds never end by time", file: "subnet/grace.go",
		was: "if len(g.since) == 0 || now.Before(g.due) {", is: "if true {",
		tests: []string{"TestFaults/store/etcd-wiped,-a-peer-never-comes-back"},
	},
	{
		name: "nobody is held", file: "subnet/grace.go",
		was: "case different:\n\t\treturn true", is: "case different:\n\t\treturn false",
		walks: []string{"^etcd wiped$"}, tests: []string{"TestFaults/store/etcd-wiped,-config-written-again"},
	},
	{
		name: "lost record not claimed again", file: "subnet/etcd/guard.go",
		was: "if kv == nil {", is: "if kv == nil {\n\t\treturn nil\n\t}\n\tif false {",
		walks: []string{"^record deleted$"}, tests: []string{"TestFaults/store/own-record-deleted"},
	},
	{
		name: "unreadable record taken for a removal", file: "subnet/mirror.go",
		was: `m.setBad(b.Key, cmp.Or(b.Reason, "cannot be read"))`, is: "m.setBad(b.Key, cmp.Or(b.Reason))\n\t\tif s, err := ParseKey(b.Key); err == nil {\n\t\t\tm.set(s, Lease{}, touched)\n\t\t}",
		tests: []string{"subnet.TestUnreadableRecordIsNeverARemoval"}, // The loop would keep what the kernel has.
	},
	{
		name: "changes of the guard's rules ignored", file: "network/firewall/events.go",
		was: "case a.table == tableKey{unix.NFPROTO_INET, TableName}:\n\t\te.own = true", is: "case a.table == tableKey{unix.NFPROTO_INET, TableName}:",
		walks: []string{"^rules flushed$", "^guard deleted$", "^guard's rule deleted$", "^peers taken out of the guard$", "^stranger put into the guard$"},
	},
	{
		name: "peers of the guard not compared", file: "network/firewall/loop.go",
		was: "} else if err := f.matchPeers(c, w); err != nil {", is: "} else if err := f.matchPeers(c, wish{careful: w.careful}); err != nil {",
		walks: []string{"^peers taken out of the guard$", "^stranger put into the guard$"},
	},
	{
		name: "peers that go stay in the guard", file: "network/firewall/firewall.go",
		was: "f.peers.set(a, n-1)", is: "_ = n",
		walks: []string{"^ghost (gone|written)$"},
	},
	{
		name: "snapshot not read", file: "network/node.go",
		was: "if saved != nil && saved.Node != n.opts.Name {", is: "if saved != nil {",
		tests: []string{"TestFaults/store/device-lost-while-etcd-and-daemon-are-away", "TestFaults/store/daemon-started-while-etcd-is-away"},
	},
}

// TestMutantsAreCaught makes daemons that do all but one thing and has the walk and
// the fault suite run with each: what they do not notice there, they would not
// notice if it broke.
func TestMutantsAreCaught(t *testing.T) {
	var walks, direct []string
	for _, m := range mutants {
		walks, direct = append(walks, m.walks...), append(direct, m.direct...)
	}
	for test, faults := range map[string][]string{"TestWalk": walks, "TestWalkDirect": direct} {
		if out, ok := runWith(t, "", walkArgs(test, strings.Join(faults, "|"))...); !ok {
			t.Fatalf("%s fails without any mutant:\n%s", test, out)
		}
	}
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			overlay := m.overlay(t)
			for _, faults := range m.walks {
				m.try(t, "TestWalk: "+faults, overlay, walkArgs("TestWalk", faults)...)
			}
			for _, faults := range m.direct {
				m.try(t, "TestWalkDirect: "+faults, overlay, walkArgs("TestWalkDirect", faults)...)
			}
			for _, test := range m.tests {
				args := []string{"."}
				if folder, name, ok := strings.Cut(test, "."); ok {
					args, test = []string{"../../" + folder}, name
				}
				m.try(t, test, overlay, append(args, "-run=^"+strings.ReplaceAll(regexp.QuoteMeta(test), "/", "$/^")+"$")...)
			}
		})
	}
}

// walkArgs are for a walk that is short, and long enough for each of a few faults
// to come to each family and to hosts with audits and without.
func walkArgs(test, faults string) []string {
	return []string{".", "-run=^" + test + "$", "-args", "-walk.only=" + faults, "-walk.steps=12", "-walk.seed=1", "-walk.limit=8s"}
}

// overlay writes the mutated file and what tells the go command to use it.
func (m mutant) overlay(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", m.file))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte(m.was)); n != 1 {
		t.Fatalf("%s has %q %d times: the mutant is to follow the code", m.file, m.was, n)
	}
	dir := t.TempDir()
	mutated, overlay := filepath.Join(dir, "mutated.go"), filepath.Join(dir, "overlay.json")
	list, err := json.Marshal(map[string]map[string]string{"Replace": {path: mutated}})
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string][]byte{mutated: bytes.Replace(text, []byte(m.was), []byte(m.is), 1), overlay: list} {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return overlay
}

// reason is what a walk or a test says that went wrong.
var reason = regexp.MustCompile(`(?m)^\s+\w+_test\.go:\d+: (` + strings.Join([]string{
	`seed \d+, step \d+: .*`, `not within .*`, `not healed after .*`, `no answer for .*`, `.* lost packets .*`, `\d+ of \d+ pairs do not talk.*`,
	`the kernel announced .*`, `the peer was (?:not )?held .*`,
}, "|") + `)$`)

func (m mutant) try(t *testing.T, test, overlay string, args ...string) {
	t.Helper()
	began := time.Now()
	out, ok := runWith(t, overlay, args...)
	name, _, _ := strings.Cut(test, ": ")
	switch why := reason.FindStringSubmatch(out); {
	case ok:
		t.Errorf("%s does not notice it", test)
	case !strings.Contains(out, "--- FAIL: "+name+" ") || strings.HasPrefix(name, "TestWalk") && why == nil:
		t.Errorf("%s fails otherwise than by noticing it:\n%s", test, out)
	default:
		t.Logf("%s notices it after %s: %.200s", test, time.Since(began).Round(time.Second), strings.Join(why[min(1, len(why)):], ""))
	}
}

// runWith runs tests of this package with an overlay, which the daemon that they
// build has as well, and tells whether they pass.
func runWith(t *testing.T, overlay string, args ...string) (out string, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-count=1", "-timeout=4m"}, args...)...)
	cmd.Env = os.Environ()
	if overlay != "" {
		cmd.Env = append(cmd.Env, strings.TrimSpace("GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+overlay))
	}
	text, err := cmd.CombinedOutput()
	if bytes.Contains(text, []byte("[build failed]")) || bytes.Contains(text, []byte("build ripstopd:")) {
		t.Fatalf("it cannot be built:\n%s", text)
	}
	return string(text), err == nil
}
