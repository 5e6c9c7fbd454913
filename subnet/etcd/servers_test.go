package etcd

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// TestServersShowThemselves: each endpoint by itself, with its clock and its
// certificate, also where that is not trusted.
func TestServersShowThemselves(t *testing.T) {
	t.Parallel()
	s := open(t, Options{Endpoints: []string{shared.URL(), "http://127.0.0.1:1"}, RequestTimeout: quick})
	got := s.Servers(t.Context())
	if len(got) != 2 || got[0].Problem != "" || !got[0].Dated || got[0].Behind.Abs() > 3*time.Second || got[0].Certificate != nil {
		t.Errorf("one that is well: %+v", got[0])
	}
	if !strings.Contains(got[1].Problem, "connection refused") || got[1].Dated {
		t.Errorf("one that is away: %+v", got[1])
	}

	a, stranger := authority(t), authority(t)
	cert, key := issue(t, a, "server", "127.0.0.1")
	clientCert, clientKey := issue(t, a, "client")
	secure := etcdserver.ForTest(t, etcdserver.Options{ListenClientURL: "https://127.0.0.1:0", CertFile: cert, KeyFile: key, ClientCAFile: a.CAFile})
	o := Options{Endpoints: []string{secure.URL()}, CAFile: a.CAFile, CertFile: clientCert, KeyFile: clientKey, RequestTimeout: 5 * time.Second}
	if got := open(t, o).Servers(t.Context()); got[0].Problem != "" || !got[0].Dated || got[0].Certificate == nil || got[0].Certificate.NotAfter.Before(time.Now()) {
		t.Errorf("with TLS: %+v", got[0])
	}
	if c, err := o.ClientCertificate(); err != nil || c.Subject.CommonName != "client" {
		t.Errorf("the client's: %v %v", c, err)
	}
	o.CAFile = stranger.CAFile
	if got := open(t, o).Servers(t.Context()); got[0].Problem == "" || got[0].Certificate == nil {
		t.Errorf("not trusted: %+v", got[0])
	}
}

// TestClockOfAServer that is an hour behind.
func TestClockOfAServer(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
	}))
	defer server.Close()
	s := open(t, Options{Endpoints: []string{server.URL}, RequestTimeout: quick})
	behind, dated := s.behind(t.Context(), server.URL)
	if !dated || (behind-time.Hour).Abs() > 2*time.Second {
		t.Errorf("%s %t", behind, dated)
	}
}
