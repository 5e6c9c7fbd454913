package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/ripstop-net/ripstop/network/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a source that says what it is told to.
type fake struct {
	mu    sync.Mutex
	now   status.Status
	stuck bool
	asked status.Query
}

func (f *fake) Status() status.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fake) Peers(_ context.Context, q status.Query) status.Page {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = q
	return status.Page{Version: status.Version, Peers: []status.Peer{{Node: "node2"}}, Total: 1}
}

func (f *fake) Beat(ctx context.Context) error {
	f.mu.Lock()
	stuck := f.stuck
	f.mu.Unlock()
	if stuck {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (f *fake) set(change func(*status.Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.now)
	f.now.Conditions = status.Judge(f.now, time.Now(), "")
	f.now.Ready = status.Met(f.now.Conditions)
}

// well is a node to which nothing is wrong.
func well() *fake {
	f := &fake{}
	f.set(func(s *status.Status) {
		*s = status.Status{
			Version: status.Version, Node: "node1", Up: true,
			Lease:   status.Lease{Held: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.5.1.0/24")}},
			Devices: []status.Device{{Name: "ripstop.1", Right: true, MTU: 1450}}, Host: status.Host{Kept: true},
			Peers: status.Peers{Count: 3}, Store: status.Store{State: status.Current, Heard: time.Now()}, Loop: status.Loop{Passes: 1},
		}
	})
	return f
}

// rig is a server that runs until the test ends.
type rig struct {
	dir    string
	server *Server
	client *status.Client
	level  zap.AtomicLevel
	logs   *observer.ObservedLogs
	stop   func()
}

func run(t *testing.T, source Source, listen string) *rig {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	r := &rig{dir: t.TempDir(), level: zap.NewAtomicLevel(), logs: logs}
	var err error
	if r.server, err = Open(Options{Dir: r.dir, Listen: listen, Level: r.level, Log: zap.New(core)}, source); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.server.Run(ctx) }()
	r.client = status.NewClient(r.dir)
	r.stop = sync.OnceFunc(func() {
		r.client.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// address is that on TCP.
func (r *rig) address() string {
	at, _ := r.server.tcp.now()
	return at
}

func (r *rig) get(t *testing.T, path string) (int, string) {
	t.Helper()
	code, body, err := r.client.Get(t.Context(), path)
	if err != nil {
		t.Fatalf("get %s: %v", path, err)
	}
	return code, body
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// TestReadyNamesEachConditionThatFails, and is 200 again when it no longer does.
func TestReadyNamesEachConditionThatFails(t *testing.T) {
	f := well()
	r := run(t, f, "")
	for name, tc := range map[string]struct {
		harm func(*status.Status)
		want string
	}{
		status.Started: {func(s *status.Status) {
			s.Up, s.Waiting = false, &status.Waiting{For: "network config", Reason: "there is none"}
		}, "waits for network config: there is none"},
		status.LeaseHeld:     {func(s *status.Status) { s.Lease.Held, s.Lease.Problem = false, "lease lost: deleted" }, "lease lost: deleted"},
		status.Undisputed:    {func(s *status.Status) { s.Trouble = "node9 has its subnet" }, "node9 has its subnet"},
		status.UnderlayThere: {func(s *status.Status) { s.Underlay = []status.Underlay{{Family: "IPv4", Problem: "eth0 is down"}} }, "IPv4: eth0 is down"},
		status.StoreKnown:    {func(s *status.Status) { s.Store.State = status.Silent }, "nothing says why it is silent"},
		status.DeviceRight:   {func(s *status.Status) { s.Devices[0].Right, s.Devices[0].Problem = false, "is down" }, "ripstop.1: is down"},
		status.EntriesRight:  {func(s *status.Status) { s.Loop.Failing = 2 }, "2 entries cannot be had"},
	} {
		good := f.Status()
		good.Devices = append([]status.Device(nil), good.Devices...)
		if code, body := r.get(t, status.PathReady); code != http.StatusOK || strings.Contains(body, "[-]") {
			t.Errorf("before %s: %d\n%s", name, code, body)
		}
		f.set(tc.harm)
		code, body := r.get(t, status.PathReady)
		if code != http.StatusServiceUnavailable || strings.Count(body, "[-]") != 1 || !strings.Contains(body, fmt.Sprintf("[-]%s failed: %s", name, tc.want)) &&
			!strings.Contains(body, tc.want) {
			t.Errorf("%s: %d\n%s", name, code, body)
		}
		f.set(func(s *status.Status) { *s = good })
	}
	f.set(func(s *status.Status) {
		s.Store.State, s.Store.Outage = status.Stale, &status.Outage{Reason: "connection refused", Since: time.Now()}
	})
	if code, body := r.get(t, status.PathReady); code != http.StatusOK || !strings.Contains(body, "knowingly stale") || !strings.Contains(body, "connection refused") {
		t.Errorf("with the store away: %d\n%s", code, body)
	}
}

// TestHealthIsTheLoops: it fails once the loop has not answered for long, and not
// because the node is not ready.
func TestHealthIsTheLoops(t *testing.T) {
	f := well()
	f.set(func(s *status.Status) { s.Lease.Held = false })
	f.stuck = true
	r := run(t, f, "")
	if code, body := r.get(t, status.PathHealth); code != http.StatusOK || body != "ok\n" {
		t.Errorf("at first: %d %s", code, body)
	}
	past := time.Now().Add(-beatMissed - time.Second)
	r.server.beat.Store(&past)
	code, body := r.get(t, status.PathHealth)
	_, said, _ := strings.Cut(strings.TrimSpace(body), "has not answered for ")
	late, err := time.ParseDuration(said)
	if most := time.Since(past).Round(time.Second); code != http.StatusServiceUnavailable || err != nil || late < 31*time.Second || late > most {
		t.Errorf("with a loop that is stuck: %d %s", code, body)
	}
	f.mu.Lock()
	f.stuck = false
	f.mu.Unlock()
	r.stop()
	again := run(t, f, "")
	again.server.beat.Store(&past)
	eventually(t, "a beat", func() bool { code, _ := again.get(t, status.PathHealth); return code == http.StatusOK })
}

// TestSocketIsTheOwnersAlone, whatever the umask, and takes a dead daemon's place.
func TestSocketIsTheOwnersAlone(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := t.TempDir()
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, status.SocketName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	client := status.NewClient(dir)
	defer client.Close()
	if _, err := client.Status(t.Context()); !errors.Is(err, status.ErrNotRunning) || !strings.Contains(err.Error(), "has crashed") {
		t.Errorf("a dead daemon's socket: %v", err)
	}
	if process, err := client.Process(t.Context()); process != 0 || !errors.Is(err, status.ErrNotRunning) {
		t.Errorf("a dead daemon's process is %d, %v", process, err)
	}
	s, err := listenSocket(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, status.SocketName))
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	if process, err := client.Process(t.Context()); process != os.Getpid() || err != nil { // Nobody answers.
		t.Errorf("its process is %d, %v", process, err)
	}
	if inside, _ := os.ReadDir(dir); len(inside) != 1 {
		t.Errorf("the folder has %v", inside)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if inside, _ := os.ReadDir(dir); len(inside) != 0 {
		t.Errorf("left behind: %v", inside)
	}
	if _, err := client.Status(t.Context()); !errors.Is(err, status.ErrNotRunning) || !strings.Contains(err.Error(), "--run-dir") {
		t.Errorf("no socket: %v", err)
	}
}

// TestLongRunDir: a socket's address has room for 107 bytes.
func TestLongRunDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Dir: dir, Level: zap.NewAtomicLevel(), Log: zap.NewNop()}, well())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	client := status.NewClient(dir)
	if got, err := client.Status(t.Context()); err != nil || got.Node != "node1" {
		t.Errorf("%+v, %v", got, err)
	}
	client.Close()
	cancel()
	<-done
}

// TestTCPHasNothingThatChangesOrCosts: no log level, no profiles; what changes is
// refused.
func TestTCPHasNothingThatChangesOrCosts(t *testing.T) {
	r := run(t, well(), "127.0.0.1:0")
	base := "http://" + r.address()
	ask := func(method, path string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for path, want := range map[string]int{
		status.PathHealth: 200, status.PathReady: 200, status.PathMetrics: 200, status.PathStatus: 200, status.PathPeers: 200,
		status.PathLogLevel: 404, "/debug/pprof/": 404, "/debug/pprof/heap": 404, "/": 404, status.PathPeers + "?limit=0": 400,
	} {
		if code, body := ask(http.MethodGet, path); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
		if code, _ := ask(method, status.PathStatus); code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, code)
		}
	}
	if code, body := r.get(t, "/debug/pprof/heap?debug=1"); code != 200 || !strings.Contains(body, "heap profile") {
		t.Errorf("a profile on the socket: %d", code)
	}
	if n := r.logs.FilterMessage("answering on TCP").Len(); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// TestTakenPortIsTriedAgain: pods do not need it, so the daemon answers at its socket,
// says once what is the matter, shows it, and answers on TCP as soon as it can.
func TestTakenPortIsTriedAgain(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := taken.Addr().String()
	r := run(t, well(), at)
	s, err := r.client.Status(t.Context())
	if err != nil || !s.Ready || s.Daemon.Listen != at || !strings.Contains(s.Daemon.ListenProblem, "address already in use") {
		t.Errorf("while it is taken: %+v, %v", s.Daemon, err)
	}
	r.server.tcp.try()
	if n := r.logs.FilterMessage("nothing is answered at --listen: tried again").Len(); n != 1 {
		t.Errorf("said %d times", n)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(3*listenAgain + time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s, err := r.client.Status(t.Context())
		if err == nil && s.Daemon.ListenProblem == "" && s.Daemon.Listen == at {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it is free again: %+v, %v", s.Daemon, err)
		}
	}
	resp, err := http.Get("http://" + at + status.PathReady)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
}

// TestPagesOnTCPAreRationed, in what is answered at once and in what is in a second;
// at the socket they are not.
func TestPagesOnTCPAreRationed(t *testing.T) {
	f := well()
	r := run(t, f, "127.0.0.1:0")
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * mostPages}}
	defer c.CloseIdleConnections()
	ask := func(path string) (int, string, http.Header) {
		resp, err := c.Get("http://" + r.address() + path)
		if err != nil {
			t.Error(err)
			return 0, "", nil
		}
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), resp.Header
	}
	f.mu.Lock() // Whoever asks for peers waits now.
	codes := make(chan int, mostPages)
	for range mostPages {
		go func() {
			code, _, _ := ask(status.PathPeers)
			codes <- code
		}()
	}
	refused := func() bool {
		code, body, header := ask(status.PathPeers)
		return code == http.StatusServiceUnavailable && strings.Contains(body, "ask again") && header.Get("Retry-After") == "1"
	}
	for end := time.Now().Add(time.Minute); len(r.server.ration.busy) < mostPages; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("they are not being answered")
		}
	}
	if !refused() {
		t.Error("one more than is answered at once is not refused")
	}
	f.mu.Unlock()
	for range mostPages {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("one of those answered at once: %d", code)
		}
	}
	counts := map[int]int{}
	began := time.Now()
	for range 3 * pagesAtOnce {
		code, _, _ := ask(status.PathPeers)
		counts[code]++
	}
	most := pagesAtOnce + int(time.Since(began).Seconds()*pagesPerSecond) + 1
	if counts[200] == 0 || counts[200] > most || counts[200]+counts[http.StatusTooManyRequests] != 3*pagesAtOnce {
		t.Errorf("answered %v, at most %d", counts, most)
	}
	if code, _, _ := ask(status.PathReady); code != http.StatusOK {
		t.Errorf("a probe is answered %d", code)
	}
	for range 3 * pagesAtOnce {
		if _, err := r.client.Peers(t.Context(), status.Query{}); err != nil {
			t.Fatalf("at the socket: %v", err)
		}
	}
}

