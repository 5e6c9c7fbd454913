package etcdserver

import "context"

// Test is what [ForTest] needs of a testing.T. A command links this package, so
// it does not import testing.
type Test interface {
	Helper()
	Context() context.Context
	TempDir() string
	Cleanup(func())
	Error(args ...any)
	Fatal(args ...any)
}

// ForTest runs an etcd that ends with the test. Its data is in a folder of the
// test's own unless the options name one.
func ForTest(t Test, o Options) *Server {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
	})
	return s
}
