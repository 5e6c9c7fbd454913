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
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
		[]clientv3.Op{clientv3.OpPut(s.epochKey(), rand.Text())}); err != nil {
		return subnet.Listing{}, fmt.Errorf("write %s: %w", s.epochKey(), s.explain(ctx, err))
	}
	return s.List(ctx)
}

// errAnotherStore means that what answers cannot be taken for the store that
// was listed; errRecordLost that it can, but that this node's record is not what
// it was, of which the watch may have missed more.
var (
	errAnotherStore = errors.New("etcd is not the one it was")
	errRecordLost   = errors.New("this node's record is not the one it was")
)

// sameStore asks until it has an answer whether the store is the one that told
// of what was seen. It returns nil also where ctx ends.
func (s *Store) sameStore(ctx context.Context, seen *seen, out *outage) error {
	b := pauses(watchFirstWait, cheapMostWait)
	for {
		err := s.checkStore(ctx, seen)
		switch {
		case err == nil, errors.Is(err, errAnotherStore), errors.Is(err, errRecordLost):
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

// checkStore asks once. It reads the epoch, the record that was written last of
// those told, and the records that are held, none of which can have gone
// unnoticed while the watch works.
func (s *Store) checkStore(ctx context.Context, seen *seen) error {
	past, held := seen.get(), s.held.all()
	// Asked for keys alone, etcd 3.7 and later says nothing of leases.
	ask := []clientv3.Op{clientv3.OpGet(s.epochKey()), clientv3.OpGet(past.last().key(s))}
	for _, h := range held {
		ask = append(ask, clientv3.OpGet(h.key, clientv3.WithKeysOnly()))
	}
	rctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.readAll(rctx, ask...)
	if err != nil {
		return err
	}
	found := func(i int) []*mvccpb.KeyValue { return resp.Responses[i].GetResponseRange().Kvs }
	seen.hear(resp.Header)
	switch now := epochOf(resp.Header, found(0)); {
	case now == "":
		return fmt.Errorf("%w: its epoch is gone", errAnotherStore)
	case now != past.epoch:
		return fmt.Errorf("%w: its epoch is another", errAnotherStore)
	case resp.Header.Revision < past.highest:
		return fmt.Errorf("%w: its revision went back from %d to %d", errAnotherStore, past.highest, resp.Header.Revision)
	}
	lost := ""
	for i, h := range held {
		switch kvs := found(i + 2); {
		case !s.held.has(h): // Hold knows already.
		case len(kvs) == 0:
			lost = s.lastPart([]byte(h.key)) + " is gone"
		case kvs[0].CreateRevision != h.created:
			lost = s.lastPart([]byte(h.key)) + " was made anew"
		}
	}
	known, err := s.sameHistory(ctx, past.last(), found(1))
	switch {
	case err != nil:
		return err
	case lost != "" && !known:
		// The doubt costs little where it is wrong: peers that left are held for a while.
		return fmt.Errorf("%w, or nobody can tell: this node's record %s, and what led to it is compacted", errAnotherStore, lost)
	case lost != "":
		return fmt.Errorf("%w: %s", errRecordLost, lost)
	}
	return nil
}

// sameHistory tells whether the record that was written last of those told is in
// the store's history as it was told; known is false where etcd has compacted
// that. A store that was put back from a backup of before that write does not
// have it, whatever has been written to it since: etcd numbers its leases by the
// clock (idutil.Generator).
func (s *Store) sameHistory(ctx context.Context, last witness, now []*mvccpb.KeyValue) (known bool, err error) {
	if last == (witness{}) || last.isIn(now) {
		return last != witness{}, nil
	}
	// It has changed since, or it was never there.
	ctx, cancel := s.limited(ctx)
	defer cancel()
	then, err := s.client.Get(ctx, last.key(s), clientv3.WithRev(last.modified))
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return false, nil
	case err == nil && last.isIn(then.Kvs):
		return true, nil
	case err == nil, errors.Is(err, rpctypes.ErrFutureRev):
		return false, fmt.Errorf("%w: it has no record %s of revision %d", errAnotherStore, last.record, last.modified)
	}
	return false, err
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
