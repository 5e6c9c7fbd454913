package etcdserver

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// HoldPort takes a free port at an address of this host, until the file is closed, and
// tells which. Nobody else is given it: the kernel makes no connection from a port that
// is bound (__inet_hash_connect), so that none of those that look for a server which
// does not run meets itself there. Connections to it are refused, but one who asks for
// it by its number and sets SO_REUSEADDR can listen there, as etcd does.
func HoldPort(at netip.Addr) (held *os.File, port netip.AddrPort, err error) {
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: at.As16()})
	if at.Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Addr: at.As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, port, fmt.Errorf("hold a port: %w", err)
	}
	held = os.NewFile(uintptr(fd), "held port")
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		if err = unix.Bind(fd, address); err == nil {
			address, err = unix.Getsockname(fd)
		}
	}
	if err != nil {
		_ = held.Close()
		return nil, port, fmt.Errorf("hold a port of %s: %w", at, err)
	}
	switch a := address.(type) {
	case *unix.SockaddrInet4:
		port = netip.AddrPortFrom(at, uint16(a.Port))
	case *unix.SockaddrInet6:
		port = netip.AddrPortFrom(at, uint16(a.Port))
	}
	return held, port, nil
}
