package subnettest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// Client is what nodes use of a store.
type Client interface {
	subnet.Store
	subnet.Presence
	subnet.Reporter
	subnet.Releaser
}

// Harness is an empty store as the suite needs it.
type Harness struct {
	// Open returns another client of the same store. It is closed by the test's
	// cleanup. Its Watch tells at least each second that the store is there.
	Open func(t *testing.T) Client
	// Hand changes the store behind its clients' backs.
	Hand Hand
}

// Hand is another's hand in the store.
type Hand interface {
	// Put writes a raw record, on a lease of its own or on none.
	Put(key string, value []byte, leased bool)
	// Delete removes a record.
	Delete(key string)
	// Expire ends the lease that a record is on.
	Expire(key string)
	// SetConfig writes the config; nil deletes it.
	SetConfig(value []byte)
	// NewEpoch makes the store another one.
	NewEpoch()
	// Vanish ends the presence of a node, as time does.
	Vanish(node string)
}

// patience is how long the suite waits for what must come.
const patience = time.Minute

// Conformance checks that a Store does what [subnet.Store] promises. It calls
// open once for each case.
func Conformance(t *testing.T, open func(t *testing.T) Harness) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"ListEmpty", listEmpty},
		{"ListConfigAndRecords", listAll},
		{"WriteCreatesOnlyIfAbsent", writeCreates},
		{"WriteRewritesAtRevisionOnly", writeRewrites},
		{"WriteKeepsReservation", writeReservation},
		{"WriteNeedsTheRecordsLease", writeLease},
		{"WriteHangsOnLease", writeExpires},
		{"WriteRace", writeRace},
		{"WriteHeedsContext", heedsContext},
		{"WatchOrder", watchOrder},
		{"WatchMissesNothing", watchMissesNothing},
		{"WatchTellsOfAnotherStore", watchDifferent},
		{"WatchTellsThatTheStoreIsThere", watchSign},
		{"HoldEndsWithContext", holdCancel},
		{"HoldLost", holdLost},
		{"HoldOwnRewrite", holdOwnRewrite},
		{"HoldReservation", holdReservation},
		{"HoldMakesNoEvent", holdSilent},
		{"HoldTellsUntilWhen", holdUntil},
		{"AppearRefusesATwin", appearTwin},
		{"AppearTakesOverItsOwn", appearAgain},
		{"AppearRace", appearRace},
		{"AppearBesideTheLiving", appearBesideTheLiving},
		{"AppearAfterTheDead", appearAfterTheDead},
		{"AppearBesideTheReturned", appearBesideTheReturned},
		{"KnownNodes", knownNodes},
		{"StayEnds", stayEnds},
		{"PresenceMakesNoEvent", presenceSilent},
		{"ReleaseTakesTheOwnRecordOnly", release},
		{"ReleaseLeavesWhatIsAnothers", releaseForeign},
		{"NoOutageWhileItAnswers", noOutage},
		{"ClaimWithRoom", func(t *testing.T, h Harness) { claimants(t, h, `"Network":"10.5.0.0/16"`, 0) }},
		{"ClaimExactlyEnough", func(t *testing.T, h Harness) {
			claimants(t, h, `"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.50.0"`, 0)
		}},
		{"ClaimPairs", func(t *testing.T, h Harness) {
			claimants(t, h, `"EnableIPv6":true,"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.60.0",`+
				`"IPv6Network":"fd00:10:5::/48","IPv6SubnetMin":"fd00:10:5:1::","IPv6SubnetMax":"fd00:10:5:32::"`, 0)
		}},
		{"ClaimOneTooFew", func(t *testing.T, h Harness) {
			claimants(t, h, `"Network":"10.5.0.0/16","SubnetMin":"10.5.1.0","SubnetMax":"10.5.49.0"`, 1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t)) })
	}
}

// testLease is the lease of the n-th node, n from 1 to 250.
func testLease(n int) subnet.Lease {
	l := subnet.Lease{Node: fmt.Sprintf("node-%d", n), Backend: "vxlan"}
	l.Subnets[subnet.V4] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(n), 0}), 24)
	l.Endpoints[subnet.V4] = subnet.Endpoint{
		PublicIP: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), VNI: 1, MAC: subnet.MAC{2, 0, 0, 0, 0, byte(n)},
	}
	return l
}

