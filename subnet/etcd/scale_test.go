package etcd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// TestWatchBeginsWithTheLastListing: and misses nothing that came after it.
func TestWatchBeginsWithTheLastListing(t *testing.T) {
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: newPrefix()})
	h := newHand(t, shared.URL(), s.opts.Prefix)
	h.NewEpoch()
	before := mustWrite(t, s, testLease())
	seen, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	after := testLease()
	after.Node, after.Subnets[subnet.V4] = "n2", netip.MustParsePrefix("10.5.2.0/24")
	after = mustWrite(t, s, after)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var changes []subnet.Change
	if err := s.Watch(ctx, func(c subnet.Change) {
		if changes = append(changes, c); len(changes) == 2 {
			cancel()
		}
	}); err != nil {
		t.Fatal(err)
	}
	if len(changes) != 2 {
		t.Fatalf("changes: %+v", changes)
	}
	if c := changes[0]; !c.Whole || c.Revision != seen.Revision || !slices.Equal(c.Leases, []subnet.Lease{before}) {
		t.Errorf("first %+v, want the listing at %d", c, seen.Revision)
	}
	if c := changes[1]; c.Whole || !slices.Equal(c.Leases, []subnet.Lease{after}) {
		t.Errorf("then %+v, want %+v", c, after)
	}
}

// BenchmarkList reads as many leases as the largest network that is planned for.
func BenchmarkList(b *testing.B) {
	const records = 60_000
	s, err := Open(b.Context(), Options{Endpoints: []string{shared.URL()}, Prefix: newPrefix()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	value := string(testLease().Record())
	for i := 0; i < records; i += 100 {
		var puts []clientv3.Op
		for n := i; n < i+100; n++ {
			puts = append(puts, clientv3.OpPut(fmt.Sprintf("%s10.%d.%d.0-24", s.recordsKey(), n/256, n%256), value))
		}
		if _, err := s.client.Txn(b.Context()).Then(puts...).Commit(); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		l, err := s.List(b.Context())
		if err != nil || len(l.Leases) != records {
			b.Fatal(len(l.Leases), err)
		}
	}
}
