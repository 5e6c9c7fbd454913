package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// TestDoctorNamesWhatIsRefused: etcd asks for users while the network lives. Who has
// none, a wrong password or no right is told which, and with whose rights it would do.
func TestDoctorNamesWhatIsRefused(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 1, Mode: IPv4, NoPods: true})
	h, c, ctx := l.Hosts[0], openStore(t, l), t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(c.UserAdd(ctx, "root", "secret-of-root"))
	must(c.UserGrantRole(ctx, "root", "root"))
	must(c.RoleAdd(ctx, "elsewhere"))
	must(c.RoleGrantPermission(ctx, "elsewhere", "/elsewhere/", clientv3.GetPrefixRangeEnd("/elsewhere/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	must(c.UserAdd(ctx, "node", "secret-of-node"))
	must(c.UserGrantRole(ctx, "node", "elsewhere"))
	must(c.RoleAdd(ctx, "here"))
	must(c.RoleGrantPermission(ctx, "here", Prefix+"/", clientv3.GetPrefixRangeEnd(Prefix+"/"), clientv3.PermissionType(clientv3.PermReadWrite)))
	must(c.UserAdd(ctx, "other", "secret-of-other"))
	must(c.UserGrantRole(ctx, "other", "here"))
	must(c.AuthEnable(ctx))
	password := func(text string) string {
		path := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return "--etcd-password-file=" + path
	}
	for _, who := range []struct {
		name string
		args []string
		says string
	}{
		{"no user", nil, "set --etcd-username and --etcd-password-file"},
		{"a user without the right", []string{"--etcd-username=node", password("secret-of-node")}, `"node" lacks rights: grant it readwrite on the prefix ` + Prefix + "/"},
		{"a wrong password", []string{"--etcd-username=node", password("secret")}, "check --etcd-username and --etcd-password-file"},
	} {
		d := diagnose(t, h, append(who.args, "--check=store")...)
		if !d.names("store", doctor.Failure, "the store refuses this node", who.says) || d.code != doctor.ExitFailures {
			t.Errorf("%s: exit code %d: %s", who.name, d.code, d.text())
		}
		if strings.Contains(d.text(), "secret") {
			t.Errorf("%s: a password is shown: %s", who.name, d.text())
		}
	}
	if d := diagnose(t, h, "--check=store", "--etcd-username=other", password("secret-of-other")); d.names("store", doctor.Warning) {
		t.Errorf("with the right: %s", d.text())
	}
}

// TestDoctorNamesCertificatesNearTheirEnd: of a daemon that lives with TLS, both its
// own and etcd's are named, with the days that are left.
func TestDoctorNamesCertificatesNearTheirEnd(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 1, Mode: IPv4, NoDaemons: true})
	h := l.Hosts[0]
	authority, err := etcdserver.NewAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	at := l.EtcdAddress(subnet.V4)
	issue := func(left time.Duration, name string, hosts ...string) (string, string) {
		t.Helper()
		now := time.Now()
		cert, key, err := authority.IssueFor(now.Add(-300*day), now.Add(left+time.Hour), name, hosts...)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	serverCert, serverKey := issue(100*day, "server", at.String())
	store := etcdserver.ForTest(t, etcdserver.Options{
		ListenClientURL: "https://" + netip.AddrPortFrom(at, 2479).String(), CertFile: serverCert, KeyFile: serverKey, ClientCAFile: authority.CAFile,
		Run: func(cmd *exec.Cmd) error { return l.EtcdNamespace().Start(cmd) },
	})
	clientCert, clientKey := issue(100*day, "client")
	h.StoreURL = store.URL()
	h.DaemonArgs = []string{"--etcd-cafile=" + authority.CAFile, "--etcd-certfile=" + clientCert, "--etcd-keyfile=" + clientKey}
	tool, err := toolPath()
	if err != nil {
		t.Fatal(err)
	}
	set := exec.CommandContext(t.Context(), tool, append([]string{"config", "set", UsualConfig(IPv4), "--etcd-prefix=" + Prefix, "--etcd-endpoints=" + store.URL()}, h.DaemonArgs...)...)
	if err := h.Namespace.Start(set); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(set.Wait(), h.StartDaemon(), h.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
	look := func(left string) {
		t.Helper()
		d := diagnose(t, h) // The flags are the daemon's.
		if left == "" {
			if d.names("certificates", doctor.Note) || !d.looked("certificates") || d.code != 0 {
				t.Errorf("certificates are good: %s", d.text())
			}
			return
		}
		for _, of := range []string{clientCert, store.URL()} {
			if !d.names("certificates", doctor.Warning, "a certificate of the store expires in "+left, of+" is good from ") {
				t.Errorf("%s with %s left: %s", of, left, d.text())
			}
		}
	}
	look("")
	// They are written over, as whatever renews them does; etcd and daemon read them anew.
	issue(3*day, "server", at.String())
	issue(3*day, "client")
	look("3 days")
	issue(0, "client")
	if d := diagnose(t, h, "--check=certificates"); !d.names("certificates", doctor.Warning, "expires in 59m0s", clientCert) && !d.names("certificates", doctor.Warning, "expires in 58m0s", clientCert) {
		t.Errorf("an hour is left: %s", d.text())
	}
}

// TestDoctorNamesAClockThatIsWrong: an etcd whose clock is another than this host's, as
// far as anybody can see. The machine's own clock stays: one between says another time.
func TestDoctorNamesAClockThatIsWrong(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 1, Mode: IPv4, NoPods: true})
	h := l.Hosts[0]
	for name, c := range map[string]struct {
		off  time.Duration
		says string
	}{
		"ahead": {-time.Hour, "this host's clock is 1h0m"}, "behind": {10 * time.Minute, "this host's clock is 10m"}, "right": {0, ""},
	} {
		h.StoreURL = misdated(t, l, c.off)
		d := diagnose(t, h)
		word := map[bool]string{true: " behind a server's", false: " ahead of a server's"}[c.off > 0]
		switch {
		case c.off == 0:
			if d.text() != "" || !d.looked("clock") {
				t.Errorf("%s: %s", name, d.text())
			}
		case !d.names("clock", doctor.Warning, c.says, word, h.StoreURL, "$ timedatectl status") || d.code != doctor.ExitWarnings:
			t.Errorf("%s: %s", name, d.text())
		}
	}
}

