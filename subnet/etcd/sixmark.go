package etcd

import (
	"context"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// A record's key begins with its IPv4 subnet, or says that it has none, so no
// comparison on records tells whether an IPv6 subnet is free. So who takes one
// writes a mark beside the record, in the same transaction and on the same etcd
// lease: its key is the IPv6 subnet, its value the last part of the record's key.
// Claims of different subnets do not meet, however many there are at once.
//
// The mark decides between claims that run at once. What was there before shows in
// the keys, also what a flannel wrote, which leaves no mark: one that claims in the
// same moment is not seen.

// sixMarkKey is where the mark of an IPv6 subnet stands.
func (s *Store) sixMarkKey(of subnet.Subnets) string {
	return s.opts.Prefix + "/ripstop/ipv6/" + strings.ReplaceAll(of[subnet.V6].String(), "/", "-")
}

// recordPuts are the writes that set a record on an etcd lease, its own first.
func (s *Store) recordPuts(of subnet.Subnets, value string, on clientv3.LeaseID, opts ...clientv3.OpOption) []clientv3.Op {
	puts := []clientv3.Op{clientv3.OpPut(s.recordKey(of), value, append(opts, clientv3.WithLease(on))...)}
	if of[subnet.V6].IsValid() {
		puts = append(puts, clientv3.OpPut(s.sixMarkKey(of), of.Key(), clientv3.WithLease(on)))
	}
	return puts
}

// createWithMark makes a record that has an IPv6 subnet, where free holds and no
// other has that subnet. A mark whose record is gone is nobody's.
func (s *Store) createWithMark(ctx context.Context, of subnet.Subnets, free []clientv3.Cmp, puts []clientv3.Op) (*clientv3.TxnResponse, error) {
	// Read before the mark is: who wrote a record since has a mark.
	if held, err := s.holds(ctx, of); err != nil || held {
		return &clientv3.TxnResponse{}, err
	}
	mark := s.sixMarkKey(of)
	unmarked := append(free, clientv3.Compare(clientv3.CreateRevision(mark), "=", 0))
	resp, err := s.commit(ctx, unmarked, puts, clientv3.OpGet(mark))
	if err != nil || resp.Succeeded {
		return resp, err
	}
	marks := resp.Responses[0].GetResponseRange().Kvs
	if len(marks) == 0 { // So it was free that did not hold.
		return resp, nil
	}
	marker := s.recordsKey() + string(marks[0].Value)
	return s.commit(ctx, append(free,
		clientv3.Compare(clientv3.ModRevision(mark), "=", marks[0].ModRevision),
		clientv3.Compare(clientv3.CreateRevision(marker), "=", 0)), puts)
}

// holds tells whether any record's key holds a part of the given subnets. It
// reads keys alone, page by page, for what is written meanwhile is no matter.
func (s *Store) holds(ctx context.Context, of subnet.Subnets) (bool, error) {
	from, end := s.recordsKey(), clientv3.GetPrefixRangeEnd(s.recordsKey())
	for {
		kvs, more, err := s.nextPage(ctx, from, end, 0, clientv3.WithKeysOnly())
		if err != nil {
			return false, err
		}
		for _, kv := range kvs {
			if other, err := subnet.ParseKey(s.lastPart(kv.Key)); err == nil && other.Overlaps(of) {
				return true, nil
			}
		}
		if !more || len(kvs) == 0 {
			return false, nil
		}
		from = string(kvs[len(kvs)-1].Key) + "\x00"
	}
}
