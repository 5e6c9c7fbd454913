package etcd

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
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

// link is a way to an etcd that can be cut.
type link struct {
	t      *testing.T
	listen net.Listener
	to     string

	mu    sync.Mutex
	cut   bool
	conns []net.Conn
	wg    sync.WaitGroup
}

func newLink(t *testing.T, srv *etcdserver.Server) *link {
	t.Helper()
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{t: t, listen: listen, to: strings.TrimPrefix(srv.URL(), "http://")}
	l.wg.Go(func() {
		for {
			c, err := listen.Accept()
			if err != nil {
				return
			}
			l.carry(c)
		}
	})
	t.Cleanup(func() {
		_ = listen.Close()
		l.Cut(true)
		l.wg.Wait()
	})
	return l
}

func (l *link) URL() string { return "http://" + l.listen.Addr().String() }

func (l *link) carry(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	d, err := net.Dial("tcp", l.to)
	if l.cut || err != nil {
		_ = c.Close()
		if err == nil {
			_ = d.Close()
		}
		return
	}
	l.conns = append(l.conns, c, d)
	for _, pair := range [][2]net.Conn{{c, d}, {d, c}} {
		l.wg.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_, _ = c.Close(), d.Close()
		})
	}
}

// Cut ends all connections and lets none in, or lets them in again.
func (l *link) Cut(cut bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if cut {
		for _, c := range l.conns {
			_ = c.Close()
		}
		l.conns = nil
	}
}

// TestWipedStoreIsFoundWithinTwoSeconds: by the watch and by the one who holds,
// also where the new store's revision has passed the old one's, so that nothing
// but the epoch and the record tells.
func TestWipedStoreIsFoundWithinTwoSeconds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		junk int
		away time.Duration
	}{
		"revision behind": {0, 0}, "revision passed": {60, 0}, "revision passed, after a long time": {60, 8 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			srv := etcdserver.ForTest(t, etcdserver.Options{})
			way := newLink(t, srv)
			s := open(t, Options{Endpoints: []string{way.URL()}})
			s.checkEvery = time.Hour // Which would find it by and by.
			for range 10 {
				newHand(t, srv.URL(), DefaultPrefix).SetConfig([]byte("{}"))
			}
			l := mustWrite(t, s, testLease())
			done := holding(t, s, l)
			r := subnettest.Record(t, s)
			old := r.Next()
			time.Sleep(200 * time.Millisecond)
			way.Cut(true)
			time.Sleep(tc.away)
			if err := srv.Wipe(t.Context()); err != nil {
				t.Fatal(err)
			}
			h := newHand(t, srv.URL(), DefaultPrefix)
			for range tc.junk {
				h.Put("10.5.9.0-24", []byte("{"), false)
			}
			way.Cut(false)
			began := time.Now()
			c := r.Next()
			took := time.Since(began)
			t.Logf("watch found it after %s", took)
			if !c.Whole || !c.Different || c.Epoch == old.Epoch || len(c.Leases) != 0 || c.Revision > old.Revision != (tc.junk > 0) {
				t.Errorf("told %+v", c)
			}
			wantLost(t, done, 2*time.Second)
			t.Logf("hold found it after %s", time.Since(began))
			if found := time.Since(began); found > 2*time.Second {
				t.Errorf("it took %s and %s", took, found)
			}
		})
	}
}

// TestCutLinkMissesNothing: the store is the same, so there is no second
// listing and nothing is lost.
func TestCutLinkMissesNothing(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	way := newLink(t, srv)
	s := open(t, Options{Endpoints: []string{way.URL()}})
	done := holding(t, s, mustWrite(t, s, testLease()))
	r := subnettest.Record(t, s)
	r.Next()
	h := newHand(t, srv.URL(), DefaultPrefix)
	for i := range 5 {
		way.Cut(true)
		h.SetConfig(fmt.Append(nil, i))
		way.Cut(false)
		if c := r.Next(); c.Whole || string(c.Config) != fmt.Sprint(i) {
			t.Errorf("told %+v", c)
		}
	}
	wantHeld(t, done)
}

func TestAuditListsAgainWithoutAWord(t *testing.T) {
	t.Parallel()
	core, logs := observer.New(zap.DebugLevel)
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: newPrefix(), Log: zap.New(core)})
	s.auditEvery = 300 * time.Millisecond
	r := subnettest.Record(t, s)
	for range 4 {
		if c := r.Next(); !c.Whole || c.Different {
			t.Errorf("told %+v", c)
		}
	}
	if logs.Len() != 0 {
		t.Errorf("said %v", logs.All())
	}
}

