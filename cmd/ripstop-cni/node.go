package main

import (
	"context"
	"net/netip"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/subnet"
)

// node is what the daemon has leased for this machine.
type node struct {
	subnets subnet.Subnets
	// mtu is that of pods, in bytes.
	mtu int
}

// gateway is the first address of the node's subnet, which pods have for their
// router.
func (n node) gateway(f subnet.Family) netip.Addr { return n.subnets[f].Addr().Next() }

// families lists those in use.
func (n node) families() []subnet.Family {
	var out []subnet.Family
	for _, f := range subnet.Families {
		if n.subnets[f].IsValid() {
			out = append(out, f)
		}
	}
	return out
}

// holds tells whether an address is one of the node's subnet.
func (n node) holds(a netip.Addr) bool {
	s := n.subnets[subnet.FamilyOf(a)]
	return s.IsValid() && s.Contains(a)
}

// readNode reads the subnet file. Where there is none, the error says what the
// daemon is about.
func readNode(ctx context.Context, c config) (node, error) {
	env, err := envfile.Read(c.SubnetFile)
	if err != nil {
		return node{}, fail(codeNotReady, "the daemon writes it anew at its start", "the node's network is not known: %v", err)
	}
	if env.Subnets == (subnet.Subnets{}) {
		return node{}, notReady(c, askDaemon(ctx, c.RunDir))
	}
	return nodeOf(env, c)
}

// nodeOf checks what the subnet file says.
func nodeOf(env envfile.Env, c config) (node, error) {
	n := node{subnets: env.Subnets, mtu: env.MTU}
	for _, f := range n.families() {
		if s := n.subnets[f]; s.Bits() > f.Bits()-2 {
			return node{}, fail(codeNotReady, "a larger SubnetLen takes a longer prefix than this", "the node's subnet %s has no room for pods", s)
		}
		if n.mtu < leastMTU[f] || n.mtu > largestMTU {
			return node{}, fail(codeNotReady, "", "%s gives an MTU of %d bytes, %s takes %d to %d", c.SubnetFile, n.mtu, f, leastMTU[f], largestMTU)
		}
		if c.MTU != 0 && c.MTU < leastMTU[f] {
			return node{}, fail(types.ErrInvalidNetworkConfig, "", `"mtu" is %d, %s takes at least %d bytes`, c.MTU, f, leastMTU[f])
		}
	}
	if c.MTU > n.mtu {
		return node{}, fail(types.ErrInvalidNetworkConfig, `remove "mtu", or make it smaller`, `"mtu" is %d: the way to other nodes takes packets of %d bytes (%s), larger ones would be lost`, c.MTU, n.mtu, c.SubnetFile)
	}
	if c.MTU != 0 {
		n.mtu = c.MTU
	}
	return n, nil
}

// notReady is the error of a node that has no subnet yet.
func notReady(c config, d daemon) error {
	switch {
	case !d.running:
		return fail(codeNotReady, "start ripstopd on this node (no process holds the lock in "+c.RunDir+", its --run-dir), and look at its log if it ends again",
			"the node's network is not ready: ripstopd is not running, and there is no %s", c.SubnetFile)
	case len(d.failing) > 0:
		return fail(codeNotReady, "ripstopd goes on by itself once that has changed",
			"the node's network is not ready: ripstopd runs, but %s", strings.Join(d.failing, "; "))
	}
	return fail(codeNotReady, "its log says what it waits for; if that says that it is ready, its --subnet-file is another one",
		"the node's network is not ready: ripstopd runs, and has not written %s yet", c.SubnetFile)
}
