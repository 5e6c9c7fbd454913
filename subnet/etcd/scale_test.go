package etcd

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

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
