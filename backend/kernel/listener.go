package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// listener is a socket of announcements that is waited for beside the runtime's poller.
// That one is woken by each datagram (epoll(7): edge-triggered), of which there are tens of
// thousands when peers come, and by whoever makes those changes. Here the first wakes, and
// none of the others until all were read.
type listener struct {
	// sock blocks, so that only what does not wait may be asked of it.
	sock *socket
	// wake is an eventfd(2) that ends the wait for good.
	wake  *os.File
	waker syscall.RawConn
}

// dialListener opens one, as dial does.
func dialListener(ns *os.File, buffer int) (l *listener, err error) {
	l = &listener{}
	if l.sock, err = dialAs(ns, 0, buffer); err != nil {
		return nil, err
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open eventfd: %w", err), l.sock.close())
	}
	l.wake = os.NewFile(uintptr(fd), "eventfd")
	if l.waker, err = l.wake.SyscallConn(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

// end has await return from now on.
func (l *listener) end() { _, _ = l.wake.Write(host.AppendUint64(nil, 1)) } // It fails only once closed.

// endWith is end when ctx does. The function it returns calls that off.
func (l *listener) endWith(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, l.end)
}

// close ends a wait, too. The descriptors go when that is over.
func (l *listener) close() error {
	l.end()
	return errors.Join(l.sock.close(), l.wake.Close())
}

func (l *listener) join(groups ...int) error { return l.sock.join(groups...) }

func (l *listener) poll() ([]byte, error) { return l.sock.poll() }

// await waits until there is something to read or an error to be told, and takes neither,
// which is true; or until end, which is false.
func (l *listener) await() bool {
	told := false
	_ = l.sock.raw.Control(func(fd uintptr) { // It fails only where the file is closed, and so does the other.
		_ = l.waker.Control(func(wake uintptr) {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
			for {
				if _, err := unix.Poll(p, -1); !errors.Is(err, unix.EINTR) {
					told = err == nil && p[1].Revents == 0
					return
				}
			}
		})
	})
	return told
}