func mustList(t *testing.T, s subnet.Store) subnet.Listing {
	t.Helper()
	l, err := s.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	slices.SortFunc(l.Leases, func(a, b subnet.Lease) int { return cmp.Compare(a.Subnets.Key(), b.Subnets.Key()) })
	slices.SortFunc(l.Bad, func(a, b subnet.BadRecord) int { return cmp.Compare(a.Key, b.Key) })
	return l
}

func mustWrite(t *testing.T, s subnet.Store, l subnet.Lease) subnet.Lease {
	t.Helper()
	got, err := s.Write(t.Context(), l)
	if err != nil {
		t.Fatalf("Write: %v", err)
	}
	if !got.SameContent(l) || got.Created == 0 || got.Modified == 0 {
		t.Fatalf("Write returned %+v for %+v", got, l)
	}
	return got
}

func wantConflict(t *testing.T, s subnet.Store, l subnet.Lease) {
	t.Helper()
	before := mustList(t, s)
	if _, err := s.Write(t.Context(), l); !errors.Is(err, subnet.ErrConflict) {
		t.Fatalf("Write: got error %v, want ErrConflict", err)
	}
	after := mustList(t, s)
	if !slices.Equal(before.Leases, after.Leases) {
		t.Fatalf("a refused Write changed %+v to %+v", before.Leases, after.Leases)
	}
}

func listEmpty(t *testing.T, h Harness) {
	l := mustList(t, h.Open(t))
	if l.Revision < 1 || l.Config != nil || len(l.Leases) != 0 || len(l.Bad) != 0 {
		t.Fatalf("empty store lists as %+v", l)
	}
}

func listAll(t *testing.T, h Harness) {
	s := h.Open(t)
	h.Hand.SetConfig([]byte(`{"Network":"10.5.0.0/16"}`))
	one, two := testLease(1), testLease(2)
	h.Hand.Put(two.Subnets.Key(), two.Record(), true)
	h.Hand.Put(one.Subnets.Key(), one.Record(), false)
	h.Hand.Put("10.5.3.0-24", []byte("{"), true)
	h.Hand.Put("nonsense", one.Record(), true)
	l := mustList(t, s)
	if string(l.Config) != `{"Network":"10.5.0.0/16"}` {
		t.Errorf("Config is %q", l.Config)
	}
	if len(l.Leases) != 2 || !l.Leases[0].SameContent(one) || !l.Leases[1].SameContent(two) {
		t.Fatalf("Leases are %+v", l.Leases)
	}
	if !l.Leases[0].Reservation() || l.Leases[1].Reservation() {
		t.Errorf("want a reservation and a lease: %+v", l.Leases)
	}
	if l.Leases[0].Modified <= l.Leases[1].Modified || l.Leases[0].Modified > l.Revision {
		t.Errorf("revisions do not follow each other: %+v", l)
	}
	if len(l.Bad) != 2 || l.Bad[0].Key != "10.5.3.0-24" || l.Bad[1].Key != "nonsense" || l.Bad[0].Reason == "" {
		t.Errorf("Bad is %v", l.Bad)
	}
	h.Hand.SetConfig([]byte{})
	if l := mustList(t, s); l.Config == nil || len(l.Config) != 0 {
		t.Errorf("an empty config lists as %v", l.Config)
	}
	h.Hand.SetConfig(nil)
	if l := mustList(t, s); l.Config != nil {
		t.Errorf("a deleted config lists as %q", l.Config)
	}
}

func writeCreates(t *testing.T, h Harness) {
	a, b := h.Open(t), h.Open(t)
	got := mustWrite(t, a, testLease(1))
	if got.ID == 0 || got.Created != got.Modified {
		t.Errorf("created lease is %+v", got)
	}
	if l := mustList(t, b); len(l.Leases) != 1 || l.Leases[0] != got {
		t.Errorf("another lists %+v, want %+v", l.Leases, got)
	}
	thief := testLease(2)
	thief.Subnets = got.Subnets
	wantConflict(t, b, thief)
	h.Hand.Put("10.5.9.0-24", []byte("not to be read"), true)
	thief.Subnets = testLease(9).Subnets
	wantConflict(t, b, thief)
}

