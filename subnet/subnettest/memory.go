package subnettest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// Memory is a [subnet.Store] in memory, for tests. It behaves as the store on
// etcd does, seen from outside; what time does there, a call does here. All its
// clients share the one value.
type Memory struct {
	mu       sync.Mutex
	revision int64
	epoch    int
	config   []byte
	records  map[string]record
	living   map[int64]*living
	sighted  map[string]sighting // By the token of who was refused.
	lease    int64               // the last that was granted
	away     bool
	outage   subnet.Outage
	refuses  bool
	readOnly bool // It refuses to write.
	watches  map[*watch]struct{}
	sign     time.Duration
	renew    time.Duration
	// changed is closed, and made anew, whenever anything here is another.
	changed chan struct{}
}

type record struct {
	value             []byte
	lease             int64
	created, modified int64
}

// watch is what one call of Watch has yet to deliver.
type watch struct {
	// told says that it has told of something.
	relist, different, told bool
	queue                   []subnet.Change
}

var (
	_ subnet.Store    = (*Memory)(nil)
	_ subnet.Presence = (*Memory)(nil)
	_ subnet.Reporter = (*Memory)(nil)
	_ subnet.Releaser = (*Memory)(nil)
)

// errAway is what calls return while the store is away.
var errAway = errors.New("store is away")

// NewMemory returns an empty store. Its revision is 1, as a new etcd's.
func NewMemory() *Memory {
	return &Memory{
		revision: 1, epoch: 1, records: map[string]record{}, living: map[int64]*living{}, sighted: map[string]sighting{},
		watches: map[*watch]struct{}{}, sign: 30 * time.Second, renew: subnet.PresenceTTL / 4, changed: make(chan struct{}),
	}
}

// List reads everything at the revision of now.
func (m *Memory) List(ctx context.Context) (subnet.Listing, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(ctx); err != nil {
		return subnet.Listing{}, fmt.Errorf("list: %w", err)
	}
	return m.list(), nil
}

// holds tells whether any record's key holds a part of the given subnets, whether
// its value can be read or not.
func (m *Memory) holds(of subnet.Subnets) bool {
	for key := range m.records {
		if other, err := subnet.ParseKey(key); err == nil && other.Overlaps(of) {
			return true
		}
	}
	return false
}

// check tells why a call cannot be answered.
func (m *Memory) check(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case m.away:
		return errAway
	case m.refuses:
		return subnet.ErrRefused
	}
	return nil
}

// checkWrite is check for what writes.
func (m *Memory) checkWrite(ctx context.Context) error {
	if err := m.check(ctx); err != nil {
		return err
	}
	if m.readOnly {
		return subnet.ErrRefused
	}
	return nil
}

func (m *Memory) list() subnet.Listing {
	l := subnet.Listing{Revision: m.revision, Epoch: fmt.Sprint("epoch ", m.epoch), Config: slices.Clone(m.config)}
	for _, key := range slices.Sorted(maps.Keys(m.records)) {
		m.records[key].read(key, &l.Leases, &l.Bad)
	}
	return l
}

func (r record) read(key string, leases *[]subnet.Lease, bad *[]subnet.BadRecord) {
	l, err := subnet.ParseRecord(key, r.value)
	if err != nil {
		*bad = append(*bad, subnet.BadRecord{Key: key, Reason: err.Error()})
		return
	}
	l.ID, l.Created, l.Modified = r.lease, r.created, r.modified
	*leases = append(*leases, l)
}

// Write creates or rewrites a record.
func (m *Memory) Write(ctx context.Context, l subnet.Lease) (subnet.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := l.Subnets.Key()
	err := m.checkWrite(ctx)
	old, there := m.records[key]
	switch {
	case err != nil:
	case l.Modified == 0 && m.holds(l.Subnets),
		l.Modified != 0 && (!there || old.modified != l.Modified || old.lease != l.ID):
		err = subnet.ErrConflict
	}
	if err != nil {
		return subnet.Lease{}, fmt.Errorf("write %s: %w", key, err)
	}
	if l.Modified == 0 {
		m.lease++
		l.ID = m.lease
	}
	m.put(key, l.Record(), l.ID)
	l.Created, l.Modified = m.records[key].created, m.revision
	return l, nil
}

// put sets a record at a new revision and tells the watches.
func (m *Memory) put(key string, value []byte, lease int64) {
	m.revision++
	r := record{value: slices.Clone(value), lease: lease, created: m.revision, modified: m.revision}
	if old, ok := m.records[key]; ok {
		r.created = old.created
	}
	m.records[key] = r
	c := subnet.Change{}
	r.read(key, &c.Leases, &c.Bad)
	m.tell(c)
}

func (m *Memory) remove(keys ...string) {
	if len(keys) == 0 {
		return
	}
	m.revision++
	for _, key := range keys {
		delete(m.records, key)
	}
	m.tell(subnet.Change{Gone: keys})
}

func (m *Memory) tell(c subnet.Change) {
	c.Revision = m.revision
	for w := range m.watches {
		if !w.relist {
			w.queue = append(w.queue, c)
		}
	}
	m.broadcast()
}

