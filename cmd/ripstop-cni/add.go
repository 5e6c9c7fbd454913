package main

import (
	"context"
	"errors"
	"net/netip"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ripstop-net/ripstop/subnet"
)

// add is the verb ADD: it connects a container and prints what it made.
func add(ctx context.Context, args *skel.CmdArgs) error {
	c, err := load(args.StdinData)
	if err != nil {
		return err
	}
	previous, err := previousResult(&c)
	if err != nil {
		return err
	}
	asked, err := wishesOf(c, args.Args)
	if err != nil {
		return err
	}
	n, err := readNode(ctx, c)
	if err != nil {
		return err
	}
	w, err := attach(ctx, attachment{c.Name, args.ContainerID, args.IfName}, args.Netns, c, n, asked)
	if err != nil {
		return err
	}
	return types.PrintResult(resultOf(w, args.Netns, c.DNS, previous), c.CNIVersion)
}

// attach allocates and connects, or does neither.
func attach(ctx context.Context, at attachment, path string, c config, n node, asked wishes) (w wiring, err error) {
	pod, err := openSandbox(path)
	if err != nil {
		return w, err
	}
	defer pod.close()
	h, err := openHost()
	if err != nil {
		return w, err
	}
	defer h.Close()
	seen, err := survey(h, c, n)
	if err != nil {
		return w, err
	}
	if err := inTheWay(seen, c, n); err != nil {
		return w, err
	}
	a, err := openAllocations(c)
	if err != nil {
		return w, err
	}
	defer func() { _ = a.Close() }()
	var pods subnet.PerFamily[netip.Addr]
	err = a.hold(ctx, func() (err error) {
		if pods, err = a.allocate(at, n, asked); err != nil || c.Mode != ptp {
			return err
		}
		var subnets []netip.Prefix
		for _, f := range n.families() {
			subnets = append(subnets, n.subnets[f])
		}
		if err = setUnreachable(h, a, subnets); err != nil {
			err = errors.Join(err, a.ReleaseByID(at.container, at.ifName))
		}
		return err
	})
	if err != nil {
		return w, err
	}
	w = wire(at, c, n, pods, asked.MAC)
	err = connect(ctx, h, pod, &w, n)
	if err == nil {
		return w, nil
	}
	return w, undone(err, a.hold(ctx, func() error { return give(h, a, at) }))
}

// previousResult reads what plugins before this one in the list have made, nil
// for none.
func previousResult(c *config) (*current.Result, error) {
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, fail(types.ErrDecodingFailure, "", "prevResult cannot be read: %v", err)
	}
	if c.PrevResult == nil {
		return nil, nil
	}
	r, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "", "prevResult cannot be read: %v", err)
	}
	return r, nil
}

// resultOf describes an attachment to the runtime and to the plugins that
// follow, behind what was there.
func resultOf(w wiring, path string, dns types.DNS, previous *current.Result) *current.Result {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, DNS: dns}
	if previous != nil {
		r.Interfaces, r.IPs, r.Routes = previous.Interfaces, previous.IPs, previous.Routes
		if dns.IsEmpty() {
			r.DNS = previous.DNS
		}
	}
	if w.mode == bridged {
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: w.bridge, Mac: w.bridgeMAC.String(), Mtu: w.mtu})
	}
	r.Interfaces = append(r.Interfaces,
		&current.Interface{Name: w.hostName(), Mac: w.hostMAC.String(), Mtu: w.mtu},
		&current.Interface{Name: w.ifName, Mac: w.podMAC.String(), Mtu: w.mtu, Sandbox: path})
	for _, a := range w.addresses {
		r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(len(r.Interfaces) - 1), Address: *ipNet(a.pod), Gateway: a.gateway.AsSlice()})
		r.Routes = append(r.Routes, &types.Route{Dst: *ipNet(anywhere(a.family)), GW: a.gateway.AsSlice()})
	}
	return r
}
