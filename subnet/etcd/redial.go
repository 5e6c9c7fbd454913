package etcd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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
	// sources are the addresses from which the host would connect to those that were
	// dialled, as it was last looked: the zero Addr where there is no way.
	sources map[netip.AddrPort]netip.Addr
	// cut is when connections were last given up.
	cut time.Time
}

// mostSources bounds the addresses of etcd's that are known.
const mostSources = 64

func newDialer() *dialer {
	d := &dialer{open: map[*net.TCPConn]struct{}{}, trying: map[*context.CancelFunc]struct{}{}, sources: map[netip.AddrPort]netip.Addr{}}
	d.connect = (&net.Dialer{ControlContext: d.note}).DialContext
	return d
}

// note learns what is dialled, after names were looked up.
func (d *dialer) note(_ context.Context, _, address string, _ syscall.RawConn) error {
	remote, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil // It is of no use here, and dialled all the same.
	}
	source, _ := sourceTo(remote)
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.sources[remote]; known || len(d.sources) < mostSources {
		d.sources[remote] = source
	}
	return nil
}

// sourceTo is the address from which the host would connect to another now.
func sourceTo(remote netip.AddrPort) (netip.Addr, error) {
	conn, err := net.Dial("udp", remote.String()) // Nothing is sent.
	if err != nil {
		return netip.Addr{}, err
	}
	defer func() { _ = conn.Close() }()
	now, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.Addr{}, net.ErrClosed
	}
	return now.AddrPort().Addr().Unmap(), nil
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

// giveUp closes the connections that stale tells of. Where there are such, or the host
// would connect from another address than when it last looked, it ends all tries, which
// may wait for an answer to one that is gone, and tells so. Else it does nothing: on a
// host whose interfaces come and go, a try must have its time.
func (d *dialer) giveUp(stale func(local, remote netip.AddrPort) bool) (otherwise bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for conn := range d.open {
		local, ok := conn.LocalAddr().(*net.TCPAddr)
		remote, both := conn.RemoteAddr().(*net.TCPAddr)
		if ok && both && stale(local.AddrPort(), remote.AddrPort()) {
			d.cut = time.Now()
			_ = conn.Close() // gRPC finds out by its read.
			delete(d.open, conn)
			otherwise = true
		}
	}
	for remote, was := range d.sources {
		is, _ := sourceTo(remote)
		otherwise = otherwise || is != was
		d.sources[remote] = is
	}
	if otherwise {
		for cancel := range d.trying {
			(*cancel)()
		}
	}
	return otherwise
}

// stale tells whether a connection is from another address than one made now would
// be: answers go where the host no longer is, or by another way. While there is no
// way at all, one from an address that the host has may come to life again.
func stale(local, remote netip.AddrPort) bool {
	now, err := sourceTo(remote)
	if err != nil {
		probe, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local.Addr(), 0)))
		if err == nil {
			_ = probe.Close()
		}
		return errors.Is(err, unix.EADDRNOTAVAIL)
	}
	return now != local.Addr().Unmap()
}

// cutLasts is how long a connection that was given up may still take requests with it:
// until gRPC has found that it is closed.
const cutLasts = time.Second

// cutSince tells whether a request that began then may have been asked over a connection
// that was given up.
func (d *dialer) cutSince(began time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.cut.IsZero() && began.Before(d.cut.Add(cutLasts))
}

// readAll reads at one revision. What was cut off with a connection that the node gave up
// itself is asked again and is no failure of etcd's: the client does so for a Get, and not
// for a transaction.
func (s *Store) readAll(ctx context.Context, ask ...clientv3.Op) (*clientv3.TxnResponse, error) {
	b := pauses(watchFirstWait, cheapMostWait)
	for {
		began := time.Now()
		resp, err := s.client.Txn(ctx).Then(ask...).Commit()
		if status.Code(err) != codes.Unavailable || !s.dialer.cutSince(began) || !pause(ctx, b) {
			return resp, err
		}
	}
}

// Redial gives up what cannot be heard of any more; see [subnet.Redialer].
func (s *Store) Redial() {
	if s.dialer.giveUp(stale) {
		s.client.ActiveConnection().ResetConnectBackoff()
	}
}
