package kernel

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// Preflight tells in one line what the process or the kernel lacks for the
// work of any backend, before anything is changed. Its errors, as those of
// CanTunnel, wrap [backend.ErrNotPermitted] or [backend.ErrUnsupported].
func (k *Kernel) Preflight(ctx context.Context) error {
	release, err := k.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	// There is no device of no kind, which is said after privilege was found good
	// (__rtnl_newlink).
	err = explainProbe(k.probe(ctx, ""))
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	_, err = k.nexthopByID(ctx, lastID)
	return explainNexthopProbe(err)
}

// CanTunnel tells in one line what is lacking for VXLAN devices, before any is
// made. The kernel loads their module by it, if it is not loaded.
func (k *Kernel) CanTunnel(ctx context.Context) error {
	release, err := k.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	// A VXLAN device without a VNI is refused by the kind's own check
	// (vxlan_validate), that is, after privilege and kind were found good.
	return explainProbe(k.probe(ctx, vxlanKind))
}

// probe asks for a device that cannot be, of a kind or of none.
func (k *Kernel) probe(ctx context.Context, kind string) error {
	return k.request(ctx, func(w *builder, seq uint32) {
		w.begin(unix.RTM_NEWLINK, exclusiveFlags, seq, sizeLinkMessage)
		w.text(unix.IFLA_IFNAME, "rs-"+rand.Text()[:10])
		if kind != "" {
			info := w.nest(unix.IFLA_LINKINFO)
			w.text(unix.IFLA_INFO_KIND, kind)
			w.close(info)
		}
		w.ask()
	}, nil)
}

// explainProbe maps the answer to the request for an impossible device.
func explainProbe(err error) error {
	switch {
	case err == nil, errors.Is(err, unix.EINVAL):
		return nil
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w to change the network: CAP_NET_ADMIN is missing; run as root or grant it: %w", backend.ErrNotPermitted, unix.EPERM)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: VXLAN devices (module vxlan, CONFIG_VXLAN); load the module with modprobe vxlan or install the package that has it, or use a backend without a tunnel (host-gw): %w",
			backend.ErrUnsupported, unix.EOPNOTSUPP)
	}
	return fmt.Errorf("probe for VXLAN: %w", err)
}

// explainNexthopProbe maps the answer to the request for a nexthop object that
// is not there. A kernel that does not know of any knows no such message
// (rtnetlink_rcv_msg).
func explainNexthopProbe(err error) error {
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: nexthop objects (CONFIG_INET of Linux 5.3 or later); install a newer kernel: %w", backend.ErrUnsupported, unix.EOPNOTSUPP)
	}
	return fmt.Errorf("probe for nexthop objects: %w", err)
}

// explainFeature maps the answer to the options of the socket, of which the
// youngest is of Linux 4.20.
func explainFeature(err error) error {
	if errors.Is(err, unix.ENOPROTOOPT) {
		return fmt.Errorf("%w: strict netlink dumps; Linux 5.3 or later is needed: %w", backend.ErrUnsupported, err)
	}
	return err
}
