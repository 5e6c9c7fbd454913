package lab

import (
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
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
		was: "case was || e.owns(l.name) || l.ours(e.owns):\n\t\te.lost()", is: "case was || e.owns(l.name) || l.ours(e.owns):",
		walks: []string{"^device down$", "^device down and up$", "^device with another MTU$", "^device with another local address$"},
	},
	{
		name: "kernel not read again after a change of our device", file: kernelEvents,
		was: "case was || e.owns(l.name) || l.ours(e.owns):\n\t\te.lost()", is: "case was || e.owns(l.name) || l.ours(e.owns):\n\t\te.tell(m, l.device(), m.typ == unix.RTM_DELLINK)",
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
		name: "device moved before peers are told", file: "network/step.go",
		was: "how = max(how, peersFirst)", is: "how = max(how, atOnce)",
		tests: []string{"TestFaults/underlay/kept/underlay:-the-way-to-etcd-goes-over-to-another-interface", "network.TestPeersAreToldFirst"},
	},
	{
		name: "where a moved peer was is shut at once", file: "network/moved.go",
		was: "if slices.Contains(after, a) {", is: "if slices.Contains(before, a) {",
		tests: []string{"network.TestGraceOfAMovedPeer"},
	},
	{
		name: "snapshot not read", file: "network/node.go",
		was: "if saved != nil && saved.Node != n.opts.Name {", is: "if saved != nil {",
		tests: []string{"TestFaults/store/device-lost-while-etcd-and-daemon-are-away", "TestFaults/store/daemon-started-while-etcd-is-away"},
	},
	{
		name: "another's record of the own subnet taken for a peer's", file: "network/follow.go",
		was: "own.Overlaps(s) {", is: "own.Overlaps(s) && false {",
		tests: []string{"TestFaults/store/own-subnet-taken-by-another-meanwhile", "network.TestTakenSubnetIsNeitherStolenNorReplaced"},
	},
	{
		name: "most peers gone at once not held", file: "subnet/grace.go",
		was: "return there >= massPeers && 2*peers > there", is: "return there >= massPeers && 2*peers > there && false",
		tests: []string{"TestFaults/store/most-of-a-dozen-peers-gone-in-one-revision"},
	},
	{
		name: "records listed for a compacted config", file: storeWatch,
		was: "changes = configChange\n\t\t\tif errors.Is(resp.Err(), rpctypes.ErrCompacted) {", is: "changes = configChange\n\t\t\tif errors.Is(resp.Err(), rpctypes.ErrCompacted) && false {",
		tests: []string{"subnet/etcd.TestCompactedConfigIsNoListing"},
	},
	{
		name: "records that went amid a compaction passed over", file: "subnet/etcd/compacted.go",
		was: "written.More, found(2).Count != int64(past.records+came):", is: "written.More:",
		tests: []string{"subnet/etcd.TestOnlyNewRecordsAreRead", "TestFaults/store/compaction-while-cut-off-from-etcd,-a-peer-left"},
	},
	{
		name: "harmed snapshot ends the daemon", file: "network/node.go",
		was: "n.log.Warn(\"saved snapshot passed over\", zap.Error(err))", is: "return err",
		tests: []string{"TestFaults/store/snapshot-torn-or-another-program's-at-a-start", "TestFaults/store/snapshot-torn-at-a-start-while-etcd-is-away"},
	},
}

// path is where the file is that it mutates.
func (m mutant) path(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", m.file))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// text is the mutated file.
func (m mutant) text(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile(m.path(t))
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(text, []byte(m.was)); n != 1 {
		t.Fatalf("%s has %q %d times: the mutant is to follow the code", m.file, m.was, n)
	}
	return bytes.Replace(text, []byte(m.was), []byte(m.is), 1)
}

// TestMutantsFollowTheCode: each of them can still be made, which "make mutants" does
// and has them caught, by faults and tests that there are.
func TestMutantsFollowTheCode(t *testing.T) {
	for _, m := range mutants {
		t.Run(strings.ReplaceAll(m.name, " ", "-"), func(t *testing.T) {
			if m.was == m.is {
				t.Error("it changes nothing")
			}
			if _, err := parser.ParseFile(token.NewFileSet(), m.file, m.text(t), parser.SkipObjectResolution); err != nil {
				t.Errorf("it is no Go: %v", err)
			}
			for _, of := range slices.Concat(m.walks, m.direct) {
				re := regexp.MustCompile(of)
				if !slices.ContainsFunc(walkFaults, func(f walkFault) bool { return re.MatchString(f.name) }) {
					t.Errorf("the walk has no fault %s", of)
				}
			}
			for _, test := range m.tests {
				if strings.HasPrefix(test, "TestFaults/") && !slices.Contains(faultTests(), test) {
					t.Errorf("the fault suite has no %s", test)
				}
			}
			if len(m.walks)+len(m.direct)+len(m.tests) == 0 {
				t.Error("nobody is to notice it")
			}
		})
	}
}

// faultTests are the names of the fault suite's tests.
func faultTests() (out []string) {
	add := func(part, name string) { out = append(out, "TestFaults/"+part+"/"+strings.ReplaceAll(name, " ", "-")) }
	for _, f := range hostFaults {
		add("host", f.name)
	}
	for _, f := range directFaults {
		add("direct", f.name)
	}
	for _, f := range underlayFaults {
		add("underlay/dual", f.name)
	}
	for _, f := range underlayStays {
		add("underlay/kept", f.name)
	}
	for _, f := range storeFaults {
		add("store", f.name)
	}
	return append(out, "TestFaults/host", "TestFaults/host-many-peers", "TestFaults/underlay", "TestFaults/restarts")
}

// TestPageNamesFaultsThatExist: a row of failure-semantics.md that names a fault
// which was renamed is held by nothing.
func TestPageNamesFaultsThatExist(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "Documentation", "failure-semantics.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile("`(TestFaults/[^`]+)`").FindAllSubmatch(page, -1)
	if len(names) < len(storeFaults) {
		t.Errorf("the page names %d faults", len(names))
	}
	for _, m := range names {
		if !slices.Contains(faultTests(), string(m[1])) {
			t.Errorf("the page names %s", m[1])
		}
	}
	for _, f := range storeFaults {
		if name := strings.ReplaceAll(f.name, " ", "-"); !bytes.Contains(page, []byte(name)) {
			t.Errorf("the page has no row for %s", name)
		}
	}
}
