package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// pageSize bounds the records in one answer: about half a megabyte.
const pageSize = 2000

// maxListTries bounds how often a listing starts anew because its revision was
// compacted while it was read.
const maxListTries = 5

// mostRoom bounds the leases for which there is room before they are read: as many
// as the largest network has. More is for what etcd truly sends.
const mostRoom = 1 << 16

// List reads config and leases at one revision, in pages. Where that revision
// is compacted before the last page, it begins again.
func (s *Store) List(ctx context.Context) (subnet.Listing, error) {
	for try := 1; ; try++ {
		l, err := s.listOnce(ctx)
		if err == nil {
			s.recent.keep(l)
			return l, nil
		}
		if !errors.Is(err, rpctypes.ErrCompacted) || try == maxListTries {
			return subnet.Listing{}, fmt.Errorf("list %s: %w", s.opts.Prefix, s.explain(ctx, err))
		}
	}
}

func (s *Store) listOnce(ctx context.Context) (subnet.Listing, error) {
	end := clientv3.GetPrefixRangeEnd(s.recordsKey())
	kvs, l, more, err := s.firstPage(ctx, end)
	for {
		if err != nil {
			return subnet.Listing{}, err
		}
		for _, kv := range kvs {
			s.read(kv, &l.Leases, &l.Bad)
		}
		if !more || len(kvs) == 0 {
			return l, nil
		}
		kvs, more, err = s.nextPage(ctx, string(kvs[len(kvs)-1].Key)+"\x00", end, l.Revision)
	}
}

// firstPage reads the config, the epoch and the first records in one
// transaction, whose revision is the listing's.
func (s *Store) firstPage(ctx context.Context, end string) (kvs []*mvccpb.KeyValue, l subnet.Listing, more bool, err error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.readAll(ctx,
		clientv3.OpGet(s.ConfigKey()),
		clientv3.OpGet(s.recordsKey(), clientv3.WithRange(end), clientv3.WithLimit(s.pageSize)),
		clientv3.OpGet(s.epochKey()),
	)
	if err != nil {
		return nil, l, false, err
	}
	l.Revision = resp.Header.Revision
	if cfg := resp.Responses[0].GetResponseRange(); len(cfg.Kvs) > 0 {
		l.Config = notNil(cfg.Kvs[0].Value)
	}
	l.Epoch = epochOf(resp.Header, resp.Responses[2].GetResponseRange().Kvs)
	page := resp.Responses[1].GetResponseRange()
	l.Leases = make([]subnet.Lease, 0, max(0, min(page.Count, mostRoom))) // The count is of all pages.
	return page.Kvs, l, page.More, nil
}

func (s *Store) nextPage(ctx context.Context, from, end string, rev int64, opts ...clientv3.OpOption) (kvs []*mvccpb.KeyValue, more bool, err error) {
	ctx, cancel := s.limited(ctx)
	defer cancel()
	opts = append(opts, clientv3.WithRange(end), clientv3.WithLimit(s.pageSize), clientv3.WithRev(rev))
	page, err := s.client.Get(ctx, from, opts...)
	if err != nil {
		return nil, false, err
	}
	return page.Kvs, page.More, nil
}

// recent is the last listing, from which a watch can begin: at a start the node
// has listed everything already to find its lease.
type recent struct {
	mu      sync.Mutex
	listing subnet.Listing
	at      time.Time
	// taken says that a watch has begun, and nothing need be kept any more.
	taken bool
}

// recentLasts is how old it may be.
const recentLasts = 5 * time.Second

func (r *recent) keep(l subnet.Listing) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.taken {
		r.listing, r.at = l, time.Now()
	}
}

// take gives the listing to the first who asks, and lets it go.
func (r *recent) take() (l subnet.Listing, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, r.listing, r.taken = r.listing, subnet.Listing{}, true
	return l, l.Epoch != "" && time.Since(r.at) < recentLasts
}

// read sorts a record into those that can be read and those that cannot.
func (s *Store) read(kv *mvccpb.KeyValue, leases *[]subnet.Lease, bad *[]subnet.BadRecord) {
	key := s.lastPart(kv.Key)
	l, err := subnet.ParseRecord(key, kv.Value)
	if err != nil {
		*bad = append(*bad, subnet.BadRecord{Key: key, Reason: err.Error()})
		return
	}
	l.ID, l.Created, l.Modified = kv.Lease, kv.CreateRevision, kv.ModRevision
	*leases = append(*leases, l)
}

// notNil makes an empty value different from none.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
