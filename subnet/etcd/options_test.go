package etcd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// authority makes certificates for one test.
func authority(t *testing.T) *etcdserver.Authority {
	t.Helper()
	a, err := etcdserver.NewAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *etcdserver.Authority, name string, hosts ...string) (cert, key string) {
	t.Helper()
	cert, key, err := a.Issue(name, hosts...)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func TestOpenChecksOptions(t *testing.T) {
	a := authority(t)
	cert, key := issue(t, a, "one")
	_, otherKey := issue(t, a, "two")
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	https := []string{"https://127.0.0.1:1"}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "set --etcd-endpoints"},
		{Options{Endpoints: []string{"127.0.0.1:2379"}}, "no scheme"},
		{Options{Endpoints: []string{"ftp://127.0.0.1:2379"}}, "neither http:// nor https://"},
		{Options{Endpoints: []string{"http://127.0.0.1"}}, "no port"},
		{Options{Endpoints: []string{"http://:2379"}}, "no host"},
		{Options{Endpoints: []string{"http://a:99999"}}, "1 to 65535"},
		{Options{Endpoints: []string{"http://a:2379/coreos.com"}}, "--etcd-prefix"},
		{Options{Endpoints: []string{"http://a:1", "https://b:1"}}, "mix http and https"},
		{Options{Endpoints: []string{"http://root:sesame@a:1"}}, "--etcd-password-file"},
		{Options{Endpoints: []string{"http://root:ses%ame@a:1"}}, "is no URL"},
		{Options{Endpoints: []string{"http://a:1"}, CAFile: a.CAFile}, "write https://"},
		{Options{Endpoints: https, CertFile: cert}, "add --etcd-keyfile"},
		{Options{Endpoints: https, KeyFile: key}, "add --etcd-certfile"},
		{Options{Endpoints: https, CertFile: cert, KeyFile: otherKey}, "does not match"},
		{Options{Endpoints: https, CertFile: cert, KeyFile: garbage}, "load --etcd-certfile"},
		{Options{Endpoints: https, CAFile: garbage}, "no PEM certificate"},
		{Options{Endpoints: https, CAFile: "/does/not/exist"}, "no such file"},
		{Options{Endpoints: https, Username: "root"}, "add --etcd-password-file"},
		{Options{Endpoints: https, Password: "sesame"}, "add --etcd-username"},
		{Options{Endpoints: https, LeaseTTL: time.Millisecond}, "too short"},
		{Options{Endpoints: https, PresenceTTL: time.Millisecond}, "presence time 1ms is too short"},
		{Options{Endpoints: https, RequestTimeout: -1}, "negative"},
	} {
		s, err := Open(t.Context(), c.o)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Open(%v): got %v, want something with %q", c.o, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), "sesame") || strings.Contains(err.Error(), "ses%ame")) {
			t.Errorf("the password is in %q", err)
		}
	}
	for _, o := range []Options{
		{Endpoints: https},
		{Endpoints: https, CAFile: a.CAFile, CertFile: cert, KeyFile: key, Username: "root", Password: "sesame"},
		{Endpoints: []string{"http://[::1]:2379/", "http://etcd.example:2379"}},
	} {
		began := time.Now()
		open(t, o)
		if d := time.Since(began); d > time.Second {
			t.Errorf("Open(%v) took %s with no etcd there", o, d)
		}
	}
}

func TestPrefix(t *testing.T) {
	for prefix, want := range map[string]string{
		"":                     "/coreos.com/network/subnets/",
		"/coreos.com/network/": "/coreos.com/network/subnets/",
		"/":                    "/subnets/",
		"a//b/":                "a/b/subnets/",
	} {
		s := open(t, Options{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: prefix})
		if got := s.recordsKey(); got != want {
			t.Errorf("prefix %q: records are under %q, want %q", prefix, got, want)
		}
	}
}

// TestNoSecretIsPrinted tries every way by which options and store come to a
// log or a message.
func TestNoSecretIsPrinted(t *testing.T) {
	const secret = "sesame-open-up"
	var log bytes.Buffer
	logger := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(&log), zap.DebugLevel))
	o := Options{
		Endpoints: []string{"http://127.0.0.1:1"}, Username: "root", Password: secret,
		RequestTimeout: 200 * time.Millisecond, Log: logger,
	}
	s := open(t, o)
	_, err := s.List(t.Context())
	if err == nil {
		t.Fatal("List of nothing gave no error")
	}
	logger.Info("options", zap.Any("options", o), zap.Stringer("string", o), zap.Reflect("reflect", o), zap.Any("store", s))
	text, jsonErr := json.Marshal(o.withoutLog())
	if jsonErr != nil {
		t.Fatal(jsonErr)
	}
	for _, said := range []string{
		err.Error(), fmt.Sprintf("%v %+v %#v %s %q", o, o, o, o, o), fmt.Sprintf("%v %+v %#v %s", &o, &o, &o, &o),
		fmt.Sprintf("%v %+v %#v %s", s, s, s, s), string(text), log.String(), fmt.Sprintf("%+v", struct{ O Options }{o}),
	} {
		if strings.Contains(said, secret) {
			t.Errorf("the password is in %s", said)
		}
	}
}

// withoutLog is what can be put into JSON.
func (o Options) withoutLog() Options {
	o.Log = nil
	return o
}
