package etcd

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// A presence that is in etcd may be a dead machine's. That its machine lives shows
// in the time that its etcd lease has left, which grows with each renewal and
// otherwise never does, but where etcd changes its leader: the new one gives all
// leases their full time again (lessor.Promote). An answer tells the raft term in
// its header, and each leader has a term of its own.

// lastWords is how long after a node was met first a sign of life may still be
// what it sent just before it died.
const lastWords = 2 * time.Second

// look is one look at another node's presence.
type look struct {
	token string
	lease clientv3.LeaseID
	// left is what the etcd lease had left, in seconds, at some moment between
	// two reads, whose terms are before and after.
	left          int64
	before, after raftTerm
	at            time.Time
}

// raftTerm is one leader's time in one cluster.
type raftTerm struct{ cluster, term uint64 }

func termOf(h *pb.ResponseHeader) raftTerm { return raftTerm{h.ClusterId, h.RaftTerm} }

// sighting is what is known of another node's life from all looks at it.
type sighting struct {
	token string
	lease clientv3.LeaseID
	since time.Time
	// least is the least that the etcd lease had left in the term, in seconds.
	least int64
	term  raftTerm
	lives bool
}

// then adds a look to what was seen before. The clocks of etcd and of this host
// are not compared: that of a virtual machine may stand still for a while.
func (s sighting) then(l look) sighting {
	fresh := sighting{token: l.token, lease: l.lease, since: l.at, least: l.left, term: l.before}
	if s.token != l.token {
		return fresh
	}
	fresh.since, fresh.lives = s.since, s.lives
	switch {
	case l.at.Sub(s.since) < lastWords, s.term.cluster != l.after.cluster:
		return fresh
	case s.lease != l.lease: // It made itself known anew.
		fresh.lives = true
		return fresh
	case s.term != l.after: // A leader may have been elected since the look before.
		return fresh
	}
	s.lives = s.lives || l.left > s.least
	s.least = min(s.least, l.left)
	return s
}

// sightings are those of the presences that stand in a node's way, by key.
type sightings struct {
	mu sync.Mutex
	by map[string]sighting
}

// maxSightings bounds what is remembered. A node has a few keys.
const maxSightings = 16

func (s *sightings) add(key string, l look) (lives bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil || len(s.by) >= maxSightings {
		s.by = map[string]sighting{}
	}
	now := s.by[key].then(l)
	s.by[key] = now
	return now.lives
}

// lives tells whether the machine whose token is under a key was seen to give a
// sign of life. The header is that of the answer that told of the token.
func (s *Store) lives(ctx context.Context, key, token string, lease clientv3.LeaseID, header *pb.ResponseHeader) (bool, error) {
	l := look{token: token, lease: lease, before: termOf(header), at: time.Now()}
	rctx, cancel := s.limited(ctx)
	defer cancel()
	resp, err := s.client.TimeToLive(rctx, lease)
	if err != nil {
		return false, err
	}
	l.left = resp.TTL
	// A member may learn of a term after its leader gave leases their time again,
	// but a linearizable read waits until it has.
	_, header, err = s.presences(ctx, []string{key})
	if err != nil {
		return false, err
	}
	l.after = termOf(header)
	return s.sightings.add(key, l), nil
}
