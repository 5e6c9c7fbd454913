package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// store writes peers' records to the lab's etcd in the way of a client that has
// many to write.
type store struct {
	client *clientv3.Client
	// lease is etcd's, on which all records hang.
	lease clientv3.LeaseID
}

const (
	recordsKey = lab.Prefix + "/subnets/"
	// perWrite is the number of records in one transaction; etcd takes 128.
	perWrite = 100
	// writers is how many write at once in a burst.
	writers = 64
	// perRead is the number of records in one page of a listing.
	perRead = 2000
	// leaseSeconds outlasts every run.
	leaseSeconds = 24 * 60 * 60
)

// openStore connects from etcd's own namespace.
func openStore(ctx context.Context, l *lab.Lab) (*store, error) {
	dial := func(ctx context.Context, target string) (conn net.Conn, err error) {
		err = l.EtcdNamespace().Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", target)
			return err
		})
		return conn, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{l.EtcdURL()}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial)},
	})
	if err != nil {
		return nil, fmt.Errorf("make etcd client: %w", err)
	}
	lease, err := client.Grant(ctx, leaseSeconds)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("grant a lease: %w", err), client.Close())
	}
	return &store{client: client, lease: lease.ID}, nil
}

func (s *store) close() error { return s.client.Close() }

func (s *store) put(l subnet.Lease) clientv3.Op {
	return clientv3.OpPut(recordsKey+l.Subnets.Key(), string(l.Record()), clientv3.WithLease(s.lease))
}

func (s *store) remove(l subnet.Lease) clientv3.Op {
	return clientv3.OpDelete(recordsKey + l.Subnets.Key())
}

// each carries out one op for each lease as so many nodes would: each is a
// revision of its own, and many are under way at once.
func (s *store) each(ctx context.Context, leases []subnet.Lease, op func(subnet.Lease) clientv3.Op) error {
	g, ctx := errgroup.WithContext(ctx)
	for part := range slices.Chunk(leases, (len(leases)+writers-1)/writers) {
		g.Go(func() error {
			for _, l := range part {
				if _, err := s.client.Do(ctx, op(l)); err != nil {
					return fmt.Errorf("write a record: %w", err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// do carries out one op for each lease, as fast as etcd takes them, and returns
// the last revision.
func (s *store) do(ctx context.Context, leases []subnet.Lease, op func(subnet.Lease) clientv3.Op) (revision int64, err error) {
	for len(leases) > 0 {
		n := min(len(leases), perWrite)
		ops := make([]clientv3.Op, 0, n)
		for _, l := range leases[:n] {
			ops = append(ops, op(l))
		}
		resp, err := s.client.Txn(ctx).Then(ops...).Commit()
		if err != nil {
			return 0, fmt.Errorf("write records: %w", err)
		}
		revision, leases = resp.Header.Revision, leases[n:]
	}
	return revision, nil
}

// list reads all records at one revision, page by page, and does nothing with
// them. It returns their number and how long that took.
func (s *store) list(ctx context.Context) (records int, took time.Duration, err error) {
	began := time.Now()
	from, end, revision := recordsKey, clientv3.GetPrefixRangeEnd(recordsKey), int64(0)
	for {
		page, err := s.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(perRead), clientv3.WithRev(revision))
		if err != nil {
			return 0, 0, fmt.Errorf("list records: %w", err)
		}
		records += len(page.Kvs)
		if !page.More {
			return records, time.Since(began), nil
		}
		from, revision = string(page.Kvs[len(page.Kvs)-1].Key)+"\x00", page.Header.Revision
	}
}

// forget removes all that etcd knows of a node that has stopped.
func (s *store) forget(ctx context.Context, own subnet.Subnets) error {
	_, err := s.client.Txn(ctx).Then(
		s.remove(subnet.Lease{Subnets: own}),
		clientv3.OpDelete(lab.Prefix+"/ripstop/nodes/", clientv3.WithPrefix()),
		clientv3.OpDelete(lab.Prefix+"/ripstop/addresses/", clientv3.WithPrefix()),
	).Commit()
	if err != nil {
		return fmt.Errorf("remove the node's records: %w", err)
	}
	return nil
}

// compact forgets the history, so that one size's runs do not slow the next's.
func (s *store) compact(ctx context.Context, revision int64) error {
	if _, err := s.client.Compact(ctx, revision, clientv3.WithCompactPhysical()); err != nil {
		return fmt.Errorf("compact etcd: %w", err)
	}
	return nil
}

// watch hands each event's revision and the time at which it came to seen until
// ctx ends.
func (s *store) watch(ctx context.Context, seen func(revision int64, at time.Time)) {
	for resp := range s.client.Watch(ctx, recordsKey, clientv3.WithPrefix()) {
		at := time.Now()
		for _, e := range resp.Events {
			seen(e.Kv.ModRevision, at)
		}
	}
}
