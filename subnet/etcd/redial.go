package etcd

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"github.com/ripstop-net/ripstop/subnet"
)

var _ subnet.Redialer = (*Store)(nil)

// dialer makes the connections to etcd and knows them. They are not wrapped:
// gRPC sets TCP_USER_TIMEOUT on a [net.TCPConn] alone.
type dialer struct {
	mu sync.Mutex
	// open are the connections that were not closed when it was last looked.
	open map[*net.TCPConn]struct{}
	// trying end what is being dialled.
	trying map[*context.CancelFunc]struct{}
}

func newDialer() *dialer {
	return &dialer{open: map[*net.TCPConn]struct{}{}, trying: map[*context.CancelFunc]struct{}{}}
}

func (d *dialer) dial(ctx context.Context, hostport string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.mu.Lock()
	d.trying[&cancel] = struct{}{}
	d.mu.Unlock()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", hostport)
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.trying, &cancel)
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		d.forgetClosed()
		d.open[tcp] = struct{}{}
	}
	return conn, nil
}

// forgetClosed bounds what is known to what is open. It is for who has the lock.
func (d *dialer) forgetClosed() {
	for conn := range d.open {
		raw, err := conn.SyscallConn()
		if err != nil || raw.Control(func(uintptr) {}) != nil {
			delete(d.open, conn)
		}
	}
}

// giveUp closes the connections from addresses other than those given, and ends
// all tries: those may wait for an answer to an address that is gone.
func (d *dialer) giveUp(host map[netip.Addr]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for conn := range d.open {
		if at, ok := conn.LocalAddr().(*net.TCPAddr); ok && !host[at.AddrPort().Addr().Unmap().WithZone("")] {
			_ = conn.Close() // gRPC finds out by its read.
			delete(d.open, conn)
		}
	}
	for cancel := range d.trying {
		(*cancel)()
	}
}

// Redial gives up what cannot be heard of any more; see [subnet.Redialer].
func (s *Store) Redial() {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return // Timeouts find out too.
	}
	host := map[netip.Addr]bool{}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			host[p.Addr().Unmap()] = true
		}
	}
	s.dialer.giveUp(host)
	s.client.ActiveConnection().ResetConnectBackoff()
}
