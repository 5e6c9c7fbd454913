package network

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// asked is a rig's node as a client at its socket sees it.
type asked struct {
	*rig
	client *status.Client
}

func (r *rig) asked() asked {
	a := asked{r, status.NewClient(r.opts.RunDir)}
	r.t.Cleanup(a.client.Close)
	return a
}

func (a asked) ready() (code int, body string) {
	a.t.Helper()
	code, body, err := a.client.Get(a.t.Context(), status.PathReady)
	if err != nil {
		return 0, err.Error()
	}
	return code, body
}

// fails waits until exactly the named conditions fail, and one of the answers has
// the text.
func (a asked) fails(text string, names ...string) {
	a.t.Helper()
	var code int
	var body string
	ok := func() bool {
		code, body = a.ready()
		bad := 0
		for _, n := range names {
			bad += strings.Count(body, "[-]"+n+" failed: ")
		}
		return code == http.StatusServiceUnavailable && bad == len(names) && strings.Count(body, "[-]") == len(names) && strings.Contains(body, text)
	}
	for end := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			a.t.Fatalf("want 503 with %v failing and %q, have %d:\n%s", names, text, code, body)
		}
	}
}

func (a asked) well() {
	a.t.Helper()
	var code int
	var body string
	for end := time.Now().Add(patience); code != http.StatusOK; time.Sleep(5 * time.Millisecond) {
		if code, body = a.ready(); time.Now().After(end) {
			a.t.Fatalf("want 200, have %d:\n%s", code, body)
		}
	}
}

// TestReadinessGoesAndComesWithEachCondition of a living node: 503 while it
// fails, 200 after.
func TestReadinessGoesAndComesWithEachCondition(t *testing.T) {
	r := newRig(t)
	settings := r.settings()
	r.store.SetConfig(nil)
	r.start()
	a := r.asked()
	a.fails(": there is no network config in the store", status.Started, status.LeaseHeld, status.StoreKnown, status.Forwarding, status.DeviceRight, status.EntriesRight, status.SubnetFile)
	r.store.SetConfig([]byte(testConfig))
	a.well()
	key, own := r.own()
	second := r.join(2)
	a.well()

	r.store.Away(true)
	r.eventually("the store is knowingly stale", func() bool {
		code, body := a.ready()
		return code == http.StatusOK && strings.Contains(body, "[+]store ok: knowingly stale") && strings.Contains(body, "store is away")
	})
	r.store.Away(false)

	thief := own
	thief.Node, thief.Endpoints[0].PublicIP, thief.Endpoints[0].MAC = "node9", netip.MustParseAddr("10.99.0.9"), subnet.MAC{2, 9}
	r.store.Put(key, thief.Record(), true)
	a.fails("node9", status.LeaseHeld, status.Undisputed)
	r.store.Delete(key)
	a.well()

	route := backend.Route{Dst: second.Subnets[0], Via: backend.Nexthop{Dev: "ripstop.1", Gateway: second.Subnets[0].Addr()}}
	r.kernel.FailOps(func(op backend.Op) error {
		if op.Entry == backend.Entry(route) {
			return fmt.Errorf("%w: a route of somebody's: %w", backend.ErrInTheWay, syscall.EEXIST)
		}
		return nil
	})
	r.kernel.Hand(func(s *backend.State) { s.Drop(route) })
	a.fails("1 entry cannot be had: "+route.String()+": in the way: a route of somebody's", status.EntriesRight)
	page, err := a.client.Peers(t.Context(), status.Query{})
	if err != nil || len(page.Peers) != 1 || page.Peers[0].Ways[0].Entries != status.Failing || !strings.Contains(page.Peers[0].Ways[0].Reason, "somebody's") {
		t.Errorf("peers: %+v, %v", page, err)
	}
	if s, err := a.client.Status(t.Context()); err != nil || len(s.Loop.Problems) != 1 || !s.Loop.Problems[0].Foreign {
		t.Errorf("status: %+v, %v", s.Loop, err)
	}
	r.kernel.FailOps(nil)
	a.well()

	noDevice := func(op backend.Op) error {
		if op.Entry.Kind() == backend.KindDevice && op.Verb == backend.Add {
			return fmt.Errorf("%w: another has the port: %w", backend.ErrInTheWay, syscall.EADDRINUSE)
		}
		return nil
	}
	r.kernel.FailOps(noDevice)
	r.kernel.Hand(func(s *backend.State) {
		dev, _ := s.Device("ripstop.1")
		s.Apply(backend.Op{Verb: backend.Delete, Entry: dev})
	})
	a.fails("ripstop.1: is missing: in the way: another has the port", status.DeviceRight, status.EntriesRight)
	r.kernel.FailOps(nil)
	a.well()

	r.kernel.FailDump(errors.New("no buffer"))
	r.kernel.Overflow()
	a.fails("kernel cannot be read: no buffer", status.EntriesRight)
	r.kernel.FailDump(nil)
	a.well()

	r.host.become(func() { r.host.host[0].Up = false })
	a.fails("eth0", status.UnderlayThere)
	r.host.become(func() { r.host.host[0].Up = true })
	a.well()

	forwards := status.Setting{Name: "net.ipv4.ip_forward", Want: 1, Have: 1, Right: true, Forwards: "IPv4"}
	off := forwards
	off.Have, off.Right = 0, false
	settings.tells(status.Host{Kept: true, Settings: []status.Setting{off}})
	a.fails("net.ipv4.ip_forward is 0, so that no IPv4 packets of pods are forwarded", status.Forwarding)
	settings.tells(status.Host{Kept: true, Settings: []status.Setting{forwards}})
	a.well()

	// A folder in the file's place cannot be replaced.
	if err := errors.Join(os.Remove(r.opts.SubnetFile), os.MkdirAll(filepath.Join(r.opts.SubnetFile, "full"), 0o755)); err != nil {
		t.Fatal(err)
	}
	a.fails("and cannot be put back: write the subnet file", status.SubnetFile)
	if err := os.RemoveAll(r.opts.SubnetFile); err != nil {
		t.Fatal(err)
	}
	a.well()

	r.stop()
	if _, err := a.client.Status(t.Context()); !errors.Is(err, status.ErrNotRunning) {
		t.Errorf("after the end: %v", err)
	}
}

