package etcd

import (
	"cmp"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// seen is what a watch has seen of the store, which tells whether another store
// answers now.
type seen struct {
	mu sync.Mutex
	past
	// doubted says that the next listing may be another store's.
	doubted bool
}

// past is what was seen of a store.
type past struct {
	// epoch is that of the last listing, "" before the first.
	epoch string
	// told is the revision up to which all changes of records have been told,
	// highest the largest one that any answer bore.
	told, highest int64
	// living are, of the records that are there as far as was told, those that
	// were written last, in that order. Of more than the last one there need be
	// as many as go before another comes.
	living []witness
	// records is how many there are of those told of, with those that can't be read.
	records int
}

// mostWitnesses bounds the memory.
const mostWitnesses = 16

// witness is one write of a record; the zero witness is none. The record's last
// part identifies it.
type witness struct {
	record          string
	lease, modified int64
}

// last is the record that was written last of those that are there. A store
// that has it has all the others too.
func (p past) last() witness {
	if len(p.living) == 0 {
		return witness{}
	}
	return p.living[len(p.living)-1]
}

// key is the record's key; that of the epoch, which does no harm, for none.
func (w witness) key(s *Store) string {
	if w == (witness{}) {
		return s.epochKey()
	}
	return s.recordsKey() + w.record
}

// isIn tells whether that write is what was found.
func (w witness) isIn(found []*mvccpb.KeyValue) bool {
	return len(found) == 1 && found[0].ModRevision == w.modified && found[0].Lease == w.lease
}

func (s *seen) get() past {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.past
	p.living = slices.Clone(p.living)
	return p
}

// hear notes an answer. Its revision says how far the store is, not what of that
// was told.
func (s *seen) hear(h *pb.ResponseHeader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.highest = max(s.highest, h.GetRevision())
}

// doubt says that the next listing may be another store's.
func (s *seen) doubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doubted = true
}

// list notes a listing, and tells whether it is another store's than what was
// seen before.
func (s *seen) list(l subnet.Listing) (different bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	different = s.doubted || s.epoch != "" && (l.Epoch != s.epoch || l.Revision < s.highest)
	s.past, s.doubted = past{epoch: l.Epoch, told: l.Revision, highest: l.Revision, records: len(l.Leases) + len(l.Bad)}, false
	s.note(l.Leases)
	return different
}

// count notes how many records come and go with an answer to their watch.
func (s *seen) count(events []*clientv3.Event) {
	for _, e := range events {
		switch {
		case e.Type == mvccpb.DELETE:
			s.add(-1)
		case e.IsCreate():
			s.add(1)
		}
	}
}

// add notes that there are so many records more.
func (s *seen) add(records int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records += records
}

// tell notes that a change of records is told, and all before it.
func (s *seen) tell(c subnet.Change) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told, s.highest = c.Revision, max(s.highest, c.Revision)
	for _, key := range c.Gone {
		s.forget(key)
	}
	for _, b := range c.Bad {
		s.forget(b.Key)
	}
	s.note(c.Leases)
}

func (s *seen) note(leases []subnet.Lease) {
	for _, l := range leases {
		if len(s.living) == mostWitnesses && l.Modified <= s.living[0].modified {
			continue // As nearly all of a listing; a key is not made for it.
		}
		w := witness{record: l.Subnets.Key(), lease: l.ID, modified: l.Modified}
		s.forget(w.record)
		if len(s.living) == mostWitnesses {
			s.living = slices.Delete(s.living, 0, 1)
		}
		at, _ := slices.BinarySearchFunc(s.living, w.modified, func(o witness, modified int64) int { return cmp.Compare(o.modified, modified) })
		s.living = slices.Insert(s.living, at, w)
	}
}

func (s *seen) forget(record string) {
	s.living = slices.DeleteFunc(s.living, func(w witness) bool { return w.record == record })
}