// TestSlowClientsHoldNothing: with clients that send nothing and read nothing,
// others are answered at once.
func TestSlowClientsHoldNothing(t *testing.T) {
	r := run(t, well(), "127.0.0.1:0")
	for i := range 40 {
		conn, err := net.Dial("tcp", r.address())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if i%2 == 0 {
			_, _ = fmt.Fprintf(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n")
		} else {
			_, _ = fmt.Fprintf(conn, "GET /v1/peers HTTP/1.1\r\nHost: x\r\n\r\n")
		}
	}
	resp, err := http.Get("http://" + r.address() + status.PathHealth)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	huge, err := net.Dial("tcp", r.address())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = huge.Close() }()
	_, _ = fmt.Fprintf(huge, "GET /healthz HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n", strings.Repeat("x", 64<<10))
	answer := make([]byte, 64)
	if n, _ := huge.Read(answer); !bytes.Contains(answer[:n], []byte(" 431 ")) {
		t.Errorf("64 KiB of headers: %s", answer[:n])
	}
}

func TestLogLevelIsChangedWhileRunning(t *testing.T) {
	r := run(t, well(), "")
	ctx := t.Context()
	if level, err := r.client.Level(ctx); err != nil || level != "info" {
		t.Errorf("%s, %v", level, err)
	}
	for range 2 {
		if level, err := r.client.SetLevel(ctx, "debug"); err != nil || level != "debug" || r.level.Level() != zapcore.DebugLevel {
			t.Errorf("%s, %v", level, err)
		}
	}
	for _, bad := range []string{"", "loud", "fatal", "panic"} {
		if _, err := r.client.SetLevel(ctx, bad); bad != "" && (err == nil || !strings.Contains(err.Error(), "give debug, info, warn or error")) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if s, err := r.client.Status(ctx); err != nil || s.Daemon.LogLevel != r.level.String() {
		t.Errorf("%+v, %v", s.Daemon, err)
	}
	if n := r.logs.FilterMessage("log level changed").FilterField(zap.Stringer("to", zapcore.DebugLevel)).Len(); n != 1 {
		t.Errorf("said %d times: %v", n, r.logs.All())
	}
}

func TestPeersAreAskedForByPage(t *testing.T) {
	f := well()
	r := run(t, f, "")
	page, err := r.client.Peers(t.Context(), status.Query{Limit: 7, Node: "node2", Within: netip.MustParsePrefix("10.5.0.0/16")})
	if err != nil || len(page.Peers) != 1 || f.asked.Limit != 7 || f.asked.Node != "node2" || f.asked.Within.String() != "10.5.0.0/16" {
		t.Errorf("%+v, asked %+v, %v", page, f.asked, err)
	}
	for query, want := range map[string]string{
		"limit=0": "1 to 1000", "limit=1001": "1 to 1000", "limit=x": "1 to 1000", "continue=junk": "not from an earlier page",
		"node=%00": "node name", "subnet=10.5": "neither a prefix",
	} {
		code, body := r.get(t, status.PathPeers+"?"+query)
		var e status.Error
		if code != http.StatusBadRequest || json.Unmarshal([]byte(body), &e) != nil || !strings.Contains(e.Error, want) {
			t.Errorf("%s: %d %s", query, code, body)
		}
	}
}