// TestStartWithoutStoreIsReadyAndKnowinglyStale.
func TestStartWithoutStoreIsReadyAndKnowinglyStale(t *testing.T) {
	r := newRig(t)
	r.join(2)
	r.start()
	r.ready()
	r.savesItsLease()
	r.stop()
	r.store.Away(true)
	r.start()
	r.ready()
	a := r.asked()
	a.well()
	s, err := a.client.Status(t.Context())
	if err != nil || s.Store.State != status.Stale || !s.Store.Saved || !s.Lease.Held || s.Lease.Expires.IsZero() || s.Peers.Count != 1 {
		t.Errorf("store %+v, lease %+v, peers %+v, %v", s.Store, s.Lease, s.Peers, err)
	}
	r.store.Away(false)
	r.eventually("the store is current", func() bool {
		s, err := a.client.Status(t.Context())
		return err == nil && s.Ready && s.Store.State == status.Current && !s.Store.Saved && s.Store.Outage == nil
	})
}

// series are the values of a scrape.
func (a asked) series() map[string]float64 {
	a.t.Helper()
	code, body, err := a.client.Get(a.t.Context(), status.PathMetrics)
	if err != nil || code != http.StatusOK {
		a.t.Fatalf("scrape: %d, %v\n%s", code, err, body)
	}
	out := map[string]float64{}
	for line := range strings.Lines(body) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "} ")
		if !ok {
			name, value, ok = strings.Cut(strings.TrimSpace(line), " ")
		}
		if !ok || !strings.HasPrefix(name, "ripstop_") {
			continue
		}
		if out[name], err = strconv.ParseFloat(value, 64); err != nil {
			a.t.Fatalf("%s: %v", line, err)
		}
	}
	return out
}

