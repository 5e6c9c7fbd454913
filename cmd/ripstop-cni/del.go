package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
)

// del is the verb DEL: afterwards nothing of an attachment is left, whatever
// there was. It needs neither the container nor the daemon nor a configuration
// that is right.
func del(ctx context.Context, args *skel.CmdArgs) error {
	c, err := decode(args.StdinData)
	if err != nil {
		return err
	}
	h, err := openHost()
	if err != nil {
		return err
	}
	defer h.Close()
	pod, err := openSandboxIfThere(args.Netns)
	if err != nil {
		return err
	}
	if pod != nil {
		defer pod.close()
	}
	at := attachment{c.Name, args.ContainerID, args.IfName}
	if err := disconnect(h, pod, at); err != nil {
		return err
	}
	a, err := openAllocations(c)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close() }()
	return a.hold(ctx, func() error { return give(h, a, at) })
}

// openSandboxIfThere returns nil for a namespace that is gone, and for the
// host's own, in which nothing may be deleted.
func openSandboxIfThere(path string) (*sandbox, error) {
	if path == "" {
		return nil, nil
	}
	pod, err := openSandbox(path)
	var known *types.Error
	if errors.As(err, &known) && known.Code == types.ErrInvalidNetNS {
		return nil, nil
	}
	return pod, err
}

// give frees an attachment's addresses; with the last, the unreachable routes go.
func give(h *netlink.Handle, a *allocations, at attachment) error {
	empty, err := a.release(at)
	if err != nil || !empty {
		return err
	}
	if err := setUnreachable(h, a, nil); err != nil {
		return fmt.Errorf("after the last pod: %w", err)
	}
	return nil
}
