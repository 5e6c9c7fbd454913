package etcd

import (
	"context"
	"errors"
	"fmt"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// releaseTries bounds how often the record may be rewritten in between.
const releaseTries = 10

// Release deletes the record and revokes the etcd lease that it was on; see
// [subnet.Releaser].
func (s *Store) Release(ctx context.Context, l subnet.Lease) error {
	err := subnet.ErrReserved
	if !l.Reservation() {
		for range releaseTries {
			if err = s.releaseOnce(ctx, l); !errors.Is(err, errLookAgain) {
				break
			}
		}
	}
	if err != nil {
		return fmt.Errorf("release %s: %w", l.Subnets.Key(), s.explain(ctx, err))
	}
	return nil
}

func (s *Store) releaseOnce(ctx context.Context, l subnet.Lease) error {
	h := holder{s: s, key: s.recordKey(l.Subnets), node: l.Node, own: map[clientv3.LeaseID]bool{clientv3.LeaseID(l.ID): true}}
	kv, err := h.get(ctx)
	if err != nil || kv == nil {
		return err
	}
	if err := h.judge(kv); err != nil {
		return fmt.Errorf("%w: %w", subnet.ErrConflict, err)
	}
	resp, err := s.commit(ctx, []clientv3.Cmp{
		clientv3.Compare(clientv3.ModRevision(h.key), "=", kv.ModRevision),
	}, []clientv3.Op{clientv3.OpDelete(h.key)})
	switch {
	case err != nil:
		return err
	case !resp.Succeeded:
		return errLookAgain
	}
	s.revoke(ctx, clientv3.LeaseID(l.ID)) // Nothing is on it any more: else it runs out.
	return nil
}
