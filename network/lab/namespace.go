package lab

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace that lives as long as this open file of it,
// or a process in it.
type Namespace struct {
	name string
	file *os.File
}

// NewNamespace makes a network namespace with lo up. The name serves messages
// only.
func NewNamespace(name string) (*Namespace, error) {
	ns := &Namespace{name: name}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace %s: %w", name, explainUnshare(err))
		}
		if ns.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return fmt.Errorf("open network namespace %s: %w", name, err)
		}
		return quietIPv6()
	})
	if err == nil {
		// A route "onlink" is refused as long as lo is down.
		err = ns.netlink(func(h *netlink.Handle) error {
			return h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo"}})
		})
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

func explainUnshare(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: run it as root (CAP_SYS_ADMIN and CAP_NET_ADMIN)", err)
	}
	return err
}

// OpenNamespace opens a namespace by a path such as /proc/123/ns/net. The name
// serves messages only.
func OpenNamespace(name, path string) (*Namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace of %s: %w", name, err)
	}
	return &Namespace{name: name, file: f}, nil
}

// Close lets go of the namespace. It vanishes once no process is left in it.
func (ns *Namespace) Close() error {
	if ns == nil || ns.file == nil {
		return nil
	}
	return ns.file.Close()
}

// Name is what the namespace is called in messages.
func (ns *Namespace) Name() string { return ns.name }

// FD is the number of this process's open file of the namespace: others reach
// it as /proc/PID/fd/FD.
func (ns *Namespace) FD() int { return int(ns.file.Fd()) }

// Inode identifies the namespace on this machine for as long as it lives.
func (ns *Namespace) Inode() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(ns.FD(), &st); err != nil {
		return 0, fmt.Errorf("stat network namespace %s: %w", ns.name, err)
	}
	return st.Ino, nil
}

// Do calls fn on a thread in the namespace and returns its error. Sockets that
// fn opens stay in the namespace; goroutines that it starts are not in it.
func (ns *Namespace) Do(fn func() error) error {
	return onThread(func() error {
		if err := ns.Enter(); err != nil {
			return err
		}
		return fn()
	})
}

// Enter moves the calling thread, which must be locked and never be unlocked,
// into the namespace.
func (ns *Namespace) Enter() error {
	if err := unix.Setns(ns.FD(), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", ns.name, err)
	}
	return nil
}

// netlink calls fn with a handle that works in the namespace from any thread.
func (ns *Namespace) netlink(fn func(*netlink.Handle) error) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(ns.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in network namespace %s: %w", ns.name, err)
	}
	defer h.Close()
	if err := fn(h); err != nil {
		return fmt.Errorf("set up network namespace %s: %w", ns.name, err)
	}
	return nil
}

// errEnded is the error of a function that ended its goroutine, as a failing
// test does.
var errEnded = errors.New("function did not return")

// onThread calls fn on a thread of its own. The thread ends with fn and never
// goes back to the scheduler: what fn did to it stays with it.
func onThread(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		err := errEnded
		defer func() { result <- err }()
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and what /proc says of the process
			// is said of it. As it is taken, the next goroutine gets another.
			defer runtime.UnlockOSThread()
			err = onThread(fn)
			return
		}
		err = fn()
	}()
	return <-result
}

// quietIPv6 makes interfaces of the calling thread's namespace usable at once:
// no duplicate address detection, no search for routers.
func quietIPv6() error {
	if _, err := os.Stat("/proc/sys/net/ipv6"); errors.Is(err, os.ErrNotExist) {
		return nil // The kernel has no IPv6: modes without it still work.
	}
	for _, scope := range []string{"all", "default"} {
		for _, key := range []string{"accept_dad", "dad_transmits", "router_solicitations", "accept_ra"} {
			if err := setSysctl("ipv6/conf/"+scope+"/"+key, "0"); err != nil {
				return err
			}
		}
	}
	return nil
}

// setSysctl writes a setting under net of the calling thread's namespace.
func setSysctl(key, value string) error {
	if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set net/%s to %s: %w", key, value, err)
	}
	return nil
}

// forward turns on forwarding in the namespace.
func (ns *Namespace) forward() error {
	return ns.Do(func() error {
		if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
			return err
		}
		err := setSysctl("ipv6/conf/all/forwarding", "1")
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
}
