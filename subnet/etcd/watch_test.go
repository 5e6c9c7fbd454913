package etcd

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/subnet"
)

// TestPeersThatLeftDuringACutAreNotHeld: what comes in one answer after a cut is
// many revisions, of which each is judged by itself.
func TestPeersThatLeftDuringACutAreNotHeld(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		meanwhile func(*sight)
		want      string
	}{
		"one after another": {func(o *sight) { o.leave(3, 4, 5, 6, 7, 8, 9, 10, 11, 12) }, "n13 n2:"},
		"at once": {func(o *sight) { // Seven of twelve.
			o.leave(13)
			o.join(13)
			_, err := o.hand.c.Delete(o.t.Context(), o.store.recordKey(nodeLease(3).Subnets), clientv3.WithRange(o.store.recordsKey()+"~"))
			o.must(err)
			o.leave(12)
		}, "n10 n11 n13 n2:n3 n4 n5 n6 n7 n8 n9"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := observe(t, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13)
			told := o.soFar()
			o.link.Cut(true)
			tc.meanwhile(o)
			o.link.Cut(false)
			o.caughtUp()
			if got := o.peers(); got != tc.want {
				t.Errorf("peers %s, want %s, after %+v", got, tc.want, o.since(told))
			}
			for _, c := range o.since(told) {
				if c.Whole { // Which tells of no revisions.
					t.Errorf("told %+v", c)
				}
			}
		})
	}
}

// TestRevisionIsToldWithAllBeforeIt: etcd answers the watches of config and of
// records one by one and gives each a thousand revisions at most, so after a cut
// the config comes before what was written before it.
func TestRevisionIsToldWithAllBeforeIt(t *testing.T) {
	t.Parallel()
	o := observe(t)
	told := o.soFar()
	o.link.Cut(true)
	const records = 2500
	written := map[int64]bool{} // The revisions of records.
	c, key := o.hand.c, o.store.recordKey(nodeLease(2).Subnets)
	for range records {
		resp, err := c.Put(t.Context(), key, "{")
		o.must(err)
		written[resp.Header.Revision] = true
	}
	both, err := c.Txn(t.Context()).Then(clientv3.OpPut(o.store.ConfigKey(), "{}"), clientv3.OpPut(key, string(nodeLease(2).Record()))).Commit()
	o.must(err)
	written[both.Header.Revision] = true
	o.link.Cut(false)
	o.caughtUp()
	eventually(t, "the config", func() bool {
		return slices.ContainsFunc(o.since(told), func(c subnet.Change) bool { return c.ConfigSet })
	})
	for _, c := range o.since(told) {
		if c.Whole {
			t.Fatalf("told %+v", c)
		}
		if len(c.Leases)+len(c.Bad) > 0 {
			delete(written, c.Revision)
		}
		for r := range written {
			if r <= c.Revision {
				t.Fatalf("revision %d is told before %d: %+v", c.Revision, r, c)
			}
		}
	}
	if len(written) != 0 {
		t.Errorf("%d revisions were not told", len(written))
	}
}

