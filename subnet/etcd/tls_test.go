package etcd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/subnet/subnettest"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	a, stranger := authority(t), authority(t)
	serverCert, serverKey := issue(t, a, "server", "127.0.0.1")
	wrongHostCert, wrongHostKey := issue(t, a, "elsewhere", "192.0.2.1")
	clientCert, clientKey := issue(t, a, "client")
	strangeCert, strangeKey := issue(t, stranger, "strange")
	const listen = "https://127.0.0.1:0"
	alone := etcdserver.ForTest(t, etcdserver.Options{ListenClientURL: listen, CertFile: serverCert, KeyFile: serverKey})
	mutual := etcdserver.ForTest(t, etcdserver.Options{ListenClientURL: listen, CertFile: serverCert, KeyFile: serverKey, ClientCAFile: a.CAFile})
	// Its gateway is its own client and cannot verify this, but clients are served.
	misnamed := etcdserver.ForTest(t, etcdserver.Options{ListenClientURL: listen, CertFile: wrongHostCert, KeyFile: wrongHostKey})
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"CA alone", Options{Endpoints: []string{alone.URL()}, CAFile: a.CAFile}, ""},
		{"certificate that is not asked for", Options{Endpoints: []string{alone.URL()}, CAFile: a.CAFile, CertFile: clientCert, KeyFile: clientKey}, ""},
		{"the host's CAs", Options{Endpoints: []string{alone.URL()}}, "certificate signed by unknown authority: check --etcd-cafile"},
		{"wrong CA", Options{Endpoints: []string{alone.URL()}, CAFile: stranger.CAFile}, "certificate signed by unknown authority: check --etcd-cafile"},
		{"mutual", Options{Endpoints: []string{mutual.URL()}, CAFile: a.CAFile, CertFile: clientCert, KeyFile: clientKey}, ""},
		{"no client certificate", Options{Endpoints: []string{mutual.URL()}, CAFile: a.CAFile}, "tls: client certificate required: check --etcd-certfile"},
		{"wrong client certificate", Options{Endpoints: []string{mutual.URL()}, CAFile: a.CAFile, CertFile: strangeCert, KeyFile: strangeKey}, "check --etcd-certfile"},
		{"wrong host", Options{Endpoints: []string{misnamed.URL()}, CAFile: a.CAFile}, "valid for 192.0.2.1, not 127.0.0.1"},
		{"https to http", Options{Endpoints: []string{strings.Replace(shared.URL(), "http:", "https:", 1)}}, "use http://"},
		{"http to https", Options{Endpoints: []string{strings.Replace(alone.URL(), "https:", "http:", 1)}}, "use https://"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// So much, too, has the look that finds the reason.
			c.o.RequestTimeout = 5 * time.Second
			if c.want != "" {
				c.o.RequestTimeout = diagnoseTimeout
			}
			s := open(t, c.o)
			wantList(t, s, c.want)
		})
	}
}

// TestRotation renews what TLS goes by under a live watch, as a cluster's own
// rotation does: the watch goes on at etcd's return, and nothing is listed again.
func TestRotation(t *testing.T) {
	t.Parallel()
	// files are those that the running etcd and the store were given.
	type files struct{ ca, serverCert, serverKey, clientCert, clientKey string }
	put := func(t *testing.T, to, from string) {
		t.Helper()
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	serverGets := func(t *testing.T, f files, a *etcdserver.Authority) {
		cert, key := issue(t, a, "another", "127.0.0.1")
		put(t, f.serverCert, cert)
		put(t, f.serverKey, key)
	}
	clientGets := func(t *testing.T, f files, a *etcdserver.Authority) {
		cert, key := issue(t, a, "another")
		put(t, f.clientCert, cert)
		put(t, f.clientKey, key)
	}
	for name, tc := range map[string]struct {
		// rotate is done while etcd is away, late once it is back and, where that
		// is another step, has not been let in.
		rotate, late func(t *testing.T, f files, old, new *etcdserver.Authority)
	}{
		"server's certificate": {rotate: func(t *testing.T, f files, old, _ *etcdserver.Authority) { serverGets(t, f, old) }},
		"client's certificate": {rotate: func(t *testing.T, f files, old, _ *etcdserver.Authority) { clientGets(t, f, old) }},
		"all": {rotate: func(t *testing.T, f files, _, new *etcdserver.Authority) {
			put(t, f.ca, new.CAFile)
			serverGets(t, f, new)
			clientGets(t, f, new)
		}},
		"authority, late": {
			rotate: func(t *testing.T, f files, _, new *etcdserver.Authority) { serverGets(t, f, new) },
			late:   func(t *testing.T, f files, _, new *etcdserver.Authority) { put(t, f.ca, new.CAFile) },
		},
		"halfway": {
			rotate: func(t *testing.T, f files, _, _ *etcdserver.Authority) {
				put(t, f.clientKey, f.serverKey)
				put(t, f.ca, os.DevNull)
			},
			late: func(t *testing.T, f files, old, _ *etcdserver.Authority) {
				put(t, f.ca, old.CAFile)
				clientGets(t, f, old)
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			old, another := authority(t), authority(t)
			f := files{ca: filepath.Join(t.TempDir(), "ca.pem")}
			put(t, f.ca, old.CAFile)
			f.serverCert, f.serverKey = issue(t, old, "server", "127.0.0.1")
			f.clientCert, f.clientKey = issue(t, old, "client")
			both := filepath.Join(t.TempDir(), "both.pem") // etcd takes clients of either authority.
			put(t, both, old.CAFile)
			second, err := os.ReadFile(another.CAFile)
			if err != nil {
				t.Fatal(err)
			}
			first, err := os.ReadFile(both)
			if err = errors.Join(err, os.WriteFile(both, append(first, second...), 0o600)); err != nil {
				t.Fatal(err)
			}
			srv := etcdserver.ForTest(t, etcdserver.Options{ListenClientURL: "https://127.0.0.1:0", CertFile: f.serverCert, KeyFile: f.serverKey, ClientCAFile: both})
			core, logs := observer.New(zap.DebugLevel)
			s := open(t, Options{
				Endpoints: []string{srv.URL()}, CAFile: f.ca, CertFile: f.clientCert, KeyFile: f.clientKey, Log: zap.New(core),
			})
			r := subnettest.Record(t, s)
			r.Next()
			if err := srv.Kill(); err != nil {
				t.Fatal(err)
			}
			tc.rotate(t, f, old, another)
			if err := srv.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			if tc.late != nil {
				eventually(t, "a word on the loss", func() bool { return logs.Len() > 0 })
				t.Log(logs.All()[0].ContextMap())
				tc.late(t, f, old, another)
			}
			began := time.Now()
			l := testLease()
			eventually(t, "a write", func() bool {
				l, err = s.Write(t.Context(), testLease())
				return err == nil
			})
			if c := r.Next(); c.Whole || len(c.Leases) != 1 || c.Leases[0] != l {
				t.Errorf("Watch gave %+v", c)
			}
			t.Logf("went on after %s", time.Since(began))
		})
	}
}
