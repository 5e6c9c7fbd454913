package etcd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

var _ subnet.Redialer = (*Store)(nil)

// dialer makes the connections to etcd and knows them. They are not wrapped:
// gRPC sets TCP_USER_TIMEOUT on a [net.TCPConn] alone.
type dialer struct {
	connect func(ctx context.Context, network, address string) (net.Conn, error)

	mu sync.Mutex
	// open are the connections that were not closed when it was last looked.
	open map[*net.TCPConn]struct{}
	// trying end what is being dialled.
	trying map[*context.CancelFunc]struct{}
}

func newDialer() *dialer {
	return &dialer{connect: (&net.Dialer{}).DialContext, open: map[*net.TCPConn]struct{}{}, trying: map[*context.CancelFunc]struct{}{}}
}

func (d *dialer) dial(ctx context.Context, hostport string) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.mu.Lock()
	d.trying[&cancel] = struct{}{}
	d.mu.Unlock()
	conn, err := d.connect(ctx, "tcp", hostport)
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

// giveUp closes the connections that stale tells of, and ends all tries: those may
// wait for an answer to an address that is gone.
func (d *dialer) giveUp(stale func(local, remote netip.AddrPort) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for conn := range d.open {
		local, ok := conn.LocalAddr().(*net.TCPAddr)
		remote, both := conn.RemoteAddr().(*net.TCPAddr)
		if ok && both && stale(local.AddrPort(), remote.AddrPort()) {
			_ = conn.Close() // gRPC finds out by its read.
			delete(d.open, conn)
		}
	}
	for cancel := range d.trying {
		(*cancel)()
	}
}

// stale tells whether a connection is from another address than one made now would
// be: answers go where the host no longer is, or by another way. While there is no
// way at all, one from an address that the host has may come to life again.
func stale(local, remote netip.AddrPort) bool {
	conn, err := net.Dial("udp", remote.String()) // Nothing is sent.
	if err != nil {
		probe, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local.Addr(), 0)))
		if err == nil {
			_ = probe.Close()
		}
		return errors.Is(err, unix.EADDRNOTAVAIL)
	}
	defer func() { _ = conn.Close() }()
	now, ok := conn.LocalAddr().(*net.UDPAddr)
	return ok && now.AddrPort().Addr().Unmap() != local.Addr().Unmap()
}

// Redial gives up what cannot be heard of any more; see [subnet.Redialer].
func (s *Store) Redial() {
	s.dialer.giveUp(stale)
	s.client.ActiveConnection().ResetConnectBackoff()
}
