package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
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
	kernel *lab.Announcements
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
	l := &listener{device: device, news: make(chan struct{}), counts: map[event]int{}, last: map[event]time.Time{}}
	l.kernel, err = lab.Hear(ns, listenerBuffer, groups, l.heard)
	return l, err
}

func (l *listener) heard(at time.Time, datagram []byte, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	for typ, body := range lab.Messages(datagram) {
		l.read(typ, body, at)
	}
	close(l.news)
	l.news = make(chan struct{})
}

// read counts a message. Those about another device, such as the underlay's neighbours,
// are not of this matter, nor are neighbours that nobody but the kernel has made.
func (l *listener) read(typ uint16, body []byte, at time.Time) {
	const fixed = 8 // Of each kind of message at least.
	if len(body) < fixed {
		return
	}
	e := event{typ, body[0]}
	switch e.typ {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE, unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if lab.OfMulticast(body) {
			return
		}
		fallthrough
	default: // All others begin with a family and have the device at 4.
		if int(binary.NativeEndian.Uint32(body[4:])) != l.device {
			return
		}
	}
	l.counts[e]++
	l.last[e] = at
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

func (l *listener) close() error { return l.kernel.Close() }
