package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
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

// closedPort is one at which nobody listens until the test's end.
func closedPort(t *testing.T) string {
	t.Helper()
	held, port, err := etcdserver.HoldPort(netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = held.Close() })
	return port.String()
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
	srv := etcdserver.ForTest(t, etcdserver.Options{})
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
func secured(t *testing.T, o etcdserver.Options) *etcdserver.Server {
	t.Helper()
	srv := etcdserver.ForTest(t, o)
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
	srv := secured(t, etcdserver.Options{})
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
			for call, err := range map[string]error{"List": listErr, "Write": writeErr} {
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
	srv := secured(t, etcdserver.Options{})
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

// TestTokensRunOut: watch, lease and presence go on though etcd forgets its
// tokens, by time and by being started again, and though nothing else is asked
// of the store.
func TestTokensRunOut(t *testing.T) {
	t.Parallel()
	srv := secured(t, etcdserver.Options{AuthTokenTTL: time.Second})
	core, logs := observer.New(zap.DebugLevel)
	s := open(t, Options{Endpoints: []string{srv.URL()}, Prefix: "/mine", Username: "owner", Password: "secret-of-owner", LeaseTTL: 6 * time.Second, Log: zap.New(core)})
	s.presenceTTL, s.checkEvery = 6*time.Second, time.Hour
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{srv.URL()}, Username: "root", Password: "secret-of-root", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	done := holding(t, s, mustWrite(t, s, testLease()))
	id, err := s.Appear(t.Context(), subnet.Living{Token: "one", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	stays := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { stays <- s.Stay(ctx, id) }()
	r := subnettest.Record(t, s)
	r.Next()
	for i := range 3 {
		time.Sleep(3 * time.Second) // Tokens and, without the holder, half of the leases' time.
		if i > 0 {
			if err := srv.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "a write by root", func() bool {
			_, err := root.Put(t.Context(), "/mine/subnets/10.5.2.0-24", string(nodeLease(2).Record()))
			return err == nil
		})
		if c := r.Next(); c.Whole || len(c.Leases) != 1 {
			t.Errorf("Watch gave %+v", c)
		}
	}
	wantHeld(t, done)
	cancel()
	if err := <-stays; err != nil {
		t.Error(err)
	}
	for _, e := range logs.FilterLevelExact(zap.ErrorLevel).All() {
		t.Errorf("said %s %v", e.Message, e.ContextMap())
	}
}

// TestRightsThatComeBack: an etcd that refuses once the network has been listed
// may have its reasons, such as a member that lags behind; the watch outlasts it.
func TestRightsThatComeBack(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		take, give func(context.Context, *clientv3.Client) error
		said       string
	}{
		"rights": {
			func(ctx context.Context, root *clientv3.Client) error {
				_, err := root.UserRevokeRole(ctx, "owner", "mine")
				return err
			},
			func(ctx context.Context, root *clientv3.Client) error {
				_, err := root.UserGrantRole(ctx, "owner", "mine")
				return err
			},
			"lacks rights",
		},
		"password": {
			func(ctx context.Context, root *clientv3.Client) error {
				_, err := root.UserChangePassword(ctx, "owner", "another")
				return err
			},
			func(ctx context.Context, root *clientv3.Client) error {
				_, err := root.UserChangePassword(ctx, "owner", "secret-of-owner")
				return err
			},
			"wrong user or password",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := secured(t, etcdserver.Options{})
			core, logs := observer.New(zap.DebugLevel)
			s := open(t, Options{Endpoints: []string{srv.URL()}, Prefix: "/mine", Username: "owner", Password: "secret-of-owner", Log: zap.New(core)})
			root, err := clientv3.New(clientv3.Config{Endpoints: []string{srv.URL()}, Username: "root", Password: "secret-of-root", Logger: zap.NewNop()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = root.Close() }()
			r := subnettest.Record(t, s) // Which fails the test when Watch ends with an error.
			r.Next()
			if err := tc.take(t.Context(), root); err != nil {
				t.Fatal(err)
			}
			if err := srv.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				for _, e := range logs.All() {
					t.Log(e.Message, e.ContextMap())
				}
			})
			eventually(t, "a word on the refusal", func() bool {
				return strings.Contains(fmt.Sprint(logs.All()), tc.said)
			})
			eventually(t, "rights", func() bool { return tc.give(t.Context(), root) == nil })
			eventually(t, "a write", func() bool {
				_, err := s.Write(t.Context(), testLease())
				return err == nil
			})
			for c := r.Next(); len(c.Leases) == 0; c = r.Next() {
				if c.Different {
					t.Errorf("Watch gave %+v", c)
				}
			}
		})
	}
}

// TestAuthOnceEtcdIsBack: credentials given while etcd is away are neither
// refused nor forgotten.
func TestAuthOnceEtcdIsBack(t *testing.T) {
	t.Parallel()
	srv := secured(t, etcdserver.Options{})
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	s := open(t, Options{Endpoints: []string{srv.URL()}, Prefix: "/mine", Username: "owner", Password: "secret-of-owner", RequestTimeout: quick})
	wantList(t, s, "connection refused")
	wrong := open(t, Options{Endpoints: []string{srv.URL()}, Prefix: "/mine", Username: "owner", Password: "guess"})
	wantList(t, wrong, "connection refused")
	if err := srv.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for _, err := s.List(t.Context()); err != nil; _, err = s.List(t.Context()) {
		if time.Now().After(deadline) {
			t.Fatalf("List: %v", err)
		}
	}
	for _, err := wrong.List(t.Context()); !errors.Is(err, subnet.ErrRefused); _, err = wrong.List(t.Context()) {
		if time.Now().After(deadline) {
			t.Fatalf("List with a wrong password: %v", err)
		}
	}
}

// TestOneEndpointLives: members that are away do not matter as long as one is there.
func TestOneEndpointLives(t *testing.T) {
	t.Parallel()
	s := open(t, Options{
		Endpoints: []string{"http://" + closedPort(t), "http://" + deaf(t), shared.URL()}, Prefix: newPrefix(),
	})
	for range 5 {
		wantList(t, s, "")
	}
}

// TestFullDatabase: what etcd still does is still used, and the rest is named.
func TestFullDatabase(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{QuotaBytes: 256 << 10})
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
