package kernel

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// TellSettings has f called with what a device of ours was given of settings
// that are the host's habit otherwise, each time one is made. f must not wait. It
// comes before all else.
func (k *Kernel) TellSettings(f func(device, settings string)) { k.tellSettings = f }

// settle gives a new device its settings.
func (k *Kernel) settle(ctx context.Context, d backend.Device, index int) error {
	if err := k.openIPv4(ctx, index); err != nil {
		return err
	}
	settings := "forwarding 1, rp_filter 2"
	if d.NoTxChecksum {
		if err := k.setTxChecksum(d.Name, false); err != nil {
			return err
		}
		settings += ", tx-checksumming off"
	}
	if k.tellSettings != nil {
		k.tellSettings(d.Name, settings)
	}
	return nil
}

// openIPv4 has the kernel forward what comes out of the tunnel, and not drop it
// because the way back to the sender is another, as it is with a direct route.
// The larger of this rp_filter and that of all links holds (IN_DEV_RPFILTER), so
// that 2 does where the host has 1 for all. By IFLA_INET_CONF it can be set where
// /proc/sys is read-only (inet_set_link_af); of IPv6, which has no such filter
// and forwards by one setting for all links, nothing can be set so.
func (k *Kernel) openIPv4(ctx context.Context, index int) error {
	err := k.setIPv4(ctx, index, map[uint16]uint32{confForwarding: 1, confRPFilter: looseRPFilter})
	// A link of an MTU that IPv4 cannot have has no such settings.
	if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("set forwarding and rp_filter: %w", err)
	}
	return nil
}

func (k *Kernel) setIPv4(ctx context.Context, index int, settings map[uint16]uint32) error {
	return k.request(ctx, func(w *builder, seq uint32) {
		host.PutUint32(w.begin(unix.RTM_SETLINK, 0, seq, sizeLinkMessage)[4:], uint32(index))
		spec := w.nest(unix.IFLA_AF_SPEC)
		inet := w.nest(unix.AF_INET)
		conf := w.nest(attrInetConf)
		for number, value := range settings {
			w.u32(number, value)
		}
		w.close(conf)
		w.close(inet)
		w.close(spec)
		w.ask()
	}, nil)
}

// ethtoolValue is struct ethtool_value.
type ethtoolValue struct{ command, data uint32 }

// ethtoolRequest is struct ifreq with a pointer in its union, which is of up to 24
// bytes.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data *ethtoolValue
	_    [16]byte
}

// noTxChecksum tells whether a device's tx-checksumming is off. One that cannot
// tell has it as the kernel will.
func (k *Kernel) noTxChecksum(device string) (bool, error) {
	on, err := k.ethtool(device, unix.ETHTOOL_GTXCSUM, 0)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read tx-checksumming of %s: %w", device, err)
	}
	return on == 0, nil
}

func (k *Kernel) setTxChecksum(device string, on bool) error {
	var value uint32
	if on {
		value = 1
	}
	if _, err := k.ethtool(device, unix.ETHTOOL_STXCSUM, value); err != nil {
		return fmt.Errorf("set tx-checksumming: %w", err)
	}
	return nil
}

// ethtool makes one request of those that take a number and give one. Features
// can be set over netlink only from Linux 5.8 on, and older kernels are those that
// need it, so it is an ioctl, for which any socket will do (sock_do_ioctl).
func (k *Kernel) ethtool(device string, command, value uint32) (uint32, error) {
	if k.sock == nil {
		var err error
		if k.sock, err = dial(k.ns, requestBuffer); err != nil {
			return 0, err
		}
	}
	data := &ethtoolValue{command: command, data: value}
	request := &ethtoolRequest{data: data}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	var errno syscall.Errno
	err := k.sock.raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCETHTOOL, uintptr(unsafe.Pointer(request)))
	})
	runtime.KeepAlive(data)
	if err == nil && errno != 0 {
		err = errno
	}
	return data.data, err
}
