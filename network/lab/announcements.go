package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Announcements are what the kernel announces in one namespace by rtnetlink.
type Announcements struct {
	file *os.File
	done chan struct{}
}

// Hear subscribes to groups (unix.RTNLGRP_*) in a namespace, with a receive buffer of so
// many bytes. It calls heard, always from the same goroutine, with each datagram, which
// is only valid until it returns, and the time at which it was read. An error, among
// which is ENOBUFS as what was lost is not known, is the last that is heard.
func Hear(ns *Namespace, buffer int, groups []int, heard func(at time.Time, datagram []byte, err error)) (*Announcements, error) {
	a := &Announcements{done: make(chan struct{})}
	err := ns.Do(func() error {
		fd, err := Rtnetlink(unix.SOCK_NONBLOCK)
		if err != nil {
			return err
		}
		a.file = os.NewFile(uintptr(fd), "netlink")
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
			return err
		}
		// After the bind, which would end them (netlink_bind).
		for _, g := range groups {
			if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		if a.file != nil {
			err = errors.Join(err, a.file.Close())
		}
		return nil, fmt.Errorf("listen to the kernel in %s: %w", ns.Name(), err)
	}
	go a.run(heard)
	return a, nil
}

func (a *Announcements) run(heard func(time.Time, []byte, error)) {
	defer close(a.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := a.file.Read(buf)
		at := time.Now()
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			heard(at, nil, fmt.Errorf("listen to the kernel: %w", err))
			return
		}
		heard(at, buf[:n], nil)
	}
}

// OfMulticast tells whether the body of a message about a neighbour (struct ndmsg) is of one
// that the kernel made by itself when it sent to a multicast group. It forgets those a minute
// later, if there are many neighbours by then, whatever namespace they are of
// (neigh_periodic_work).
func OfMulticast(body []byte) bool {
	const state = 8
	return len(body) >= state+2 && body[0] != unix.AF_BRIDGE && binary.NativeEndian.Uint16(body[state:])&unix.NUD_NOARP != 0
}

// Close ends it; nothing is heard any more once it returns.
func (a *Announcements) Close() error {
	err := a.file.Close()
	<-a.done
	return err
}

// Rtnetlink opens a bound socket of rtnetlink in the calling thread's namespace.
func Rtnetlink(flags int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|flags, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Messages are the types and bodies of a datagram's messages (netlink(7): struct
// nlmsghdr); what is cut short ends them.
func Messages(datagram []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for b := datagram; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) || !yield(binary.NativeEndian.Uint16(b[4:]), b[unix.SizeofNlMsghdr:size]) {
				return
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}