// TestEachMetricMoves: all that happens to a node shows in a metric, and no
// metric of ours is there that never moves.
func TestEachMetricMoves(t *testing.T) {
	r := newRig(t)
	r.opts.PeerGrace = 2 * patience // Until it is made shorter.
	r.opts.AuditEvery = 500 * time.Millisecond
	r.store.Sign(50 * time.Millisecond)
	r.store.SetConfig(nil)
	rules := &fakeFirewall{rig: r, try: make(chan struct{}), let: map[netip.Addr]int{}}
	close(rules.try)
	r.firewall = rules
	settings := r.settings()
	r.start()
	a := r.asked()
	r.eventually("it answers", func() bool { code, _ := a.ready(); return code != 0 })
	moved := map[string]bool{}
	last := a.series()
	all := maps.Clone(last)
	look := func() map[string]float64 {
		now := a.series()
		for name, value := range now {
			if before, ok := last[name]; !ok || before != value {
				moved[name] = true
			}
		}
		maps.Copy(all, now)
		last = now
		return now
	}
	until := func(what string, is func(map[string]float64) bool) {
		t.Helper()
		r.eventually(what, func() bool { return is(look()) })
	}
	is := func(name string, value float64) func(map[string]float64) bool {
		return func(s map[string]float64) bool { return s["ripstop_"+name] == value }
	}
	more := func(name string) func(map[string]float64) bool {
		before := last["ripstop_"+name]
		return func(s map[string]float64) bool { return s["ripstop_"+name] > before }
	}
	r.store.SetConfig([]byte(testConfig))
	until("ready", is("ready", 1))
	second := r.join(2)
	until("a peer", is("peers", 1))
	until("a change", is("store_changes_total", 1))

	rules.tells(status.Firewall{
		Kept: true, Peers: 1, Dropped: 2, Writes: 3, Heals: 4, Findings: []status.Rule{{Certain: true}, {Certain: true}, {Certain: false}},
	})
	until("the firewall's numbers", func(s map[string]float64) bool {
		return s["ripstop_firewall_right"] == 1 && s["ripstop_guard_peers"] == 1 && s["ripstop_guard_dropped_packets_total"] == 2 && s["ripstop_firewall_writes_total"] == 3 &&
			s["ripstop_firewall_heals_total"] == 4 && s[`ripstop_firewall_findings{certain="true"`] == 2 && s[`ripstop_firewall_findings{certain="false"`] == 1
	})
	rules.tells(status.Firewall{Kept: true, Problem: "refused"})
	until("wrong rules", is("firewall_right", 0))

	if err := os.Remove(r.opts.SubnetFile); err != nil {
		t.Fatal(err)
	}
	until("the subnet file is back", is("subnet_file_restored_total", 1))

	r.host.become(func() { r.host.host[0].MTU = 1400 })
	until("the underlay has another MTU", is("underlay_moves_total", 1))
	r.host.become(func() { r.host.host[0].Up = false })
	until("the underlay is down", is(`condition_met{condition="underlay"`, 0))
	r.host.become(func() { r.host.host[0].Up = true })
	until("the underlay is up", is(`condition_met{condition="underlay"`, 1))

	settings.tells(status.Host{Kept: true, Restored: 4, Settings: []status.Setting{{Name: "net.ipv4.ip_forward", Forwards: "IPv4"}}})
	until("a setting is wrong", func(s map[string]float64) bool {
		return s["ripstop_host_settings_wrong"] == 1 && s["ripstop_host_settings_restored_total"] == 4 && s[`ripstop_condition_met{condition="forwarding"`] == 0
	})
	settings.tells(status.Host{Kept: true})
	until("no setting is wrong", is("host_settings_wrong", 0))

	drop := func(e backend.Entry) { r.kernel.Hand(func(s *backend.State) { s.Drop(e) }) }
	route := backend.Route{Dst: second.Subnets[0]}
	drop(route)
	until("drift", more("drift_entries_total"))
	for range 8 { // A fight.
		drop(route)
		r.eventually("it is mended", func() bool { return r.reaches(second) })
	}
	until("a fight", is("fought_entries", 1))

	r.kernel.Overflow()
	until("a dump after doubt", more(`kernel_dumps_total{reason="doubt"`))
	r.kernel.FailDump(errors.New("no buffer"))
	r.kernel.Overflow()
	until("a failed dump", more("kernel_dump_failures_total"))
	r.kernel.FailDump(nil)
	until("a dump after all", more(`kernel_dumps_total{reason="doubt"`))

	r.kernel.FailOps(func(op backend.Op) error {
		if op.Entry.Kind() == backend.KindRoute || op.Entry.Kind() == backend.KindDevice {
			return syscall.EEXIST
		}
		return nil
	})
	third := r.join(3)
	r.join(5)
	until("a failure", func(s map[string]float64) bool {
		return s["ripstop_failing_entries"] > 0 && s["ripstop_op_failures_total"] > 0 && s[`ripstop_kernel_dumps_total{reason="surprise"`] > 0
	})
	r.kernel.Hand(func(s *backend.State) {
		dev, _ := s.Device("ripstop.1")
		s.Apply(backend.Op{Verb: backend.Delete, Entry: dev})
	})
	until("the device is wrong", is(`device_right{device="ripstop.1"`, 0))
	r.kernel.FailOps(nil)
	until("the device is right", is(`device_right{device="ripstop.1"`, 1))

	r.store.Away(true)
	until("the store is away", is("store_up", 0))
	r.store.Away(false)
	until("the store is back", is("store_up", 1))
	key, thief := r.own()
	thief.Node, thief.Endpoints[0].PublicIP, thief.Endpoints[0].MAC = "node9", netip.MustParseAddr("10.99.0.9"), subnet.MAC{2, 9}
	r.store.Put(key, thief.Record(), true)
	until("the lease is lost", func(s map[string]float64) bool {
		return s["ripstop_lease_losses_total"] == 1 && s[`ripstop_condition_met{condition="undisputed"`] == 0
	})
	r.store.Delete(key)
	until("the lease is held", is("lease_held", 1))
	r.store.Put("junk", []byte("junk"), true)
	until("a record is passed over", is("records_passed_over", 1))

	fourth := r.join(4)
	until("four peers", is("peers", 4))
	r.store.Wipe()
	until("peers are held", is("held_peers", 4))
	r.store.Put(second.Subnets.Key(), second.Record(), true)
	until("one has returned", more(`holds_ended_total{outcome="returned"`))
	rival := r.join(33) // Of a subnet of its own, with a held peer's MAC.
	rival.Endpoints[0].MAC = third.Endpoints[0].MAC
	r.store.Put(rival.Subnets.Key(), rival.Record(), true)
	until("one has given way", more(`holds_ended_total{outcome="displaced"`))
	f := r.node.view.follower
	f.mu.Lock()
	f.mirror.SetGrace(time.Millisecond)
	f.mu.Unlock()
	until("the others are gone", func(s map[string]float64) bool {
		return s["ripstop_held_peers"] == 0 && s[`ripstop_holds_ended_total{outcome="expired"`] > 0 && !r.reaches(fourth)
	})

	found := more("audit_findings_total")
	// An audit that took long comes again late, and a dump for another reason may
	// find first what it would have found.
	r.eventually("an audit finds what nobody announced", func() bool {
		r.kernel.Silently(func(s *backend.State) { s.Drop(route) })
		return found(look())
	})

	for _, name := range slices.Sorted(maps.Keys(all)) {
		// Peers are asked among real hosts only: TestDaemonsProbeEachOther sees those move.
		if strings.HasPrefix(name, "ripstop_probe") || strings.HasPrefix(name, "ripstop_echoes_") || name == "ripstop_silent_peers" {
			continue
		}
		if !moved[name] && !strings.HasPrefix(name, "ripstop_build_info") {
			t.Errorf("%s has stayed at %v", name, all[name])
		}
	}
	t.Logf("%d series of ours, of which %d moved", len(all), len(moved))
}

// TestStoreState: stale is what is known to be away; what says nothing for longer
// than it ever does is not.
func TestStoreState(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		heard time.Time
		saved bool
		away  bool
		want  status.StoreState
	}{
		"nothing known":        {time.Time{}, false, false, status.Unread},
		"nothing known, away":  {time.Time{}, false, true, status.Unread},
		"saved":                {time.Time{}, true, false, status.Stale},
		"heard":                {now, false, false, status.Current},
		"heard, away":          {now.Add(-time.Hour), false, true, status.Stale},
		"heard, then silent":   {now.Add(-storeSilence - time.Second), false, false, status.Silent},
		"heard, between signs": {now.Add(-45 * time.Second), false, false, status.Current},
	} {
		if got := storeState(status.Store{Heard: tc.heard, Saved: tc.saved}, now, tc.away); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}
