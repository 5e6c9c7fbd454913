package subnettest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// Recorder runs a Watch and keeps what it delivers, but for empty changes.
type Recorder struct {
	t       *testing.T
	changes chan subnet.Change
}

// Record starts a Watch that ends with the test.
func Record(t *testing.T, s subnet.Store) *Recorder {
	t.Helper()
	r := &Recorder{t: t, changes: make(chan subnet.Change, 100_000)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Watch(ctx, func(c subnet.Change) {
			if !c.Empty() {
				r.changes <- c
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := within(done); err != nil {
			t.Errorf("Watch: %v", err)
		}
	})
	return r
}

// Next waits for the next change.
func (r *Recorder) Next() subnet.Change {
	r.t.Helper()
	select {
	case c := <-r.changes:
		return c
	case <-time.After(patience):
		r.t.Fatal("no change came")
		return subnet.Change{}
	}
}

// Silent checks that no change comes for a while.
func (r *Recorder) Silent(d time.Duration) {
	r.t.Helper()
	select {
	case c := <-r.changes:
		r.t.Fatalf("a change came: %+v", c)
	case <-time.After(d):
	}
}

var errStuck = errors.New("did not end")

func within(done <-chan error) error {
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		return errStuck
	}
}

func watchOrder(t *testing.T, h Harness) {
	s := h.Open(t)
	h.Hand.SetConfig([]byte("one"))
	first := mustWrite(t, s, testLease(1))
	r := Record(t, h.Open(t))
	whole := r.Next()
	if !whole.Whole || !whole.ConfigSet || string(whole.Config) != "one" || !slices.Equal(whole.Leases, []subnet.Lease{first}) {
		t.Fatalf("first change is %+v", whole)
	}
	last := whole.Revision
	next := func() subnet.Change {
		t.Helper()
		c := r.Next()
		if c.Whole || c.Revision < last || c.Revision == last && !c.ConfigSet {
			t.Fatalf("after revision %d came %+v", last, c)
		}
		last = c.Revision
		return c
	}

	second := mustWrite(t, s, testLease(2))
	if c := next(); !slices.Equal(c.Leases, []subnet.Lease{second}) || c.ConfigSet || c.Revision != second.Modified {
		t.Fatalf("a new lease is told as %+v", c)
	}
	h.Hand.SetConfig([]byte("two"))
	if c := next(); !c.ConfigSet || string(c.Config) != "two" || len(c.Leases) != 0 {
		t.Fatalf("a new config is told as %+v", c)
	}
	h.Hand.SetConfig([]byte{})
	if c := next(); !c.ConfigSet || c.Config == nil || len(c.Config) != 0 {
		t.Fatalf("an empty config is told as %+v", c)
	}
	h.Hand.SetConfig(nil)
	if c := next(); !c.ConfigSet || c.Config != nil {
		t.Fatalf("a deleted config is told as %+v", c)
	}
	h.Hand.Put(second.Subnets.Key(), []byte("{"), true)
	if c := next(); len(c.Bad) != 1 || c.Bad[0].Key != second.Subnets.Key() || len(c.Leases) != 0 || len(c.Gone) != 0 {
		t.Fatalf("a bad record is told as %+v", c)
	}
	h.Hand.Put("what/is/this", nil, false)
	if c := next(); len(c.Bad) != 1 || c.Bad[0].Key != "what/is/this" {
		t.Fatalf("an odd key is told as %+v", c)
	}
	first.Endpoints[subnet.V4].VNI = 7
	first = mustWrite(t, s, first)
	if c := next(); !slices.Equal(c.Leases, []subnet.Lease{first}) {
		t.Fatalf("a rewritten lease is told as %+v", c)
	}
	h.Hand.Expire(first.Subnets.Key())
	if c := next(); !slices.Equal(c.Gone, []string{first.Subnets.Key()}) {
		t.Fatalf("an expired lease is told as %+v", c)
	}
	h.Hand.Delete(second.Subnets.Key())
	if c := next(); !slices.Equal(c.Gone, []string{second.Subnets.Key()}) {
		t.Fatalf("a deleted record is told as %+v", c)
	}
}

func watchDifferent(t *testing.T, h Harness) {
	l := mustWrite(t, h.Open(t), testLease(1))
	a, b := Record(t, h.Open(t)), Record(t, h.Open(t))
	first := a.Next()
	if again := b.Next(); first.Different || again.Different || first.Epoch == "" || again.Epoch != first.Epoch {
		t.Fatalf("first changes are %+v and %+v", first, again)
	}
	if listed := mustList(t, h.Open(t)); listed.Epoch != first.Epoch {
		t.Errorf("lists epoch %q, told was %q", listed.Epoch, first.Epoch)
	}
	h.Hand.NewEpoch()
	for _, r := range []*Recorder{a, b} {
		if c := r.Next(); !c.Whole || !c.Different || c.Epoch == first.Epoch || c.Epoch == "" || !slices.Equal(c.Leases, []subnet.Lease{l}) {
			t.Errorf("of another store is told %+v", c)
		}
	}
	h.Hand.Delete(l.Subnets.Key())
	for _, r := range []*Recorder{a, b} {
		if c := r.Next(); c.Whole || !slices.Equal(c.Gone, []string{l.Subnets.Key()}) {
			t.Errorf("then is told %+v", c)
		}
	}
}

func watchSign(t *testing.T, h Harness) {
	s := h.Open(t)
	ctx, cancel := context.WithCancel(context.Background())
	done, signs := make(chan error, 1), make(chan int64, 1000)
	go func() {
		done <- s.Watch(ctx, func(c subnet.Change) {
			if c.Empty() {
				signs <- c.Revision
			}
		})
	}()
	for range 3 {
		select {
		case rev := <-signs:
			if rev < 1 {
				t.Errorf("a sign at revision %d", rev)
			}
		case <-time.After(patience):
			t.Fatal("no sign of the store")
		}
	}
	cancel()
	if err := within(done); err != nil {
		t.Error(err)
	}
}

// mirror is everything that a watch has told, and the rules it must keep.
type mirror struct {
	revision int64
	config   string
	records  map[string]string
}

func (m *mirror) apply(c subnet.Change) error {
	if c.Revision < m.revision {
		return fmt.Errorf("revision went from %d back to %d", m.revision, c.Revision)
	}
	if c.Revision == m.revision && !c.Whole && !c.ConfigSet {
		return fmt.Errorf("revision %d is told in two changes", c.Revision)
	}
	m.revision = c.Revision
	if c.Whole || m.records == nil {
		if !c.Whole {
			return errors.New("the first change is not whole")
		}
		m.records = map[string]string{}
	}
	if c.ConfigSet {
		m.config = fmt.Sprintf("%q %v", c.Config, c.Config == nil)
	}
	seen := map[string]bool{}
	set := func(key, value string) error {
		if seen[key] {
			return fmt.Errorf("one change has %s twice: %+v", key, c)
		}
		seen[key] = true
		m.records[key] = value
		return nil
	}
	var errs []error
	for _, l := range c.Leases {
		errs = append(errs, set(l.Subnets.Key(), fmt.Sprintf("%+v", l)))
		if !c.Whole && l.Modified != c.Revision {
			errs = append(errs, fmt.Errorf("a change of revision %d has %+v", c.Revision, l))
		}
	}
	for _, b := range c.Bad {
		errs = append(errs, set(b.Key, "bad: "+b.Reason))
	}
	for _, key := range c.Gone {
		errs = append(errs, set(key, ""))
		delete(m.records, key)
	}
	return errors.Join(errs...)
}

func (m *mirror) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "config %s\n", m.config)
	for _, key := range slices.Sorted(maps.Keys(m.records)) {
		fmt.Fprintf(&b, "%s %s\n", key, m.records[key])
	}
	return b.String()
}