// misdated is the lab's etcd by way of one that passes all on, and tells the time
// itself, which is off.
func misdated(t *testing.T, l *Lab, off time.Duration) (url string) {
	t.Helper()
	var listener net.Listener
	err := l.EtcdNamespace().Do(func() (err error) {
		listener, err = (&net.ListenConfig{}).Listen(t.Context(), "tcp", netip.AddrPortFrom(l.EtcdAddress(subnet.V4), 0).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				defer func() { _ = conn.Close() }()
				l.answerMisdated(ctx, conn, off)
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		all.Wait()
	})
	return "http://" + listener.Addr().String()
}

// answerMisdated passes a connection of gRPC on, and answers one of plain HTTP.
func (l *Lab) answerMisdated(ctx context.Context, conn net.Conn, off time.Duration) {
	in := bufio.NewReader(conn)
	if begin, err := in.Peek(4); err != nil {
		return
	} else if string(begin) == "GET " {
		date := time.Now().Add(off).UTC().Format("Mon, 02 Jan 2006 15:04:05 GMT")
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nDate: %s\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}", date)
		return
	}
	var etcd net.Conn
	err := l.EtcdNamespace().Do(func() (err error) {
		etcd, err = (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(l.EtcdURL(), "http://"))
		return err
	})
	if err != nil {
		return
	}
	defer func() { _ = etcd.Close() }()
	defer context.AfterFunc(ctx, func() { _ = etcd.Close() })()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(conn, etcd)
		_ = conn.Close()
	}()
	_, _ = io.Copy(etcd, in)
	_ = etcd.Close()
	<-back
}
