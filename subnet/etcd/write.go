package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// Write sets a lease's record if it is still at revision l.Modified, and still
// on the etcd lease l.ID where it is to be rewritten. See [subnet.Store].
func (s *Store) Write(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	var err error
	if l.Modified == 0 {
		l, err = s.create(ctx, l)
	} else {
		l, err = s.rewrite(ctx, l)
	}
	if err != nil {
		return subnet.Lease{}, fmt.Errorf("write %s: %w", l.Subnets.Key(), s.explain(ctx, err))
	}
	return l, nil
}

// create makes the record on a fresh etcd lease.
func (s *Store) create(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	id, _, err := s.grant(ctx, s.opts.LeaseTTL)
	if err != nil {
		return l, err
	}
	key := s.recordKey(l.Subnets)
	free := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)}
	if l.Subnets[subnet.V4].IsValid() {
		// A record of both families begins with the IPv4 subnet too.
		four, _, _ := strings.Cut(key, "&")
		free = append(free, clientv3.Compare(clientv3.CreateRevision(four), "=", 0).WithPrefix())
	}
	puts := s.recordPuts(l.Subnets, string(l.Record()), id)
	var resp *clientv3.TxnResponse
	if l.Subnets[subnet.V6].IsValid() {
		resp, err = s.createWithMark(ctx, l.Subnets, free, puts)
	} else {
		resp, err = s.commit(ctx, free, puts)
	}
	if err == nil && !resp.Succeeded {
		err = subnet.ErrConflict
	}
	if err != nil {
		// After a timeout nobody knows whether the record was made. Its lease
		// goes, and so the record with it, or before it.
		s.revoke(ctx, id)
		return l, err
	}
	l.ID, l.Created, l.Modified = int64(id), resp.Header.Revision, resp.Header.Revision
	return l, nil
}

// rewrite sets the record where it is. One whose etcd lease has ended without it
// gets a fresh one: nobody could renew it, and nothing would ever end it.
func (s *Store) rewrite(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	got, err := s.put(ctx, l, clientv3.LeaseID(l.ID))
	if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return got, err
	}
	id, _, err := s.grant(ctx, s.opts.LeaseTTL)
	if err != nil {
		return l, err
	}
	if got, err = s.put(ctx, l, id); err != nil {
		s.revoke(ctx, id)
	}
	return got, err
}

// put sets the record on an etcd lease if it is still at revision l.Modified and
// on the lease l.ID. etcd looks whether the lease is there only where it writes.
func (s *Store) put(ctx context.Context, l subnet.Lease, on clientv3.LeaseID) (subnet.Lease, error) {
	key := s.recordKey(l.Subnets)
	ctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.client.Txn(ctx).If(
		clientv3.Compare(clientv3.ModRevision(key), "=", l.Modified),
		// A wrong ID must not move a record to another lease, nor off its own.
		clientv3.Compare(clientv3.LeaseValue(key), "=", l.ID),
	).Then(s.recordPuts(l.Subnets, string(l.Record()), on, clientv3.WithPrevKV())...).Commit()
	switch {
	case err != nil:
		return l, err
	case !resp.Succeeded:
		return l, subnet.ErrConflict
	}
	if prev := resp.Responses[0].GetResponsePut().GetPrevKv(); prev != nil {
		l.Created = prev.CreateRevision
	}
	l.ID, l.Modified = int64(on), resp.Header.Revision
	return l, nil
}

// grant makes an etcd lease and returns the time that it was granted, in seconds.
func (s *Store) grant(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, int64, error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.client.Grant(ctx, wholeSeconds(ttl))
	if err != nil {
		return 0, 0, err
	}
	return resp.ID, resp.TTL, nil
}

// Limits on a revocation. It is short, for the caller has its answer already,
// and shorter where the caller is to end.
const (
	revokeTimeout = 2 * time.Second
	revokeLast    = 200 * time.Millisecond
)

// revoke ends an etcd lease as well as it can, even after ctx has ended. What
// it cannot end runs out by itself.
func (s *Store) revoke(ctx context.Context, id clientv3.LeaseID) {
	limit := revokeTimeout
	if ctx.Err() != nil {
		limit = revokeLast
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(limit, s.opts.RequestTimeout))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(revokeLast, cancel) })()
	_, _ = s.client.Revoke(limited, id)
}

func (s *Store) commit(ctx context.Context, when []clientv3.Cmp, then []clientv3.Op, otherwise ...clientv3.Op) (*clientv3.TxnResponse, error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	return s.client.Txn(ctx).If(when...).Then(then...).Else(otherwise...).Commit()
}

// Config reads the network's config as written and the revision of its last
// change; nil and 0 where there is none.
func (s *Store) Config(ctx context.Context) (value []byte, modified int64, err error) {
	rctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.client.Get(rctx, s.ConfigKey())
	if err != nil {
		return nil, 0, fmt.Errorf("read %s: %w", s.ConfigKey(), s.explain(ctx, err))
	}
	if len(resp.Kvs) == 0 {
		return nil, 0, nil
	}
	return notNil(resp.Kvs[0].Value), resp.Kvs[0].ModRevision, nil
}

// SetConfig writes the network's config if it is still at the revision that
// [Store.Config] gave, 0 for none. Otherwise it returns [subnet.ErrConflict]
// and changes nothing. It does not check the value.
func (s *Store) SetConfig(ctx context.Context, value []byte, modified int64) error {
	resp, err := s.commit(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(s.ConfigKey()), "=", modified)},
		[]clientv3.Op{clientv3.OpPut(s.ConfigKey(), string(value))})
	if err == nil && !resp.Succeeded {
		err = subnet.ErrConflict
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", s.ConfigKey(), s.explain(ctx, err))
	}
	return nil
}
