package etcd

import (
	"bytes"
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// What is read where etcd has compacted away what a watch was to go on from.

// readMissed reads the records that were written since the last that was told, where
// their watch was compacted away: to a network in which nothing happens that comes with
// each loss of the connection, at all nodes at once, and all would list all records. The
// store is asked how many there are, and for those that are later than the last one that
// was told. Where that one is there as it was, and there are as many as were told of and
// as are new, none has gone. Else the error is ErrCompacted, and nothing but a listing
// tells what was missed.
func (s *Store) readMissed(ctx context.Context, seen *seen) (c subnet.Change, err error) {
	past := seen.get()
	last := past.last()
	ctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.readAll(ctx,
		clientv3.OpGet(s.epochKey()),
		clientv3.OpGet(last.key(s)),
		clientv3.OpGet(s.recordsKey(), clientv3.WithPrefix(), clientv3.WithCountOnly()),
		clientv3.OpGet(s.recordsKey(), clientv3.WithPrefix(), clientv3.WithMinModRev(last.modified+1), clientv3.WithLimit(s.pageSize)),
	)
	if err != nil {
		return c, err
	}
	found := func(i int) *clientv3.GetResponse {
		return (*clientv3.GetResponse)(resp.Responses[i].GetResponseRange())
	}
	epoch, written := epochOf(resp.Header, found(0).Kvs), found(3)
	came := 0
	for _, kv := range written.Kvs {
		if kv.CreateRevision > past.told { // Others were told of and can't be read.
			came++
		}
	}
	switch {
	case last == (witness{}), !last.isIn(found(1).Kvs), epoch != past.epoch, resp.Header.Revision < past.highest,
		written.More, found(2).Count != int64(past.records+came):
		return c, rpctypes.ErrCompacted
	}
	c.Revision = resp.Header.Revision
	for _, kv := range written.Kvs {
		s.read(kv, &c.Leases, &c.Bad)
	}
	seen.add(came)
	return c, nil
}

// readConfig reads the config, and tells as of which revision, where its watch was
// compacted away. To a config that nobody changes that happens at each loss of the
// connection, for a watch resumes after the last event that it has brought; it says
// nothing of the records, whose listing is dear.
func (s *Store) readConfig(ctx context.Context, seen *seen) (config []byte, revision int64, err error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.readAll(ctx, clientv3.OpGet(s.ConfigKey()), clientv3.OpGet(s.epochKey()))
	if err != nil {
		return nil, 0, err
	}
	found := func(i int) []*mvccpb.KeyValue { return resp.Responses[i].GetResponseRange().Kvs }
	if epochOf(resp.Header, found(1)) != seen.get().epoch {
		return nil, 0, fmt.Errorf("%w: its epoch is another", errAnotherStore)
	}
	if kvs := found(0); len(kvs) > 0 {
		config = notNil(kvs[0].Value)
	}
	return config, resp.Header.Revision, nil
}

// sameConfig tells an empty config from none, too.
func sameConfig(a, b []byte) bool { return (a == nil) == (b == nil) && bytes.Equal(a, b) }
