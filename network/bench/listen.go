package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

// event is a kind of announcement of the kernel.
type event struct {
	typ    uint16
	family uint8
}

// The last thing that happens in the kernel when a peer joins, leaves or moves
// to another host.
var (
	routeAdded = event{unix.RTM_NEWROUTE, unix.AF_INET}
	fdbGone    = event{unix.RTM_DELNEIGH, unix.AF_BRIDGE}
	fdbSet     = event{unix.RTM_NEWNEIGH, unix.AF_BRIDGE}
)

// listenerBuffer holds what a burst of 10,000 peers announces, in bytes.
const listenerBuffer = 256 << 20

// listener counts what the kernel announces in a namespace.
type listener struct {
	file *os.File
	done chan struct{}
	// device is the number of the one of which events count, where they name one.
	device int

	mu sync.Mutex
	// news is closed and made anew when there is an event.
	news chan struct{}
	// counts has for each kind how many came, last when the last one did.
	counts map[event]int
	last   map[event]time.Time
	err    error
}

// listen subscribes to groups in a namespace.
func listen(ns *lab.Namespace, groups ...int) (*listener, error) {
	device, err := deviceIndex(ns)
	if err != nil {
		return nil, fmt.Errorf("listen to the kernel in %s: %w", ns.Name(), err)
	}
	l := &listener{device: device, done: make(chan struct{}), news: make(chan struct{}), counts: map[event]int{}, last: map[event]time.Time{}}
	err = ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		l.file = os.NewFile(uintptr(fd), "netlink")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, listenerBuffer); err != nil {
			return err
		}
		// A bind after the subscriptions would end them (netlink_bind).
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return err
		}
		for _, g := range groups {
			if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if l.file != nil {
			err = errors.Join(err, l.file.Close())
		}
		return nil, fmt.Errorf("listen to the kernel in %s: %w", ns.Name(), err)
	}
	go l.run()
	return l, nil
}

func (l *listener) run() {
	defer close(l.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := l.file.Read(buf)
		at := time.Now()
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, syscall.EINTR):
			continue
		}
		l.mu.Lock()
		if err != nil {
			l.err = fmt.Errorf("listen to the kernel: %w", err)
		}
		l.read(buf[:max(n, 0)], at)
		close(l.news)
		l.news = make(chan struct{})
		failed := l.err != nil
		l.mu.Unlock()
		if failed {
			return
		}
	}
}

// read counts the messages of a datagram. Those about another device, such as
// the underlay's neighbours, are not of this matter.
func (l *listener) read(b []byte, at time.Time) {
	const fixed = 8 // Of each kind of message at least.
	for len(b) >= unix.SizeofNlMsghdr+fixed {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr+fixed || size > len(b) {
			return
		}
		e := event{binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr]}
		switch e.typ {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
			l.counts[e]++
			l.last[e] = at
		default: // All others begin with a family and have the device at 4.
			if int(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr+4:])) == l.device {
				l.counts[e]++
				l.last[e] = at
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
}

// count is how many events of a kind there were.
func (l *listener) count(e event) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts[e]
}

// total is how many events there were at all.
func (l *listener) total() (n int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.counts {
		n += c
	}
	return n, l.err
}

// await returns when the n-th event of a kind, or one that came with it, was heard.
func (l *listener) await(ctx context.Context, e event, n int) (time.Time, error) {
	for {
		l.mu.Lock()
		count, at, news, err := l.counts[e], l.last[e], l.news, l.err
		l.mu.Unlock()
		if err != nil || count >= n {
			return at, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return at, fmt.Errorf("wait for %d announcements %v, heard %d: %w", n, e, count, ctx.Err())
		}
	}
}

func (l *listener) close() error {
	err := l.file.Close()
	<-l.done
	return err
}
