package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/subnet"
)

// Pod is a namespace behind a host with addresses of the host's subnet.
type Pod struct {
	// Name is pod1, pod2 and so on across the whole lab.
	Name      string
	Host      *Host
	Namespace *Namespace
	// Addresses are set for the families in use.
	Addresses subnet.PerFamily[netip.Addr]
	// MTU is that of the pod's interface, in bytes.
	MTU int
}

// addPods makes the host's pods as a CNI plugin would: each on the bridge cni0,
// which is the subnet's first address and the pods' gateway.
func (h *Host) addPods(ctx context.Context, count int) error {
	env, err := h.Env()
	if err != nil {
		return err
	}
	err = h.Namespace.netlink(func(n *netlink.Handle) error {
		bridge, err := addBridge(n, podBridge, env.MTU)
		if err != nil {
			return err
		}
		return addAddresses(n, bridge, inSubnets(env, 1))
	})
	if err != nil {
		return err
	}
	for i := range count {
		p := &Pod{Name: fmt.Sprintf("pod%d", (h.number-1)*count+i+1), Host: h, MTU: env.MTU}
		addrs := inSubnets(env, i+2)
		for _, a := range addrs {
			p.Addresses[subnet.FamilyOf(a.Addr())] = a.Addr()
		}
		if p.Namespace, err = NewNamespace(p.Name); err != nil {
			return err
		}
		if err = plug(h.Namespace, podBridge, p.Name, p.Namespace, podInterface, nil, env.MTU); err == nil {
			err = p.Namespace.netlink(func(n *netlink.Handle) error {
				return configure(n, podInterface, addrs, inSubnets(env, 1))
			})
		}
		if err == nil {
			err = errors.Join(h.Namespace.awaitUp(ctx, p.Name, podBridge), p.Namespace.awaitUp(ctx, podInterface))
		}
		if err != nil {
			return errors.Join(err, p.Namespace.Close())
		}
		h.Pods = append(h.Pods, p)
	}
	return nil
}

// inSubnets is the n-th address of the host's subnet in each family, with the
// subnet's length.
func inSubnets(env envfile.Env, n int) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range env.Subnets {
		if !s.IsValid() {
			continue
		}
		a := s.Addr()
		for range n {
			a = a.Next()
		}
		out = append(out, netip.PrefixFrom(a, s.Bits()))
	}
	return out
}