// TestChangesDoNotDependOnAnswers: however etcd groups events into answers, the
// changes are the same, one for each revision, and all but an answer's last say that
// more follow.
func TestChangesDoNotDependOnAnswers(t *testing.T) {
	t.Parallel()
	s := &Store{opts: Options{Prefix: DefaultPrefix}}
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 3))
		var revisions [][]*clientv3.Event
		for revision := range int64(r.IntN(20)) {
			var events []*clientv3.Event
			for _, n := range r.Perm(20)[:1+r.IntN(5)] {
				l := nodeLease(n + 1)
				e := &clientv3.Event{Type: clientv3.EventTypeDelete, Kv: &mvccpb.KeyValue{Key: []byte(s.recordKey(l.Subnets)), ModRevision: 10 + revision}}
				switch r.IntN(3) {
				case 0:
					e.Type, e.Kv.Value = clientv3.EventTypePut, l.Record()
				case 1:
					e.Type, e.Kv.Value = clientv3.EventTypePut, []byte("{")
				}
				events = append(events, e)
			}
			revisions = append(revisions, events)
		}
		var want, got []string
		for _, events := range revisions {
			for c := range s.recordChanges(events) {
				if c.More {
					t.Fatalf("seed %d: more than one change of one revision: %+v", seed, c)
				}
				want = append(want, fmt.Sprintf("%+v", c))
				if n := len(c.Leases) + len(c.Bad) + len(c.Gone); n != len(events) {
					t.Fatalf("seed %d: %d of %d events are told in %+v", seed, n, len(events), c)
				}
			}
		}
		if len(want) != len(revisions) {
			t.Fatalf("seed %d: %d changes of %d revisions", seed, len(want), len(revisions))
		}
		for len(revisions) > 0 {
			n := 1 + r.IntN(len(revisions))
			told := 0
			for c := range s.recordChanges(slices.Concat(revisions[:n]...)) {
				if told++; c.More != (told < n) {
					t.Fatalf("seed %d: change %d of %d in an answer: %+v", seed, told, n, c)
				}
				c.More = false
				got = append(got, fmt.Sprintf("%+v", c))
			}
			revisions = revisions[n:]
		}
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: told %v, want %v", seed, got, want)
		}
	}
}

// TestSeenKnowsWhatWasWrittenLast: of the records that are there, as long as no
// more of the newest went than are remembered.
func TestSeenKnowsWhatWasWrittenLast(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 4))
		var s seen
		living := map[string]witness{}
		var first subnet.Listing
		for n, revision := range r.Perm(30) {
			l := nodeLease(n + 1)
			l.ID, l.Modified = int64(r.IntN(100)), int64(revision+1)
			first.Leases = append(first.Leases, l)
			living[l.Subnets.Key()] = witness{l.Subnets.Key(), l.ID, l.Modified}
		}
		first.Revision = 30
		s.list(first)
		for revision := int64(31); revision < 60; revision++ {
			l := nodeLease(1 + r.IntN(40))
			l.ID, l.Modified = int64(r.IntN(100)), revision
			key := l.Subnets.Key()
			c := subnet.Change{Revision: revision, Leases: []subnet.Lease{l}}
			delete(living, key)
			switch r.IntN(3) {
			case 0:
				c.Leases, c.Gone = nil, []string{key}
			case 1:
				c.Leases, c.Bad = nil, []subnet.BadRecord{{Key: key}}
			default:
				living[key] = witness{key, l.ID, l.Modified}
			}
			s.tell(c)
			var want witness
			for _, w := range living {
				if w.modified > want.modified {
					want = w
				}
			}
			if got := s.get().last(); got != want && got != (witness{}) {
				t.Fatalf("seed %d: last is %+v, want %+v", seed, got, want)
			}
			if n := len(s.living); n == 0 || n > mostWitnesses {
				t.Fatalf("seed %d: %d are remembered", seed, n)
			}
		}
	}
}

// TestCompactionsAreNoOutages: each time that what happened during a cut is
// compacted, there is a listing as soon as the link is back, however often it comes.
func TestCompactionsAreNoOutages(t *testing.T) {
	t.Parallel()
	o := observe(t, 2)
	for i := range 8 {
		o.link.Cut(true)
		o.join(3 + i)
		o.compact()
		o.link.Cut(false)
		back := time.Now()
		o.caughtUp()
		if took := time.Since(back); took > 5*time.Second {
			t.Errorf("cut %d: caught up after %s", i, took)
		}
	}
}

