package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// doomedEnv makes the test binary bring a lab up and wait for its death. Its
// value is the path of ripstopd.
const doomedEnv = "RIPSTOP_LAB_DOOMED"

// remains is what a lab could leave behind.
type remains struct {
	PIDs       []int
	Namespaces []identity
}

// identity is that of a network namespace. The kernel gives the number of one that is gone
// to the next one at once, which another test's may be; a cookie it never gives again
// (SO_NETNS_COOKIE).
type identity struct{ Inode, Cookie uint64 }

func (i identity) link() string { return fmt.Sprintf("net:[%d]", i.Inode) }

// cookieHere is that of the namespace of the calling thread.
func cookieHere() (uint64, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
}

// isAt tells whether a path leads to the namespace, rather than to another of its number.
func (i identity) isAt(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false // It went meanwhile.
	}
	defer func() { _ = unix.Close(fd) }()
	var cookie uint64
	err = onThread(func() (err error) {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return err
		}
		cookie, err = cookieHere()
		return err
	})
	return err == nil && cookie == i.Cookie
}

func remainsOf(l *Lab) (remains, error) {
	r := remains{PIDs: []int{l.Etcd.PID()}}
	for _, h := range l.Hosts {
		r.PIDs = append(r.PIDs, h.DaemonPID())
	}
	for _, ns := range l.Namespaces() {
		var i identity
		var err error
		if i.Inode, err = ns.Inode(); err == nil {
			err = ns.Do(func() (err error) { i.Cookie, err = cookieHere(); return err })
		}
		if err != nil {
			return r, err
		}
		r.Namespaces = append(r.Namespaces, i)
	}
	return r, nil
}

// there lists what of it is still there.
func (r remains) there() []string {
	var out []string
	for _, pid := range r.PIDs {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !strings.Contains(string(text), ") Z ") {
			out = append(out, fmt.Sprintf("process %s", text))
		}
	}
	held := map[string][]string{} // Where there is a namespace of that number.
	for _, pattern := range []string{"/proc/[0-9]*/task/[0-9]*/ns/net", "/proc/[0-9]*/fd/*"} {
		links, _ := filepath.Glob(pattern) // The pattern is well formed.
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, "net:[") {
				held[to] = append(held[to], link)
			}
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for mount := range strings.Lines(string(mounts)) { // proc_pid_mountinfo(5): the fourth is the root, the fifth where it is.
		if words := strings.Fields(mount); len(words) > 4 {
			held[words[3]] = append(held[words[3]], words[4])
		}
	}
	for _, i := range r.Namespaces {
		if at := slices.IndexFunc(held[i.link()], i.isAt); at >= 0 {
			out = append(out, fmt.Sprintf("namespace %s, held by %s", i.link(), held[i.link()][at]))
		}
	}
	return out
}

// areGone waits until nothing of it is there.
func (r remains) areGone(t *testing.T, what string) {
	t.Helper()
	var left []string
	if _, in := timeUntil(30*time.Second, func() bool { left = r.there(); return len(left) == 0 }); !in {
		t.Fatalf("of the %s there is after 30 s:\n%s", what, strings.Join(left, "\n"))
	}
}

// doomed is a lab that will be killed. Nobody asks for it, but its namespaces are open
// files, and what is not reached any more would be collected and closed.
var doomed *Lab

// runIfDoomed is the main of a lab that will be killed.
func runIfDoomed() {
	daemon, ok := os.LookupEnv(doomedEnv)
	if !ok {
		return
	}
	err := func() (err error) {
		doomed, err = Start(context.Background(), Options{Nodes: 2, Mode: IPv4, Dir: os.Args[1], Daemon: daemon})
		if err != nil {
			return err
		}
		r, err := remainsOf(doomed)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

// A lab that is killed leaves no process and no namespace.
func TestKilledLabLeavesNothing(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, t.TempDir())
	cmd.Env = append(os.Environ(), doomedEnv+"="+daemonPath)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var left remains
	err = json.NewDecoder(out).Decode(&left)
	if there := left.there(); err == nil && len(there) != len(left.PIDs)+len(left.Namespaces) {
		t.Errorf("of %v only these are seen while the lab lives: %q", left, there)
	}
	if err := errors.Join(err, cmd.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // It was killed.
	began := time.Now()
	left.areGone(t, "killed lab")
	t.Logf("all gone %s after the kill", time.Since(began).Round(time.Millisecond))
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	l, err := Start(t.Context(), Options{Nodes: 1, Mode: IPv6, Daemon: daemonPath})
	if err != nil {
		t.Fatal(err)
	}
	left, err := remainsOf(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	left.areGone(t, "closed lab")
	if _, err := os.Stat(l.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary folder %s is still there: %v", l.Dir, err)
	}
}

// A daemon that fails ends the start at once, with its last words.
func TestStartTellsWhatTheDaemonSaid(t *testing.T) {
	t.Parallel()
	stub := filepath.Join(t.TempDir(), "stub")
	if err := os.WriteFile(stub, []byte("#!/bin/sh\necho the moon is in the wrong house >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Start(t.Context(), Options{Nodes: 1, Mode: IPv4, Daemon: stub, Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "node1") || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "wrong house") {
		t.Errorf("error is %v", err)
	}
}

// A start that is cancelled ends soon and leaves nothing.
func TestStartHeedsContext(t *testing.T) {
	t.Parallel()
	stub := filepath.Join(t.TempDir(), "stub")
	if err := os.WriteFile(stub, []byte("#!/bin/sh\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	_, err := Start(ctx, Options{Nodes: 1, Mode: IPv4, Daemon: stub, Dir: t.TempDir()})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	if took := time.Since(began); took > readyLimit/2 { // Else it waits for the daemon.
		t.Errorf("it took %s", took)
	}
}

// A child is killed when the lab's process is, though the thread that started
// it would have ended long before.
func TestChildKeepsItsThread(t *testing.T) {
	t.Parallel()
	ns, err := NewNamespace("child")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	cmd := exec.Command("sleep", "60")
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	if err := cmd.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the child ended by itself: %v", err)
	}
	inside, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if inode, err2 := ns.Inode(); err != nil || err2 != nil || inside != fmt.Sprintf("net:[%d]", inode) {
		t.Errorf("the child is in %s, want inode %d: %v, %v", inside, inode, err, err2)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // It was killed.
}

// TestANumberGivenAgainIsNoRemains: a namespace that is there has not remained of a lab
// whose one had its number before.
func TestANumberGivenAgainIsNoRemains(t *testing.T) {
	t.Parallel()
	ns := kerneltest.Namespace(t)
	var st unix.Stat_t
	if err := unix.Fstat(int(ns.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	here := identity{Inode: st.Ino}
	kerneltest.Do(t, ns, func() (err error) { here.Cookie, err = cookieHere(); return err })
	if there := (remains{Namespaces: []identity{here}}).there(); len(there) != 1 {
		t.Errorf("of a namespace that is there: %q", there)
	}
	here.Cookie++
	if there := (remains{Namespaces: []identity{here}}).there(); len(there) != 0 {
		t.Errorf("of one that had its number: %q", there)
	}
}