func (m *Memory) broadcast() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// Hold waits until ctx ends or the record is another's or gone. It says once
// that the record is kept for a day.
func (m *Memory) Hold(ctx context.Context, l subnet.Lease, alive func(until time.Time)) error {
	key := l.Subnets.Key()
	renew := alive != nil && !l.Reservation()
	for {
		m.mu.Lock()
		r, there := m.records[key]
		away, changed := m.away, m.changed
		m.mu.Unlock()
		if ctx.Err() != nil {
			return nil
		}
		if !away && (!there || !r.heldBy(key, l)) {
			return fmt.Errorf("hold %s: %w", key, subnet.ErrLeaseLost)
		}
		if !away && renew {
			renew = false
			alive(time.Now().Add(subnet.DefaultLeaseTTL))
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
}

// heldBy tells whether a record is still that of the lease's holder.
func (r record) heldBy(key string, l subnet.Lease) bool {
	now, err := subnet.ParseRecord(key, r.value)
	return err == nil && r.lease == l.ID && now.Node == l.Node
}

// Watch gives everything, then every change. While the store is away it stalls.
func (m *Memory) Watch(ctx context.Context, to func(subnet.Change)) error {
	w := &watch{relist: true}
	m.mu.Lock()
	m.watches[w] = struct{}{}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watches, w)
	}()
	m.mu.Lock()
	sign := time.NewTicker(m.sign)
	m.mu.Unlock()
	defer sign.Stop()
	for ctx.Err() == nil {
		m.mu.Lock()
		next, changed := m.next(w)
		quiet := subnet.Change{Revision: m.revision}
		away := m.away
		m.mu.Unlock()
		if next != nil {
			to(*next)
			continue
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-sign.C:
			if !away {
				to(quiet)
			}
		}
	}
	return nil
}

// next takes what a watch is to deliver now, nil for nothing.
func (m *Memory) next(w *watch) (c *subnet.Change, changed <-chan struct{}) {
	switch {
	case m.away:
	case w.relist && m.refuses:
	case w.relist:
		whole := m.list().Whole()
		whole.Different = w.different
		*w = watch{told: true}
		return &whole, nil
	case len(w.queue) > 0:
		first := w.queue[0]
		w.queue = w.queue[1:]
		return &first, nil
	}
	return nil, m.changed
}

// Put writes a raw record as another's hand does, on a lease of its own or on none.
func (m *Memory) Put(key string, value []byte, leased bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var lease int64
	if leased {
		m.lease++
		lease = m.lease
	}
	m.put(key, value, lease)
}

// Delete removes a record as another's hand does, if it is there.
func (m *Memory) Delete(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.records[key]; ok {
		m.remove(key)
	}
}

// Expire ends the lease that a record is on, and so the record. A reservation
// has none and stays.
func (m *Memory) Expire(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	lease := m.records[key].lease
	if lease == 0 {
		return
	}
	var gone []string
	for k, r := range m.records {
		if r.lease == lease {
			gone = append(gone, k)
		}
	}
	slices.Sort(gone)
	m.remove(gone...)
}

// SetConfig writes the network's config; nil deletes it.
func (m *Memory) SetConfig(value []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if value == nil && m.config == nil {
		return
	}
	m.revision++
	m.config = slices.Clone(value)
	m.tell(subnet.Change{ConfigSet: true, Config: slices.Clone(value)})
}

// Record returns a record's value.
func (m *Memory) Record(key string) (value []byte, there bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, there := m.records[key]
	return slices.Clone(r.value), there
}

// Away makes the store go away or come back: while it is away calls fail, and
// watches and holds stall. What happens meanwhile is told afterwards.
func (m *Memory) Away(away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if away && !m.away {
		m.outage = subnet.Outage{Since: time.Now(), Reason: errAway.Error(), Failures: 1, Count: m.outage.Count + 1}
	}
	m.away = away
	m.broadcast()
}

// Refuse makes calls fail with [subnet.ErrRefused], or ends that. A watch that
// has its listing goes on, and so does what keeps a lease alive: for that no right is
// asked.
func (m *Memory) Refuse(refuse bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.refuses = refuse
	m.broadcast()
}

// RefuseWrites makes Write and Appear alone fail with [subnet.ErrRefused], or ends that.
func (m *Memory) RefuseWrites(refuse bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.readOnly = refuse
	m.broadcast()
}

// Compact forgets the past: each watch gets a whole listing in place of what it
// has yet to deliver.
func (m *Memory) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for w := range m.watches {
		w.relist, w.queue = true, nil
	}
	m.broadcast()
}

// NewEpoch makes the store another one with the same in it.
func (m *Memory) NewEpoch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.newEpoch()
}

func (m *Memory) newEpoch() {
	m.epoch++
	for w := range m.watches {
		// A watch that has told of nothing yet knows of no other store.
		*w = watch{relist: true, different: w.told, told: w.told}
	}
	m.broadcast()
}

// Wipe makes the store another one with nothing in it, at revision 1.
func (m *Memory) Wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision, m.config = 1, nil
	clear(m.records)
	clear(m.living)
	m.newEpoch()
}

// Sign sets how often a watch that begins from now on is told that the store
// is there; it is 30 s at first.
func (m *Memory) Sign(every time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sign = every
}
