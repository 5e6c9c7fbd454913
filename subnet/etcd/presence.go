package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// presence is what stands under a living node's keys.
type presence struct {
	Token     string
	Node      string
	Addresses []netip.Addr
}

func (s *Store) nodeKey(node string) string { return s.opts.Prefix + "/ripstop/nodes/" + node }

func (s *Store) addressKey(a netip.Addr) string {
	return s.opts.Prefix + "/ripstop/addresses/" + a.String()
}

// presenceKeys are the node's keys: that of its name first.
func (s *Store) presenceKeys(n subnet.Living) []string {
	keys := []string{s.nodeKey(n.Node)}
	for _, a := range n.Addresses {
		if a.IsValid() {
			keys = append(keys, s.addressKey(a))
		}
	}
	return keys
}

func encodeLiving(n subnet.Living) (string, error) {
	p := presence{Token: n.Token, Node: n.Node}
	for _, a := range n.Addresses {
		if a.IsValid() {
			p.Addresses = append(p.Addresses, a)
		}
	}
	value, err := json.Marshal(p)
	return string(value), err
}

// decodeLiving reads a presence. One that cannot be read, or that is on no etcd
// lease and so would never lapse, is nobody's, and is overwritten.
func decodeLiving(kv *mvccpb.KeyValue) (subnet.Living, bool) {
	var p presence
	if err := json.Unmarshal(kv.Value, &p); err != nil || clientv3.LeaseID(kv.Lease) == clientv3.NoLease {
		return subnet.Living{}, false
	}
	n := subnet.Living{Token: p.Token, Node: p.Node}
	for _, a := range p.Addresses {
		if a.IsValid() {
			n.Addresses[subnet.FamilyOf(a)] = a
		}
	}
	return n, true
}

// appearTries bounds how often others may be faster at one of the keys.
const appearTries = 10

// Appear writes the node's keys on an etcd lease of their own; see
// [subnet.Presence].
func (s *Store) Appear(ctx context.Context, n subnet.Living) (int64, error) {
	err := subnet.ErrConflict
	for range appearTries {
		var id clientv3.LeaseID
		if id, err = s.appearOnce(ctx, n); err == nil {
			return int64(id), nil
		}
		if !errors.Is(err, subnet.ErrConflict) {
			break
		}
	}
	return 0, fmt.Errorf("make node %s known as living: %w", n.Node, s.explain(ctx, err))
}

func (s *Store) appearOnce(ctx context.Context, n subnet.Living) (clientv3.LeaseID, error) {
	value, err := encodeLiving(n)
	if err != nil {
		return 0, err
	}
	keys := s.presenceKeys(n)
	known, header, err := s.presences(ctx, keys)
	if err != nil {
		return 0, err
	}
	var unchanged []clientv3.Cmp
	old := map[clientv3.LeaseID]bool{}
	for i, kv := range known {
		if kv == nil {
			unchanged = append(unchanged, clientv3.Compare(clientv3.CreateRevision(keys[i]), "=", 0))
			continue
		}
		unchanged = append(unchanged, clientv3.Compare(clientv3.ModRevision(keys[i]), "=", kv.ModRevision))
		if first, ok := decodeLiving(kv); ok {
			var twin *subnet.TwinError
			if errors.As(n.Clash(first), &twin) {
				if twin.Lives, err = s.lives(ctx, keys[i], first.Token, clientv3.LeaseID(kv.Lease), header); err != nil {
					return 0, err
				}
				return 0, twin
			}
			old[clientv3.LeaseID(kv.Lease)] = first.Token == n.Token
		}
	}
	id, err := s.appear(ctx, unchanged, keys, value)
	if err != nil {
		return 0, err
	}
	// What an earlier run of this node left has nothing on it any more but, at
	// most, an address that the node no longer has.
	for lease, own := range old {
		if own && lease != clientv3.NoLease {
			s.revoke(ctx, lease)
		}
	}
	return id, nil
}

