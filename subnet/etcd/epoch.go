package etcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// An etcd that was wiped and started again under its name has the same cluster
// id. A client's watch on it hangs without an error until the new revision
// passes the old one, and then goes on mid-history. So a random epoch is kept in
// etcd, and looked at.

// checkEvery is how often etcd is asked whether it is the one it was, also while
// the connection stays. Answers to the watch's own questions are not to be
// trusted for that (etcd issue 15220), nor do they pass etcd's proxy.
const checkEvery = 30 * time.Second

// auditEvery is how often the watch begins anew with a listing for no reason at
// all: what nobody thought of is put right then.
const auditEvery = 4 * time.Hour

// jittered is a time around d.
func jittered(d time.Duration) time.Duration { return d - d/8 + mathrand.N(d/4+1) }

func (s *Store) epochKey() string { return s.opts.Prefix + "/ripstop/epoch" }

// epochOf names the life of a store that answers so; "" for a store that nobody
// has watched yet. An etcd that was put back from a backup has the old epoch,
// but as a rule another cluster id.
func epochOf(header *pb.ResponseHeader, kvs []*mvccpb.KeyValue) string {
	if len(kvs) == 0 {
		return ""
	}
	return fmt.Sprintf("%s@%x", kvs[0].Value, header.ClusterId)
}

// listEpoch lists, and gives the store an epoch before if it has none.
func (s *Store) listEpoch(ctx context.Context) (subnet.Listing, error) {
	l, err := s.List(ctx)
	if err != nil || l.Epoch != "" {
		return l, err
	}
	// Whoever is first wins.
	if _, err := s.commit(ctx,
		[]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(s.epochKey()), "=", 0)},
		clientv3.OpPut(s.epochKey(), rand.Text())); err != nil {
		return subnet.Listing{}, fmt.Errorf("write %s: %w", s.epochKey(), s.explain(ctx, err))
	}
	return s.List(ctx)
}

// errAnotherStore means that what answers cannot be taken for the store that
// was listed.
var errAnotherStore = errors.New("etcd is not the one it was")

// sameStore asks until it has an answer whether the store is the one that told
// of what was seen. It returns nil also where ctx ends.
func (s *Store) sameStore(ctx context.Context, seen *seen, out *outage) error {
	b := pauses(watchFirstWait, cheapMostWait)
	for {
		err := s.checkStore(ctx, seen.epoch, seen.revision.Load())
		switch {
		case err == nil, errors.Is(err, errAnotherStore):
			return err
		case ctx.Err() != nil:
			return nil
		case s.refusal(err) != "":
			return err
		}
		out.lost(func() error { return s.explain(ctx, err) })
		if !pause(ctx, b) {
			return nil
		}
	}
}

// checkStore asks once. It reads the epoch and the records that are held, none
// of which can have gone unnoticed while the watch works.
func (s *Store) checkStore(ctx context.Context, epoch string, revision int64) error {
	held := s.held.all()
	ask := []clientv3.Op{clientv3.OpGet(s.epochKey())}
	for _, h := range held {
		ask = append(ask, clientv3.OpGet(h.key, clientv3.WithKeysOnly()))
	}
	ctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.client.Txn(ctx).Then(ask...).Commit()
	if err != nil {
		return err
	}
	switch now := epochOf(resp.Header, resp.Responses[0].GetResponseRange().Kvs); {
	case now == "":
		return fmt.Errorf("%w: its epoch is gone", errAnotherStore)
	case now != epoch:
		return fmt.Errorf("%w: its epoch is another", errAnotherStore)
	case resp.Header.Revision < revision:
		return fmt.Errorf("%w: its revision went back from %d to %d", errAnotherStore, revision, resp.Header.Revision)
	}
	for i, h := range held {
		switch kvs := resp.Responses[i+1].GetResponseRange().Kvs; {
		case !s.held.has(h): // Hold knows already.
		case len(kvs) == 0:
			return fmt.Errorf("%w: this node's record %s is gone", errAnotherStore, s.lastPart([]byte(h.key)))
		case kvs[0].CreateRevision != h.created:
			return fmt.Errorf("%w: this node's record %s was made anew", errAnotherStore, s.lastPart([]byte(h.key)))
		}
	}
	return nil
}

// heldRecord is a record that a Hold is about.
type heldRecord struct {
	key     string
	created int64
}

// heldRecords are those of all Holds that run, and a bell that makes Hold and
// Stay look whether theirs is still there.
type heldRecords struct {
	mu     sync.Mutex
	counts map[heldRecord]int
	bell   chan struct{}
}

func newHeldRecords() *heldRecords {
	return &heldRecords{counts: map[heldRecord]int{}, bell: make(chan struct{})}
}

// add notes a record; the function that it returns takes it back.
func (h *heldRecords) add(r heldRecord) (remove func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[r]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.counts[r]--; h.counts[r] == 0 {
			delete(h.counts, r)
		}
	}
}

func (h *heldRecords) all() []heldRecord {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []heldRecord
	for r := range h.counts {
		out = append(out, r)
	}
	return out
}

func (h *heldRecords) has(r heldRecord) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[r] > 0
}

func (h *heldRecords) ring() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.bell)
	h.bell = make(chan struct{})
}

func (h *heldRecords) rings() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.bell
}