// watchMissesNothing starts watches while writers hammer: what each has told in
// the end is what a listing shows.
func watchMissesNothing(t *testing.T, h Harness) {
	const writers, rounds, watches = 3, 60, 4
	var wg sync.WaitGroup
	for w := range writers {
		s := h.Open(t)
		wg.Go(func() {
			for i := range rounds {
				n := 1 + w*rounds + i
				l, err := s.Write(t.Context(), testLease(n))
				if err == nil && i%3 == 1 {
					l.Backend = "host-gw"
					_, err = s.Write(t.Context(), l)
				}
				if err != nil {
					t.Error(err)
					return
				}
				switch i % 5 {
				case 0:
					h.Hand.Delete(l.Subnets.Key())
				case 1:
					h.Hand.Expire(l.Subnets.Key())
				case 2:
					h.Hand.Put(l.Subnets.Key(), []byte("{"), true)
				case 3:
					h.Hand.SetConfig(fmt.Appendf(nil, "%d/%d", w, i))
				}
			}
		})
	}
	recorders := make([]*Recorder, watches)
	for i := range recorders {
		recorders[i] = Record(t, h.Open(t))
		time.Sleep(5 * time.Millisecond) // So that they begin at different points.
	}
	wg.Wait()
	last := mustWrite(t, h.Open(t), testLease(1+writers*rounds))
	var want mirror
	if err := want.apply(mustList(t, h.Open(t)).Whole()); err != nil {
		t.Fatal(err)
	}
	for i, r := range recorders {
		var got mirror
		for got.revision < last.Modified || got.String() != want.String() {
			select {
			case c := <-r.changes:
				if err := got.apply(c); err != nil {
					t.Fatalf("watch %d: %v", i, err)
				}
			case <-time.After(patience):
				t.Fatalf("watch %d shows, at revision %d:\n%v\nwant, at revision %d:\n%v", i, got.revision, &got, last.Modified, &want)
			}
		}
		r.Silent(20 * time.Millisecond)
	}
}
