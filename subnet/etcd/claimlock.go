package etcd

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// Limits on the lock that claimants of IPv6 subnets take: how long it outlives one
// that died with it, how long another waits for it, and the pauses meanwhile.
const (
	claimLockTTL     = 10 * time.Second
	claimLockTimeout = 30 * time.Second
	claimFirstWait   = 10 * time.Millisecond
	claimMostWait    = 250 * time.Millisecond
)

// errClaimLock means that others claimed, one after another, for all that time.
var errClaimLock = errors.New("other nodes have been claiming for 30 s without a pause")

// createInTurn makes a record with an IPv6 subnet. Its key begins with the IPv4
// subnet, or says that there is none, and nothing that etcd could compare says of
// an IPv6 subnet alone that it is free. So claimants of these take turns: under
// a lock one sees that no record overlaps, and writes on condition that the lock
// is still its own. (The client's own Mutex is not used: cancelled, it waits
// without a limit.)
func (s *Store) createInTurn(ctx context.Context, l subnet.Lease, free []clientv3.Cmp, put clientv3.Op) (*clientv3.TxnResponse, error) {
	mine, unlock, err := s.lockClaim(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	seen, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	if seen.Holds(l.Subnets) {
		return nil, subnet.ErrConflict
	}
	return s.commit(ctx, append(free, mine), put)
}

// lockClaim waits for the lock and returns the comparison that tells whether it
// is still held.
func (s *Store) lockClaim(ctx context.Context) (mine clientv3.Cmp, unlock func(), err error) {
	wait := pauses(claimFirstWait, claimMostWait)
	for since := time.Now(); ; {
		// A look costs less than a try, which all members must agree on.
		free, err := s.absent(ctx, s.claimLockKey())
		if err == nil && free {
			mine, unlock, err = s.tryLockClaim(ctx)
		}
		switch {
		case err != nil || unlock != nil:
			return mine, unlock, err
		case time.Since(since) > claimLockTimeout:
			return mine, nil, errClaimLock
		case !pause(ctx, wait):
			return mine, nil, ctx.Err()
		}
	}
}

func (s *Store) claimLockKey() string { return s.opts.Prefix + "/ripstop/claim" }

// tryLockClaim returns no unlock where another was faster.
func (s *Store) tryLockClaim(ctx context.Context) (mine clientv3.Cmp, unlock func(), err error) {
	lease, _, err := s.grant(ctx, claimLockTTL)
	if err != nil {
		return mine, nil, err
	}
	unlock = func() { s.revoke(ctx, lease) } // The key goes with its lease.
	key := s.claimLockKey()
	resp, err := s.commit(ctx, []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
		clientv3.OpPut(key, "", clientv3.WithLease(lease)))
	if err != nil || !resp.Succeeded {
		unlock()
		return mine, nil, err
	}
	return clientv3.Compare(clientv3.CreateRevision(key), "=", resp.Header.Revision), unlock, nil
}

// absent tells whether a key is not there.
func (s *Store) absent(ctx context.Context, key string) (bool, error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.client.Get(ctx, key, clientv3.WithCountOnly())
	return err == nil && resp.Count == 0, err
}
