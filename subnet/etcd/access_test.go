package etcd

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// wantList checks what List says: "" for success.
func wantList(t *testing.T, s *Store, want string) {
	t.Helper()
	began := time.Now()
	_, err := s.List(t.Context())
	switch {
	case want == "" && err != nil:
		t.Errorf("List: %v", err)
	case want != "" && err == nil:
		t.Errorf("List gave no error, want %q", want)
	case err != nil && !strings.Contains(err.Error(), want):
		t.Errorf("List: %v, want something with %q", err, want)
	case err != nil && errors.Is(err, subnet.ErrRefused):
		t.Errorf("List: %v: an etcd that is away does not refuse", err)
	}
	if d := time.Since(began); d > s.opts.RequestTimeout+diagnoseTimeout+time.Second {
		t.Errorf("List took %s", d)
	}
}

const quick = 700 * time.Millisecond

func TestTLS(t *testing.T) {
	t.Parallel()
	a, stranger := authority(t), authority(t)
	serverCert, serverKey := issue(t, a, "server", "127.0.0.1")
	wrongHostCert, wrongHostKey := issue(t, a, "elsewhere", "192.0.2.1")
	clientCert, clientKey := issue(t, a, "client")
	strangeCert, strangeKey := issue(t, stranger, "strange")
	const listen = "https://127.0.0.1:0"
	alone := server(t, etcdserver.Options{ListenClientURL: listen, CertFile: serverCert, KeyFile: serverKey})
	mutual := server(t, etcdserver.Options{ListenClientURL: listen, CertFile: serverCert, KeyFile: serverKey, ClientCAFile: a.CAFile})
	// Its gateway is its own client and cannot verify this, but clients are served.
	misnamed := server(t, etcdserver.Options{ListenClientURL: listen, CertFile: wrongHostCert, KeyFile: wrongHostKey})
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
			c.o.RequestTimeout = 5 * time.Second
			if c.want != "" {
				c.o.RequestTimeout = quick
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
			srv := server(t, etcdserver.Options{ListenClientURL: "https://127.0.0.1:0", CertFile: f.serverCert, KeyFile: f.serverKey, ClientCAFile: both})
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

// deaf listens and lets nobody in: its backlog is full, so the kernel drops
// further SYNs.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "deaf")
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close(); _ = f.Close() })
	for range 4 {
		c, err := net.DialTimeout("tcp", l.Addr().String(), 200*time.Millisecond)
		if err != nil {
			break
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	return l.Addr().String()
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func TestAway(t *testing.T) {
	t.Parallel()
	for _, user := range []string{"", "root"} {
		t.Run("as "+user, func(t *testing.T) {
			t.Parallel()
			closed := closedPort(t)
			s := open(t, Options{
				Endpoints: []string{"http://" + closed, "http://" + deaf(t)}, RequestTimeout: quick, Username: user, Password: user,
			})
			wantList(t, s, "http://"+closed+": connection refused; ")
			wantList(t, s, "timeout: host does not answer")
			if _, err := s.Write(t.Context(), subnet.Lease{}); err == nil || !strings.Contains(err.Error(), "connection refused") {
				t.Errorf("Write: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*quick)
			defer cancel()
			watched := make(chan error, 1)
			go func() { watched <- s.Watch(ctx, func(subnet.Change) { t.Error("a change came") }) }()
			if err := s.Hold(ctx, subnet.Lease{ID: 1}, nil); err != nil {
				t.Errorf("Hold: %v", err)
			}
			if err := <-watched; err != nil {
				t.Errorf("Watch: %v", err)
			}
		})
	}
}

func TestPaused(t *testing.T) {
	t.Parallel()
	srv := server(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}, RequestTimeout: quick})
	wantList(t, s, "")
	if err := srv.Pause(); err != nil {
		t.Fatal(err)
	}
	wantList(t, s, "host takes connections, but nothing answers")
	if err := srv.Resume(); err != nil {
		t.Fatal(err)
	}
	wantList(t, s, "")
}

// secured is an etcd with a root, a user with rights on /mine alone, and one
// with none.
func secured(t *testing.T) *etcdserver.Server {
	t.Helper()
	srv := server(t, etcdserver.Options{})
	c, ctx := raw(t, srv.URL()), t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.UserAdd(ctx, "root", "secret-of-root"))
	must(c.UserGrantRole(ctx, "root", "root"))
	must(c.RoleAdd(ctx, "mine"))
	must(c.RoleGrantPermission(ctx, "mine", "/mine/", clientv3.GetPrefixRangeEnd("/mine/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	must(c.UserAdd(ctx, "owner", "secret-of-owner"))
	must(c.UserGrantRole(ctx, "owner", "mine"))
	must(c.UserAdd(ctx, "nobody", "secret-of-nobody"))
	must(c.AuthEnable(ctx))
	return srv
}

func TestAuth(t *testing.T) {
	t.Parallel()
	srv := secured(t)
	for _, c := range []struct {
		name, user, password, prefix, want string
	}{
		{"right", "owner", "secret-of-owner", "/mine", ""},
		{"root", "root", "secret-of-root", "/other", ""},
		{"wrong password", "owner", "secret-of-another", "/mine", "wrong user or password: check --etcd-username and --etcd-password-file"},
		{"unknown user", "stranger", "secret-of-stranger", "/mine", "check --etcd-username"},
		{"no user", "", "", "/mine", "set --etcd-username and --etcd-password-file"},
		{"no rights", "nobody", "secret-of-nobody", "/mine", `"nobody" lacks rights: grant it readwrite on the prefix /mine/`},
		{"other prefix", "owner", "secret-of-owner", "/other", `"owner" lacks rights: grant it readwrite on the prefix /other/`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, Options{Endpoints: []string{srv.URL()}, Prefix: c.prefix, Username: c.user, Password: c.password})
			l := testLease()
			if c.want == "" {
				got, err := s.Write(t.Context(), l)
				if err != nil {
					t.Fatalf("Write: %v", err)
				}
				r := subnettest.Record(t, s)
				if c := r.Next(); !c.Whole || len(c.Leases) != 1 {
					t.Errorf("Watch gave %+v", c)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				if err := s.Hold(ctx, got, nil); err != nil {
					t.Errorf("Hold: %v", err)
				}
				return
			}
			_, listErr := s.List(t.Context())
			_, writeErr := s.Write(t.Context(), l)
			watchErr := s.Watch(t.Context(), func(subnet.Change) { t.Error("a change came") })
			for call, err := range map[string]error{"List": listErr, "Write": writeErr, "Watch": watchErr} {
				if !errors.Is(err, subnet.ErrRefused) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v, want ErrRefused with %q", call, err, c.want)
				}
				if err != nil && strings.Contains(err.Error(), "secret") {
					t.Errorf("%s: a password is in %q", call, err)
				}
			}
		})
	}
}

// TestAuthSurvivesRestart: etcd's simple tokens live in its memory only.
func TestAuthSurvivesRestart(t *testing.T) {
	t.Parallel()
	srv := secured(t)
	s := open(t, Options{Endpoints: []string{srv.URL()}, Prefix: "/mine", Username: "owner", Password: "secret-of-owner"})
	r := subnettest.Record(t, s)
	r.Next()
	if err := srv.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := s.Write(t.Context(), testLease())
	if err != nil {
		t.Fatalf("Write after the restart: %v", err)
	}
	if c := r.Next(); len(c.Leases) != 1 || c.Leases[0] != got {
		t.Errorf("Watch gave %+v", c)
	}
}

// TestAuthOnceEtcdIsBack: credentials given while etcd is away are neither
// refused nor forgotten.
func TestAuthOnceEtcdIsBack(t *testing.T) {
	t.Parallel()
	srv := secured(t)
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{Endpoints: []string{srv.URL()}, Prefix: "/mine", Username: "owner", Password: "secret-of-owner", RequestTimeout: quick})
	wantList(t, s, "connection refused")
	wrong := open(t, Options{Endpoints: []string{srv.URL()}, Prefix: "/mine", Username: "owner", Password: "guess"})
	refused := make(chan error, 1)
	go func() { refused <- wrong.Watch(t.Context(), func(subnet.Change) {}) }()
	if err := srv.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, err := s.List(t.Context()); err != nil; _, err = s.List(t.Context()) {
		if time.Now().After(deadline) {
			t.Fatalf("List: %v", err)
		}
	}
	select {
	case err := <-refused:
		if !errors.Is(err, subnet.ErrRefused) {
			t.Errorf("Watch with a wrong password: %v", err)
		}
	case <-time.After(15 * time.Second):
		t.Error("Watch with a wrong password goes on")
	}
}

// TestOneEndpointLives: members that are away do not matter as long as one is there.
func TestOneEndpointLives(t *testing.T) {
	t.Parallel()
	s := open(t, Options{
		Endpoints: []string{"http://" + closedPort(t), "http://" + deaf(t), shared.URL()}, Prefix: newPrefix(), RequestTimeout: quick,
	})
	for range 5 {
		wantList(t, s, "")
	}
}

// TestFullDatabase: what etcd still does is still used, and the rest is named.
func TestFullDatabase(t *testing.T) {
	t.Parallel()
	srv := server(t, etcdserver.Options{QuotaBytes: 256 << 10})
	s, c := open(t, Options{Endpoints: []string{srv.URL()}}), raw(t, srv.URL())
	l := mustWrite(t, s, testLease())
	var err error
	for i := 0; err == nil && i < 100; i++ {
		_, err = c.Put(t.Context(), "/elsewhere", strings.Repeat("x", 64<<10))
	}
	if err == nil {
		t.Fatal("the quota is not heeded")
	}
	l.Endpoints[subnet.V4].VNI = 7
	if _, err := s.Write(t.Context(), l); err == nil || !strings.Contains(err.Error(), "database is full") {
		t.Errorf("Write: %v", err)
	}
	wantList(t, s, "")
}
