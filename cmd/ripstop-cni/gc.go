package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
)

// collect is the verb GC: it takes away what belongs to none of the attachments
// that the runtime has named. It goes on past an error, as the specification
// wishes.
func collect(ctx context.Context, args *skel.CmdArgs) error {
	c, err := decode(args.StdinData)
	if err != nil {
		return err
	}
	// An empty list and none at all are one to the library, and are not one here:
	// who names no attachment because he does not know of the key must not
	// disconnect every pod.
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(args.StdinData, &keys); err != nil {
		return fail(types.ErrDecodingFailure, "", "the network's configuration cannot be read: %v", err)
	}
	if _, ok := keys["cni.dev/valid-attachments"]; !ok {
		return fail(types.ErrInvalidNetworkConfig, "", `GC needs "cni.dev/valid-attachments"`)
	}
	keep, hosts := map[holder]bool{}, map[string]bool{}
	for _, v := range c.ValidAttachments {
		keep[holder{v.ContainerID, v.IfName}] = true
		hosts[attachment{c.Name, v.ContainerID, v.IfName}.hostName()] = true
	}
	h, err := openHost()
	if err != nil {
		return err
	}
	defer h.Close()
	// The interfaces first: an address that is free is nobody's.
	errs := []error{collectLinks(h, c.Name, hosts)}
	a, err := openAllocations(c)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer func() { _ = a.Close() }()
	return errors.Join(append(errs, a.hold(ctx, func() error { return collectAllocations(h, a, keep) }))...)
}

func collectLinks(h *netlink.Handle, network string, keep map[string]bool) error {
	links, err := whole(h.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	var errs []error
	for _, link := range links {
		at := link.Attrs()
		if link.Type() == "veth" && strings.HasPrefix(at.Alias, aliasPrefix+" "+network+" ") && !keep[at.Name] {
			errs = append(errs, deleteLink(h, link))
		}
	}
	return errors.Join(errs...)
}

func collectAllocations(h *netlink.Handle, a *allocations, keep map[holder]bool) error {
	held, err := a.list()
	if err != nil {
		return err
	}
	containers := map[string]bool{}
	for v := range keep {
		containers[v.container] = true
	}
	var errs []error
	left := 0
	for addr, by := range held {
		// Old versions of host-local wrote the container alone.
		if keep[by] || by.ifName == "" && containers[by.container] {
			left++
			continue
		}
		errs = append(errs, a.free(addr))
	}
	if left == 0 {
		errs = append(errs, setUnreachable(h, a, nil))
	}
	return errors.Join(errs...)
}