// TestCompactedConfigIsNoListing: the watch of a config that nobody changes is
// compacted away whenever the connection is lost. The config is read then, and the
// records are not listed for that.
func TestCompactedConfigIsNoListing(t *testing.T) {
	t.Parallel()
	o := observe(t, 2)
	start := o.soFar()
	next := 3
	cut := func(meanwhile func()) {
		o.t.Helper()
		o.join(next) // So that the watch of records is ahead.
		next++
		o.caughtUp()
		o.link.Cut(true)
		meanwhile()
		resp, err := o.hand.c.Get(o.t.Context(), o.store.epochKey())
		o.must(err)
		_, err = o.hand.c.Compact(o.t.Context(), resp.Header.Revision)
		o.must(err)
		o.link.Cut(false)
		o.checked()
	}
	configs := func() (out []string) {
		for _, c := range o.since(start) {
			if c.Whole {
				t.Fatalf("told %+v", c)
			}
			if c.ConfigSet {
				out = append(out, fmt.Sprintf("%q %t", c.Config, c.Config == nil))
			}
		}
		return out
	}
	var want []string
	for _, tc := range []struct {
		meanwhile func()
		told      string
	}{
		{func() {}, ""},
		{func() { o.hand.SetConfig([]byte(`{"a":1}`)) }, `"{\"a\":1}" false`},
		{func() {}, ""},
		{func() { o.hand.SetConfig(nil) }, `"" true`},
		{func() { o.hand.SetConfig([]byte{}) }, `"" false`},
	} {
		cut(tc.meanwhile)
		if tc.told != "" {
			want = append(want, tc.told)
		}
		eventually(t, "the config", func() bool { return len(configs()) >= len(want) })
		if got := configs(); !slices.Equal(got, want) {
			t.Fatalf("told of configs %v, want %v", got, want)
		}
	}
	// And the watch goes on from there.
	o.hand.SetConfig([]byte(`{"b":2}`))
	eventually(t, "the config", func() bool { return len(configs()) == len(want)+1 })
}

// TestOnlyNewRecordsAreRead: where the watch of the records was compacted away, all of
// them are listed only if one may have gone.
func TestOnlyNewRecordsAreRead(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		meanwhile func(o *sight)
		told      string // What is told then: nodes by their number, and keys that can't be read.
	}{
		"nothing":                         {func(*sight) {}, ""},
		"one came":                        {func(o *sight) { o.join(5) }, "5"},
		"two came, one was written again": {func(o *sight) { o.join(5, 6, 3) }, "3 5 6"},
		"one came and went":               {func(o *sight) { o.join(5); o.leave(5) }, ""},
		"one can't be read":               {func(o *sight) { o.hand.Put("rubbish", []byte("{"), false) }, "rubbish"},
		"the last was written again":      {func(o *sight) { o.join(4) }, "all"},
		"one went":                        {func(o *sight) { o.leave(3) }, "all"},
		"one went and one came":           {func(o *sight) { o.leave(3); o.join(5) }, "all"},
		"one went and came back":          {func(o *sight) { o.leave(3); o.join(3) }, "all"},
		"all went":                        {func(o *sight) { o.leave(2, 3, 4) }, "all"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := observe(t, 2)
			// Told by the watch, so that its count is of both.
			o.join(3, 5)
			o.leave(5)
			o.hand.Put("junk", []byte("{"), false)
			o.join(4)
			o.caughtUp()
			cut := func(meanwhile func(*sight)) string {
				t.Helper()
				before := o.soFar()
				o.link.Cut(true)
				meanwhile(o)
				revision := o.compact()
				o.link.Cut(false)
				o.toldUpTo(revision)
				var told []string
				for _, c := range o.since(before) {
					if c.Whole {
						return "all"
					}
					for _, l := range c.Leases {
						told = append(told, strings.TrimPrefix(l.Node, "n"))
					}
					for _, b := range c.Bad {
						told = append(told, b.Key)
					}
				}
				slices.Sort(told)
				return strings.Join(told, " ")
			}
			if got := cut(tc.meanwhile); got != tc.told {
				t.Errorf("told of %q, want %q", got, tc.told)
			}
			// What is known by then is as good as what was listed.
			o.join(6)
			o.caughtUp()
			if got := cut(func(o *sight) { o.join(7) }); got != "7" {
				t.Errorf("after that, told of %q", got)
			}
		})
	}
}
