package etcd

import (
	"strings"
	"testing"

	"github.com/ripstop-net/ripstop/subnet/subnettest"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// TestOutageIsReportedWhileItLasts: with its reason, and over with etcd's return.
func TestOutageIsReportedWhileItLasts(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}, RequestTimeout: quick})
	if o, away := s.Outage(); away || o.Count != 0 {
		t.Errorf("before a watch: %+v", o)
	}
	r := subnettest.Record(t, s)
	r.Next()
	for n := uint64(1); n <= 2; n++ {
		if err := srv.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a reason", func() bool {
			o, away := s.Outage()
			return away && strings.Contains(o.Reason, "connection refused") && o.Failures > 0 && !o.Since.IsZero() && o.Count == n
		})
		if err := srv.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the end of the outage", func() bool {
			o, away := s.Outage()
			return !away && o.Count == n
		})
	}
}
