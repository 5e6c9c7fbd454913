// Package kerneltest makes network namespaces for tests. They leave no trace: a
// namespace lives as long as the descriptor of it.
package kerneltest

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace makes a new network namespace with lo up, which the test's end
// closes. It takes CAP_SYS_ADMIN.
func Namespace(t testing.TB) *os.File {
	t.Helper()
	var ns *os.File
	err := inNewThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		var err error
		if ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return loopbackUp()
	})
	if err != nil {
		t.Fatalf("make network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// Do runs f on a thread in the namespace. The thread ends with f, and so does
// all that it changed about itself.
func Do(t testing.TB, ns *os.File, f func() error) {
	t.Helper()
	err := inNewThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		t.Fatalf("in network namespace: %v", err)
	}
}

// inNewThread runs f on a thread that serves no other goroutine and dies.
func inNewThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // And is never unlocked.
		done <- f()
	}()
	return <-done
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}