// Known reads the node's keys; see [subnet.Presence].
func (s *Store) Known(ctx context.Context, n subnet.Living) (known subnet.Living, ok bool, err error) {
	kvs, _, err := s.presences(ctx, s.presenceKeys(n))
	if err != nil {
		return known, false, fmt.Errorf("read who lives as node %s: %w", n.Node, s.explain(ctx, err))
	}
	for _, kv := range kvs {
		if kv == nil {
			continue
		}
		if first, readable := decodeLiving(kv); readable && (!ok || known.Token == n.Token) {
			known, ok = first, true
		}
	}
	return known, ok, nil
}

// mostNames bounds how many names one request asks for: etcd refuses transactions of more
// than 128 operations unless it is told otherwise (--max-txn-ops).
const mostNames = 100

// Alive tells which of the nodes of those names are known as living, by as few requests
// as there can be.
func (s *Store) Alive(ctx context.Context, nodes []string) (map[string]bool, error) {
	alive := make(map[string]bool, len(nodes))
	for some := range slices.Chunk(nodes, mostNames) {
		keys := make([]string, len(some))
		for i, node := range some {
			keys[i] = s.nodeKey(node)
		}
		kvs, _, err := s.presences(ctx, keys)
		if err != nil {
			return nil, fmt.Errorf("read who lives: %w", s.explain(ctx, err))
		}
		for i, kv := range kvs {
			if kv != nil {
				_, alive[some[i]] = decodeLiving(kv)
			}
		}
	}
	return alive, nil
}

// presences reads the keys at one revision, nil for one that is not there.
func (s *Store) presences(ctx context.Context, keys []string) ([]*mvccpb.KeyValue, *pb.ResponseHeader, error) {
	var ask []clientv3.Op
	for _, key := range keys {
		ask = append(ask, clientv3.OpGet(key))
	}
	ctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.readAll(ctx, ask...)
	if err != nil {
		return nil, nil, err
	}
	out := make([]*mvccpb.KeyValue, len(keys))
	for i := range keys {
		if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			out[i] = kvs[0]
		}
	}
	return out, resp.Header, nil
}

// appear writes all keys or none.
func (s *Store) appear(ctx context.Context, when []clientv3.Cmp, keys []string, value string) (clientv3.LeaseID, error) {
	rctx, cancel := s.limited(ctx)
	defer cancel()
	lease, err := s.client.Grant(rctx, wholeSeconds(s.presenceTTL))
	if err != nil {
		return 0, err
	}
	var puts []clientv3.Op
	for _, key := range keys {
		puts = append(puts, clientv3.OpPut(key, value, clientv3.WithLease(lease.ID)))
	}
	resp, err := s.client.Txn(rctx).If(when...).Then(puts...).Commit()
	if err == nil && !resp.Succeeded {
		err = subnet.ErrConflict
	}
	if err != nil {
		s.revoke(ctx, lease.ID)
		return 0, err
	}
	return lease.ID, nil
}

// Stay renews the etcd lease on which the node's keys are; see
// [subnet.Presence]. Watch speaks of an etcd that is away.
func (s *Store) Stay(ctx context.Context, id int64) error {
	b := pauses(holdFirstWait, cheapMostWait)
	for ctx.Err() == nil {
		bell := s.held.rings()
		rctx, cancel := s.limited(ctx)
		granted, err := s.keepAlive(rctx, clientv3.LeaseID(id))
		cancel()
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return fmt.Errorf("stay known as living: %w", subnet.ErrLeaseLost)
		}
		if err != nil {
			pause(ctx, b)
			continue
		}
		b.Reset()
		s.awaitRenewal(ctx, bell, jittered(time.Duration(granted)*time.Second/4))
	}
	return nil
}

// awaitRenewal returns when it is time for another sign of life: after the usual
// pause, or as soon as what was given may be forgotten, for then a twin must not
// be faster.
func (s *Store) awaitRenewal(ctx context.Context, bell <-chan struct{}, usual time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, usual)
	back := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		if s.awaitLoss(ctx) && s.awaitReturn(ctx, func() {}) {
			close(back)
		}
	})
	select {
	case <-ctx.Done():
	case <-bell: // Another store answers, which knows of nobody.
	case <-back:
	}
}
