package kernel

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// errInterrupted means that the kernel's tables changed during a dump, which
// may therefore lack something (nl_dump_check_consistent).
var errInterrupted = errors.New("dump interrupted by changes")

// answer returns the error in an NLMSG_ERROR or NLMSG_DONE, nil for success. It
// wraps the errno and has the kernel's own words, where there are any.
func answer(m message) error {
	errno := syscall.Errno(-int32(readU32(m.body)))
	if errno == 0 || errno > maxErrno {
		return nil
	}
	rest := m.body[min(4, len(m.body)):]
	if m.typ == unix.NLMSG_ERROR {
		// The header of the request follows, without its body thanks to
		// NETLINK_CAP_ACK (netlink_ack).
		rest = rest[min(unix.SizeofNlMsghdr, len(rest)):]
	}
	text := ""
	if m.flags&unix.NLM_F_ACK_TLVS != 0 {
		for typ, v := range attributes(rest) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				text = readText(v)
			}
		}
	}
	return kernelError(errno, text)
}

func kernelError(errno syscall.Errno, text string) error {
	var err error = errno
	if text != "" {
		err = fmt.Errorf("%w: %s", errno, text)
	}
	if errno == unix.EPERM {
		return fmt.Errorf("%w: %w", backend.ErrNotPermitted, err)
	}
	return err
}

// gone tells whether a delete's error says that the thing is not there. A route
// answers ESRCH, an FDB entry, neighbour or nexthop ENOENT, an address
// EADDRNOTAVAIL, anything on a device that is gone ENODEV.
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EADDRNOTAVAIL)
}
