package status

import (
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func well() Status {
	return Status{
		Up: true, Lease: Lease{Held: true, Expires: now.Add(time.Hour)}, Devices: []Device{{Name: "ripstop.1", Right: true}},
		Host:  Host{Kept: true, Settings: []Setting{{Name: "net.ipv4.ip_forward", Want: 1, Have: 1, Right: true, Forwards: "IPv4"}}},
		Store: Store{State: Current, Revision: 7}, Loop: Loop{Passes: 1},
	}
}

func unforwarded(s Setting) Host {
	s.Name, s.Want, s.Forwards = "net.ipv4.ip_forward", 1, "IPv4"
	return Host{Kept: true, Settings: []Setting{s}}
}

// TestJudge: what fails each condition, and that it fails no other.
func TestJudge(t *testing.T) {
	if c := Judge(well(), now, ""); !Met(c) || len(c) != len(Names) {
		t.Fatalf("a node that is well: %+v", c)
	}
	for name, tc := range map[string]struct {
		harm func(*Status)
		file string
		bad  string
		want string
	}{
		"coming up": {func(s *Status) { s.Up = false }, "", Started, "coming up"},
		"waits":     {func(s *Status) { s.Up, s.Waiting = false, &Waiting{For: "lease", Reason: "all are taken"} }, "", Started, "waits for lease: all are taken"},
		"waits since": {func(s *Status) {
			s.Up, s.Waiting = false, &Waiting{For: "lease", Reason: "all are taken", Since: now}
		}, "", Started, "waits for lease since 2026-03-01T12:00:00Z: all are taken"},
		"waits though up": {func(s *Status) { s.Waiting = &Waiting{For: "lease", Reason: "x"} }, "", "", ""},
		"no lease yet":    {func(s *Status) { s.Lease = Lease{} }, "", LeaseHeld, "no lease is held yet"},
		"lease ran out":   {func(s *Status) { s.Lease.Expires = now }, "", LeaseHeld, "may have run out at 2026-03-01T12:00:00Z"},
		"reservation":     {func(s *Status) { s.Lease = Lease{Held: true, Reservation: true, Expires: now} }, "", "", ""},
		"not renewed yet": {func(s *Status) { s.Lease.Expires = time.Time{} }, "", "", ""},
		"trouble":         {func(s *Status) { s.Trouble = "a twin" }, "", Undisputed, "a twin"},
		"underlay gone": {func(s *Status) {
			s.Underlay = []Underlay{{Family: "IPv4", Interface: "eth0", Address: netip.MustParseAddr("10.0.0.1"), Problem: "no address"}}
		}, "", UnderlayThere, "IPv4: no address; going on with 10.0.0.1 on eth0"},
		"store unread":          {func(s *Status) { s.Store.State = Unread }, "", StoreKnown, "not been listed"},
		"store silent":          {func(s *Status) { s.Store.State = Silent }, "", StoreKnown, "nothing says why"},
		"store away":            {func(s *Status) { s.Store.State, s.Store.Outage = Stale, &Outage{Since: now, Reason: "refused"} }, "", "", "revision 7; the store is away since 2026-03-01T12:00:00Z: refused"},
		"saved":                 {func(s *Status) { s.Store.State, s.Store.Saved = Stale, true }, "", "", "what was saved, of revision 7"},
		"config changed":        {func(s *Status) { s.Store.Config = "changed" }, "", "", "changed"},
		"does not forward":      {func(s *Status) { s.Host = unforwarded(Setting{}) }, "", Forwarding, "net.ipv4.ip_forward is 0, so that no IPv4 packets of pods are forwarded: it is put back in a moment"},
		"forwarding fought for": {func(s *Status) { s.Host = unforwarded(Setting{Fought: true, Restored: 7}) }, "", Forwarding, "are forwarded: an outside hand changes net.ipv4.ip_forward again and again, 7 times put back"},
		"forwards by fits":      {func(s *Status) { s.Host = unforwarded(Setting{Fought: true, Have: 1, Right: true, Restored: 7}) }, "", Forwarding, "IPv4 packets of pods are forwarded by fits and starts: an outside hand"},
		"cannot forward":        {func(s *Status) { s.Host = unforwarded(Setting{}); s.Host.Problem = "it is read-only: run sysctl" }, "", Forwarding, "are forwarded; it is read-only: run sysctl"},
		"another setting wrong": {func(s *Status) {
			s.Host = Host{Kept: true, Settings: []Setting{{Name: "net.ipv6.conf.eth0.accept_ra", Want: 2, Have: 1}}}
		}, "", "", ""},
		"keeps no settings":  {func(s *Status) { s.Host = Host{} }, "", "", ""},
		"needs no device":    {func(s *Status) { s.Devices = nil }, "", "", ""},
		"one of two devices": {func(s *Status) { s.Devices = append(s.Devices, Device{Name: "x", Problem: "is down"}) }, "", DeviceRight, "x: is down"},
		"failing":            {func(s *Status) { s.Loop.Failing = 1 }, "", EntriesRight, "1 entry cannot be had"},
		"fought":             {func(s *Status) { s.Loop.Fought = 2 }, "", EntriesRight, "2 entries are again and again undone"},
		"unread kernel":      {func(s *Status) { s.Loop.Unread = "kernel cannot be read" }, "", EntriesRight, "cannot be read"},
		"no pass":            {func(s *Status) { s.Loop.Passes = 0 }, "", EntriesRight, "no pass"},
		"file":               {func(*Status) {}, "it is gone", SubnetFile, "it is gone"},
	} {
		s := well()
		tc.harm(&s)
		said := false
		for _, c := range Judge(s, now, tc.file) {
			if c.OK == (c.Name == tc.bad) {
				t.Errorf("%s: %s is %v: %s", name, c.Name, c.OK, c.Reason)
			}
			said = said || strings.Contains(c.Reason, tc.want)
		}
		if !said {
			t.Errorf("%s: nothing says %q", name, tc.want)
		}
	}
	coming := well()
	coming.Up, coming.Devices, coming.Host = false, nil, Host{}
	for name, text := range map[string]string{DeviceRight: "no device yet", Forwarding: "settings have not been seen to yet"} {
		if all := Judge(coming, now, ""); !slices.ContainsFunc(all, func(c Condition) bool { return c.Name == name && !c.OK && strings.Contains(c.Reason, text) }) {
			t.Errorf("coming up: %+v does not say %q", all, text)
		}
	}
	if Met(nil) {
		t.Error("no conditions are met")
	}
}

func TestTrackerKnowsSinceWhen(t *testing.T) {
	var tr Tracker
	note := func(ok bool, at time.Duration) time.Time {
		c := []Condition{{Name: "x", OK: ok}}
		tr.Note(c, now.Add(at))
		return c[0].Since
	}
	for i, step := range []struct {
		ok       bool
		at, want time.Duration
	}{{true, 0, 0}, {true, 1, 0}, {false, 2, 2}, {false, 3, 2}, {true, 4, 4}} {
		if got := note(step.ok, step.at); !got.Equal(now.Add(step.want)) {
			t.Errorf("step %d: since %s", i, got)
		}
	}
}

// TestQueryIsReadAsItWasWritten.
func TestQueryIsReadAsItWasWritten(t *testing.T) {
	for _, q := range []Query{
		{Limit: UsualPeers}, {Limit: MostPeers, Node: "node-1"}, {Limit: 1, Within: netip.MustParsePrefix("fd00::/16")},
		{Limit: 5, After: subnet.Subnets{netip.MustParsePrefix("10.5.1.0/24"), netip.MustParsePrefix("fd00:10:5:1::/64")}},
	} {
		values, err := url.ParseQuery(q.Values().Encode())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseQuery(values); err != nil || !reflect.DeepEqual(got, q) {
			t.Errorf("%+v comes back as %+v, %v", q, got, err)
		}
	}
	l := subnet.Lease{Node: "a", Subnets: subnet.Subnets{netip.MustParsePrefix("10.5.1.0/24")}}
	for q, want := range map[Query]bool{
		{}: true, {Node: "a"}: true, {Node: "b"}: false, {Within: netip.MustParsePrefix("10.5.1.7/32")}: true,
		{Within: netip.MustParsePrefix("10.5.2.0/24")}: false, {Within: netip.MustParsePrefix("::/0")}: false, {Node: "b", Within: netip.MustParsePrefix("10.0.0.0/8")}: false,
	} {
		if q.Match(l) != want {
			t.Errorf("%+v matches: %v", q, !want)
		}
	}
}
