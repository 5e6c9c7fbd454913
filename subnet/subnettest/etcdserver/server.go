package etcdserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
)

// Options say how to run an etcd.
type Options struct {
	// Dir holds its data and log. It must exist.
	Dir string
	// ListenClientURL is where clients reach it; "" is http://127.0.0.1:0. Port
	// 0 means a free port of the caller's own network namespace.
	ListenClientURL string
	// AdvertiseClientURL is what [Server.URL] returns; "" is ListenClientURL.
	AdvertiseClientURL string

	// CertFile and KeyFile serve TLS, with a ListenClientURL of https.
	CertFile, KeyFile string
	// ClientCAFile asks clients for a certificate of that authority.
	ClientCAFile string
	// QuotaBytes bounds the database; 0 is etcd's default.
	QuotaBytes int64
	// ClusterToken makes the cluster id another from the next [Server.Wipe] on;
	// "" is etcd's default.
	ClusterToken string
	// AuthTokenTTL is how long a token of a user lives without being used, in
	// whole seconds; 0 is etcd's default.
	AuthTokenTTL time.Duration
	// ElectionTimeout is etcd's; 0 is 100 ms. The least time to live of a lease
	// is one and a half times as long, in whole seconds.
	ElectionTimeout time.Duration

	// Run starts the child; nil is (*exec.Cmd).Start. It is called on a thread
	// that is locked, lives as long as the child and is never used again, so it
	// may enter another network namespace first.
	Run func(*exec.Cmd) error
}

// Limits on waiting. A start takes a few hundred milliseconds, and many times that on a
// machine that is busy with other tests.
const (
	startTimeout = time.Minute
	stopTimeout  = 30 * time.Second
	startTries   = 5
)

// Server is an etcd in a child process. It dies with its parent.
type Server struct {
	o Options
	// port holds a port that was chosen for it, also while it does not run.
	port *os.File

	mu    sync.Mutex
	child *child
}

// child is one run of the process.
type child struct {
	pid  int
	done chan struct{}
}

// errPortTaken means that somebody was faster than the child.
var errPortTaken = errors.New("port was taken")

// Start runs an etcd and returns once it serves. The ctx bounds the start alone.
func Start(ctx context.Context, o Options) (*Server, error) {
	if o.ListenClientURL == "" {
		o.ListenClientURL = "http://127.0.0.1:0"
	}
	for try := 1; ; try++ {
		s := &Server{o: o}
		free, port, err := withFreePort(o.ListenClientURL)
		if err != nil {
			return nil, fmt.Errorf("start etcd: %w", err)
		}
		s.o.ListenClientURL, s.port = free, port
		if o.AdvertiseClientURL == "" {
			s.o.AdvertiseClientURL = free
		}
		err = s.start(ctx)
		if err == nil {
			return s, nil
		}
		if port != nil {
			_ = port.Close()
		}
		if !errors.Is(err, errPortTaken) || free == o.ListenClientURL || try == startTries {
			return nil, err
		}
	}
}

// withFreePort replaces port 0 by one that is free and held.
func withFreePort(text string) (string, *os.File, error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", nil, err
	}
	if u.Port() != "0" {
		return text, nil, nil
	}
	at, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return "", nil, err
	}
	held, port, err := HoldPort(at)
	if err != nil {
		return "", nil, err
	}
	u.Host = port.String()
	return u.String(), held, nil
}

// URL is where clients reach the server: the same for its whole life.
func (s *Server) URL() string { return s.o.AdvertiseClientURL }

// PID is the process id of the last child that was started.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child == nil {
		return 0
	}
	return s.child.pid
}

// Kill ends the process as a crash would, and waits for its end. To kill what
// does not run is no error.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

// Stop ends the process in good order, and waits for its end.
func (s *Server) Stop() error { return s.end(syscall.SIGTERM) }

// Pause stops the process from running, without its clients being told; Resume
// lets it run again. It returns once the process stands still.
func (s *Server) Pause() error {
	if err := s.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for range stopTimeout / time.Millisecond {
		if processState(s.PID()) == 'T' {
			return nil
		}
		<-poll.C
	}
	return fmt.Errorf("pause etcd: it did not stand still within %s", stopTimeout)
}

// processState is the letter that proc_pid_stat(5) has for a process, 0 for one
// that is not there. The name before it may contain anything, even a bracket.
func processState(pid int) byte {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	at := bytes.LastIndex(stat, []byte(") "))
	if err != nil || at < 0 || at+2 >= len(stat) {
		return 0
	}
	return stat[at+2]
}

// Resume undoes [Server.Pause].
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

// Restart starts the server again on its data and its URL, killing it first if
// it still runs.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Kill(); err != nil {
		return err
	}
	return s.start(ctx)
}

// Wipe kills the server, removes its data and starts it again, empty.
func (s *Server) Wipe(ctx context.Context) error {
	if err := s.Kill(); err != nil {
		return err
	}
	if err := os.RemoveAll(s.data()); err != nil {
		return fmt.Errorf("wipe etcd: %w", err)
	}
	return s.start(ctx)
}

// Renew is [Server.Wipe] by which the cluster gets the id that belongs to another
// token; see [Options].
func (s *Server) Renew(ctx context.Context, token string) error {
	s.mu.Lock()
	s.o.ClusterToken = token
	s.mu.Unlock()
	return s.Wipe(ctx)
}

// Backup copies the data of the server, which is killed and started again for
// that, to a folder that is not there yet.
func (s *Server) Backup(ctx context.Context, dir string) error {
	if err := s.Kill(); err != nil {
		return err
	}
	if err := os.CopyFS(dir, os.DirFS(s.data())); err != nil {
		return fmt.Errorf("back etcd up: %w", err)
	}
	return s.start(ctx)
}