func writeRewrites(t *testing.T, h Harness) {
	s := h.Open(t)
	first := mustWrite(t, s, testLease(1))
	change := first
	change.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr("192.0.2.200")
	second := mustWrite(t, s, change)
	if second.ID != first.ID || second.Created != first.Created || second.Modified <= first.Modified {
		t.Errorf("rewritten %+v, was %+v", second, first)
	}
	wantConflict(t, s, change)
	h.Hand.Delete(first.Subnets.Key())
	if _, err := s.Write(t.Context(), second); !errors.Is(err, subnet.ErrConflict) {
		t.Errorf("rewrite of a deleted record: %v", err)
	}
	if l := mustList(t, s); len(l.Leases) != 0 {
		t.Errorf("a rewrite made a record: %+v", l.Leases)
	}
}

func writeReservation(t *testing.T, h Harness) {
	s := h.Open(t)
	h.Hand.Put("10.5.1.0-24", []byte(`{"PublicIP":"192.0.2.1"}`), false)
	r := mustList(t, s).Leases[0]
	want := testLease(1)
	want.Created, want.Modified = r.Created, r.Modified
	got := mustWrite(t, s, want)
	if got.ID != 0 || got.Created != r.Created {
		t.Errorf("reservation became %+v", got)
	}
	if l := mustList(t, s); len(l.Leases) != 1 || l.Leases[0] != got {
		t.Errorf("lists %+v, want %+v", l.Leases, got)
	}
}

func writeLease(t *testing.T, h Harness) {
	s := h.Open(t)
	l := mustWrite(t, s, testLease(1))
	other := mustWrite(t, s, testLease(2))
	for _, id := range []int64{0, other.ID} {
		wrong := l
		wrong.ID, wrong.Backend = id, "host-gw"
		wantConflict(t, s, wrong)
	}
}

func writeExpires(t *testing.T, h Harness) {
	s := h.Open(t)
	l := mustWrite(t, s, testLease(1))
	l.Backend = "host-gw"
	l = mustWrite(t, s, l)
	h.Hand.Expire(l.Subnets.Key())
	if got := mustList(t, s); len(got.Leases) != 0 {
		t.Errorf("the record outlived its lease: %+v", got.Leases)
	}
	if _, err := s.Write(t.Context(), l); !errors.Is(err, subnet.ErrConflict) {
		t.Errorf("rewrite after the lease's end: %v", err)
	}
	mustWrite(t, s, testLease(1))
}

func writeRace(t *testing.T, h Harness) {
	a, b := h.Open(t), h.Open(t)
	for n := 1; n <= 20; n++ {
		var errs [2]error
		var wg sync.WaitGroup
		for i, s := range []subnet.Store{a, b} {
			l := testLease(n)
			l.Node = fmt.Sprintf("racer-%d", i)
			wg.Go(func() { _, errs[i] = s.Write(t.Context(), l) })
		}
		wg.Wait()
		lost := 0
		for _, err := range errs {
			if errors.Is(err, subnet.ErrConflict) {
				lost++
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if lost != 1 {
			t.Fatalf("race %d: %v", n, errs)
		}
		winner := "racer-0"
		if errs[0] != nil {
			winner = "racer-1"
		}
		if l := mustList(t, a); l.Leases[slices.IndexFunc(l.Leases, func(l subnet.Lease) bool {
			return l.Subnets == testLease(n).Subnets
		})].Node != winner {
			t.Fatalf("race %d: %s was told that it won: %+v", n, winner, l.Leases)
		}
	}
}

func heedsContext(t *testing.T, h Harness) {
	s := h.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("List: %v", err)
	}
	if _, err := s.Write(ctx, testLease(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Write: %v", err)
	}
	if err := s.Watch(ctx, func(subnet.Change) {}); err != nil {
		t.Errorf("Watch: %v", err)
	}
	if l := mustList(t, s); len(l.Leases) != 0 {
		t.Errorf("lists %+v", l.Leases)
	}
}