// TestReturnIsNoticedAtOnce: of an etcd that was away from the start.
func TestReturnIsNoticedAtOnce(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	r := subnettest.Record(t, open(t, Options{Endpoints: []string{srv.URL()}}))
	time.Sleep(8 * time.Second)
	if err := srv.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r.Next()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestPresenceLapses(t *testing.T) {
	t.Parallel()
	prefix := newPrefix()
	s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix})
	s.presenceTTL = 6 * time.Second
	n := subnet.Living{Token: "one", Node: "n1"}
	id, err := s.Appear(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Stay(ctx, id) }()
	time.Sleep(13 * time.Second)
	twin := n
	twin.Token = "two"
	if _, err := s.Appear(t.Context(), twin); err == nil {
		t.Error("a twin was let in beside one that stays")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := s.Appear(t.Context(), n); err != nil { // And does not stay.
		t.Fatal(err)
	}
	eventually(t, "the end of what is not refreshed", func() bool {
		_, err := s.Appear(t.Context(), twin)
		return err == nil
	})
	// A presence that cannot be read is nobody's.
	c := raw(t, shared.URL())
	if _, err := c.Put(t.Context(), prefix+"/ripstop/nodes/n9", "junk"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Appear(t.Context(), subnet.Living{Token: "nine", Node: "n9"}); err != nil {
		t.Error(err)
	}
}

// TestAnotherStoreEndsAStayAtOnce, not when the next renewal is due.
func TestAnotherStoreEndsAStayAtOnce(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	s := open(t, Options{Endpoints: []string{srv.URL()}})
	s.presenceTTL, s.checkEvery = time.Hour, time.Hour
	r := subnettest.Record(t, s)
	r.Next()
	id, err := s.Appear(t.Context(), subnet.Living{Token: "one", Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Stay(t.Context(), id) }()
	time.Sleep(200 * time.Millisecond)
	if err := srv.Wipe(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantLost(t, done, time.Minute)
}

// holderEnv makes this program one that claims and holds in a store until its
// standard input ends. The value is the lease's time to live and the store's URL.
const holderEnv = "RIPSTOP_TEST_HOLDER"

func holdIfChild() {
	what, ok := os.LookupEnv(holderEnv)
	if !ok {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	ttl, where, _ := strings.Cut(what, " ")
	d, err := time.ParseDuration(ttl)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	ctx := context.Background()
	s, err := Open(ctx, Options{Endpoints: []string{where}, LeaseTTL: d})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	cfg, err := subnet.ParseConfig([]byte(`{"Network":"10.5.0.0/16"}`))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	go func() { fmt.Println(s.Watch(ctx, func(subnet.Change) {})) }()
	req := subnet.Request{Self: subnet.Identity{Node: "n1"}, Backend: "vxlan", Endpoints: testLease().Endpoints}
	for {
		l, err := subnet.Claim(ctx, s, cfg, req)
		if err != nil {
			fmt.Println(err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		req.Previous, req.OnlyPrevious = l.Subnets, true
		fmt.Println(s.Hold(ctx, l, nil))
	}
}

// startHolder runs one that ends with the test.
func startHolder(t *testing.T, ttl time.Duration, where string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holderEnv+"="+ttl.String()+" "+where)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

// TestStoppedForLongerThanTheLeaseLives: on waking the lease is found lost and
// claimed again, the same subnet, within a second.
func TestStoppedForLongerThanTheLeaseLives(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	c := raw(t, srv.URL())
	record := func() string {
		resp, err := c.Get(t.Context(), DefaultPrefix+"/subnets/", clientv3.WithPrefix())
		if err != nil || len(resp.Kvs) == 0 {
			return ""
		}
		return string(resp.Kvs[0].Key) + string(resp.Kvs[0].Value)
	}
	child := startHolder(t, 2*time.Second, srv.URL())
	eventually(t, "a claim", func() bool { return record() != "" })
	before := record()
	for range 2 {
		time.Sleep(200 * time.Millisecond)
		if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the lease's end", func() bool { return record() == "" })
		time.Sleep(2 * time.Second)
		if err := child.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, "another claim", func() bool { return record() != "" })
		t.Logf("claimed again after %s", time.Since(began))
		if took := time.Since(began); took > time.Second || record() != before {
			t.Errorf("after %s: %s, was %s", took, record(), before)
		}
	}
}

// TestOutageCostsNoCPU: less than one part in a hundred of a core.
func TestOutageCostsNoCPU(t *testing.T) {
	t.Parallel()
	srv := etcdserver.ForTest(t, etcdserver.Options{})
	child := startHolder(t, time.Hour, srv.URL())
	c := raw(t, srv.URL())
	eventually(t, "a claim", func() bool {
		resp, err := c.Get(t.Context(), DefaultPrefix+"/subnets/", clientv3.WithPrefix())
		return err == nil && len(resp.Kvs) > 0
	})
	if err := srv.Kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	used := func() (ticks int) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		var user, system int
		rest := strings.Fields(string(stat[strings.LastIndex(string(stat), ")")+2:]))
		if _, err := fmt.Sscan(rest[11], &user); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(rest[12], &system); err != nil {
			t.Fatal(err)
		}
		return user + system
	}
	const watched = 10 * time.Second
	before := used()
	time.Sleep(watched)
	share := float64(used()-before) / 100 / watched.Seconds() // A tick is 10 ms (USER_HZ, proc_pid_stat(5)).
	t.Logf("%.2f %% of a core", 100*share)
	if share > 0.01 {
		t.Errorf("%.2f %% of a core", 100*share)
	}
}