// Restore kills the server and starts it again on the data of a
// [Server.Backup], as a machine that is set back to a snapshot: the cluster id
// is the same.
func (s *Server) Restore(ctx context.Context, dir string) error {
	if err := s.Kill(); err != nil {
		return err
	}
	if err := errors.Join(os.RemoveAll(s.data()), os.CopyFS(s.data(), os.DirFS(dir))); err != nil {
		return fmt.Errorf("restore etcd: %w", err)
	}
	return s.start(ctx)
}

// ForgetLeases makes the server, which is stopped and started again for that,
// forget all leases, but not the keys that are on them.
func (s *Server) ForgetLeases(ctx context.Context) error {
	if err := s.Stop(); err != nil {
		return err
	}
	db := backend.NewDefaultBackend(zap.NewNop(), filepath.Join(s.data(), "member", "snap", "db"))
	tx := db.BatchTx()
	tx.LockOutsideApply()
	for _, l := range schema.MustUnsafeGetAllLeases(tx) {
		schema.UnsafeDeleteLease(tx, l)
	}
	tx.Unlock()
	db.ForceCommit()
	if err := db.Close(); err != nil {
		return fmt.Errorf("make etcd forget leases: %w", err)
	}
	return s.start(ctx)
}

func (s *Server) data() string { return filepath.Join(s.o.Dir, dataFolder) }

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child == nil {
		return errors.New("signal etcd: it does not run")
	}
	select {
	case <-s.child.done:
		return errors.New("signal etcd: it does not run")
	default:
		return syscall.Kill(s.child.pid, sig)
	}
}

func (s *Server) end(sig syscall.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.child
	if c == nil {
		return nil
	}
	select {
	case <-c.done:
		return nil
	default:
	}
	if err := syscall.Kill(c.pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop etcd: %w", err)
	}
	limit := time.NewTimer(stopTimeout)
	defer limit.Stop()
	select {
	case <-c.done:
		return nil
	case <-limit.C:
	}
	_ = syscall.Kill(c.pid, syscall.SIGKILL)
	<-c.done
	return fmt.Errorf("stop etcd: it did not end within %s and was killed", stopTimeout)
}

// start runs the child and waits until it serves.
func (s *Server) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	ready, says, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer func() { _ = ready.Close() }()
	c, err := s.spawn(says)
	_ = says.Close() // The child has its own.
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(ready, 4096))
	if err == nil && string(said) == readyWord {
		s.child = c
		return nil
	}
	_ = syscall.Kill(c.pid, syscall.SIGKILL)
	<-c.done
	if err != nil {
		return fmt.Errorf("start etcd: it was not ready in time: %w", err)
	}
	if strings.Contains(string(said), syscall.EADDRINUSE.Error()) {
		return fmt.Errorf("start etcd at %s: %w", s.o.ListenClientURL, errPortTaken)
	}
	return fmt.Errorf("start etcd: %s", bytes.TrimSpace(append(said, s.logTail()...)))
}

// spawn starts the process from a thread that lives as long as the process:
// the kernel sends Pdeathsig when the thread that started it ends
// (PR_SET_PDEATHSIG(2const)). The thread is never unlocked, so it ends with its
// goroutine, whatever Run did to it.
func (s *Server) spawn(says *os.File) (*child, error) {
	cmd, err := s.command(says)
	if err != nil {
		return nil, err
	}
	run := s.o.Run
	if run == nil {
		run = (*exec.Cmd).Start
	}
	c := &child{done: make(chan struct{})}
	started := make(chan error, 1)
	onThread(func() {
		defer close(c.done)
		defer func() { _ = cmd.Stderr.(*os.File).Close() }()
		if err := run(cmd); err != nil {
			started <- err
			return
		}
		c.pid = cmd.Process.Pid
		started <- nil
		_ = cmd.Wait() // How it ended is for whoever ended it, and in its log.
	})
	return c, <-started
}

// onThread calls f on a thread of its own that ends with f. It is never the
// main thread: that cannot end, and another network namespace of its would
// become what /proc/self/ns/net shows for the whole process.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread()
		if syscall.Gettid() != os.Getpid() {
			f()
			return
		}
		locked := make(chan struct{})
		go func() { // Elsewhere, for the main thread is taken.
			runtime.LockOSThread()
			close(locked)
			f()
		}()
		<-locked
		runtime.UnlockOSThread()
	}()
}

func (s *Server) command(says *os.File) (*exec.Cmd, error) {
	text, err := json.Marshal(childOptions{
		Dir: s.o.Dir, Listen: s.o.ListenClientURL, Advertise: s.o.AdvertiseClientURL,
		CertFile: s.o.CertFile, KeyFile: s.o.KeyFile, ClientCAFile: s.o.ClientCAFile, QuotaBytes: s.o.QuotaBytes,
		ElectionMs: uint(s.o.ElectionTimeout.Milliseconds()), ClusterToken: s.o.ClusterToken,
		AuthTokenSeconds: uint(s.o.AuthTokenTTL.Seconds()),
	})
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(s.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{says} // The first is readyFD.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}

func (s *Server) logFile() string { return filepath.Join(s.o.Dir, "etcd.log") }

// logTail is the end of the child's log.
func (s *Server) logTail() []byte {
	log, err := os.ReadFile(s.logFile())
	if err != nil {
		return nil
	}
	return log[max(0, len(log)-2048):]
}
