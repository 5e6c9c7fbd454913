package backendtest

import (
	"errors"
	"testing"

	"github.com/ripstop-net/ripstop/backend"
)

// suite is one case's means.
type suite struct {
	t *testing.T
	Harness
	noise int // Doubts without a cause so far.
}

func (s *suite) dump() *backend.State {
	s.t.Helper()
	have, err := s.Kernel.Dump(s.t.Context())
	if err != nil {
		s.t.Fatalf("dump: %v", err)
	}
	return have
}

// holds checks that a dump shows just this.
func (s *suite) holds(want *backend.State) {
	s.t.Helper()
	if have := s.dump(); !have.Equal(want) {
		s.t.Fatalf("dump differs.\nhave:\n%s\nwant:\n%s", have, want)
	}
}

// reach brings the kernel to want and checks that it is there, and that the
// model that Execute keeps says so too.
func (s *suite) reach(want *backend.State) {
	s.t.Helper()
	have := s.dump()
	for _, f := range backend.Execute(s.t.Context(), s.Kernel, have, backend.Diff(have, want)) {
		s.t.Errorf("%v", f)
	}
	if !have.Equal(want) {
		s.t.Fatalf("model differs.\nhave:\n%s\nwant:\n%s", have, want)
	}
	s.holds(want)
}

// apply carries out ops, which must be of one phase, and wants success.
func (s *suite) apply(verb backend.Verb, entries ...backend.Entry) {
	s.t.Helper()
	for i, err := range s.try(verb, entries...) {
		if err != nil {
			s.t.Fatalf("%s %s: %v", verb, entries[i], err)
		}
	}
}

func (s *suite) try(verb backend.Verb, entries ...backend.Entry) []error {
	s.t.Helper()
	var ops []backend.Op
	for _, e := range entries {
		ops = append(ops, backend.Op{Verb: verb, Entry: e})
	}
	errs := s.Kernel.Apply(s.t.Context(), ops)
	if len(errs) != len(ops) {
		s.t.Fatalf("%d errors for %d ops", len(errs), len(ops))
	}
	return errs
}

func (s *suite) wantErr(err error, target ...error) {
	s.t.Helper()
	for _, w := range target {
		if !errors.Is(err, w) {
			s.t.Fatalf("error is %v, want %v", err, w)
		}
	}
}

func (s *suite) by(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatalf("outside hand: %v", err)
	}
}

func (s *suite) stands(e backend.Entry) {
	s.t.Helper()
	ok, err := s.Others.Stands(e)
	if err != nil || !ok {
		s.t.Fatalf("another's %s is there untouched: %t, %v", e, ok, err)
	}
}
