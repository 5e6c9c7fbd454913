package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/allocator"
	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
	"github.com/google/renameio/v2"

	"github.com/ripstop-net/ripstop/subnet"
)

// Files in a network's folder beside one for each allocated address.
const (
	// bootFile has the boot in which the allocations were made.
	bootFile = "boot_id"
	// heldFile has the subnets whose free addresses are made unreachable.
	heldFile = "unreachable"
)

// allocations are the addresses that a network has handed out on this node, in
// the form and the place of the standard host-local plugin: what that handed
// out under this network's name is not handed out again, and the other way
// round.
type allocations struct {
	*disk.Store
	dir string
	// boot is the name of this boot.
	boot string
}

// holder is whom an address was handed out to.
type holder struct {
	container, ifName string
}

func openAllocations(c config) (*allocations, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("find out which boot this is: %w", err)
	}
	store, err := disk.New(c.Name, c.DataDir)
	if err != nil {
		return nil, fail(types.ErrIOFailure, `"dataDir" names the folder`, "the folder of allocations cannot be used: %v", err)
	}
	return &allocations{Store: store, dir: filepath.Join(c.DataDir, c.Name), boot: strings.TrimSpace(string(boot))}, nil
}

// Lock has nothing to do within hold, where alone it is called.
func (a *allocations) Lock() error { return nil }

// Unlock is Lock's other half.
func (a *allocations) Unlock() error { return nil }

// hold runs fn while no other run of the plugin, nor host-local, reads or writes
// the network's allocations.
func (a *allocations) hold(ctx context.Context, fn func() error) error {
	got := make(chan error, 1)
	go func() { got <- a.Store.Lock() }()
	select {
	case err := <-got:
		if err != nil {
			return fmt.Errorf("lock the allocations in %s: %w", a.dir, err)
		}
	case <-ctx.Done():
		// The process is about to end, and the goroutine with it.
		return fail(types.ErrTryAgainLater, "some process holds the lock in "+a.dir, "the allocations stay locked: %v", ctx.Err())
	}
	err := a.voidOldBoot()
	if err == nil {
		err = fn()
	}
	return errors.Join(err, a.Store.Unlock())
}

// voidOldBoot forgets the allocations of an earlier boot, whose containers are
// gone with it. Those that host-local left have no boot; they are kept, as they
// may be of this one.
func (a *allocations) voidOldBoot() error {
	path := filepath.Join(a.dir, bootFile)
	old, err := os.ReadFile(path)
	switch {
	case err == nil && strings.TrimSpace(string(old)) == a.boot:
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the allocations' boot: %w", err)
	}
	if err == nil {
		held, err := a.list()
		if err != nil {
			return err
		}
		for addr := range held {
			if err := a.free(addr); err != nil {
				return err
			}
		}
		if err := os.Remove(filepath.Join(a.dir, heldFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget the unreachable routes of an earlier boot: %w", err)
		}
	}
	if err := renameio.WriteFile(path, []byte(a.boot+"\n"), 0o644); err != nil {
		return fmt.Errorf("write the allocations' boot: %w", err)
	}
	return nil
}

// list reads all allocations.
func (a *allocations) list() (map[netip.Addr]holder, error) {
	files, err := os.ReadDir(a.dir)
	if err != nil {
		return nil, fmt.Errorf("list the allocations: %w", err)
	}
	out := map[netip.Addr]holder{}
	for _, f := range files {
		addr, err := netip.ParseAddr(f.Name())
		if err != nil {
			continue // The lock, and what else is no allocation.
		}
		text, err := os.ReadFile(filepath.Join(a.dir, f.Name()))
		if err != nil {
			return nil, fmt.Errorf("read an allocation: %w", err)
		}
		container, ifName, _ := strings.Cut(strings.TrimSpace(string(text)), disk.LineBreak)
		out[addr] = holder{container, ifName}
	}
	return out, nil
}

func (a *allocations) free(addr netip.Addr) error {
	if err := os.Remove(filepath.Join(a.dir, addr.String())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("free address %s: %w", addr, err)
	}
	return nil
}

// release frees what an attachment holds and tells whether nobody holds
// anything any more.
func (a *allocations) release(at attachment) (empty bool, err error) {
	if err := a.ReleaseByID(at.container, at.ifName); err != nil {
		return false, fmt.Errorf("free the addresses of %s: %w", at.container, err)
	}
	held, err := a.list()
	if err != nil {
		return false, err
	}
	if own := ofHolder(held, holder{at.container, at.ifName}); len(own) > 0 {
		return false, fmt.Errorf("address %s of %s could not be freed in %s", own[0], at.container, a.dir)
	}
	return len(held) == 0, nil
}

// allocate hands an attachment one address of each of the node's families.
func (a *allocations) allocate(at attachment, n node, w wishes) (pods subnet.PerFamily[netip.Addr], err error) {
	held, err := a.list()
	if err != nil {
		return pods, err
	}
	if err := mayAllocate(held, holder{at.container, at.ifName}, n, w, a.dir); err != nil {
		return pods, err
	}
	for _, f := range n.families() {
		r := allocator.Range{Subnet: types.IPNet(*ipNet(n.subnets[f])), Gateway: n.gateway(f).AsSlice()}
		if err = r.Canonicalize(); err != nil {
			err = fmt.Errorf("allocate from %s: %w", n.subnets[f], err)
			break
		}
		var asked net.IP
		if w.Addresses[f].IsValid() {
			asked = w.Addresses[f].AsSlice()
		}
		got, gerr := allocator.NewIPAllocator(&allocator.RangeSet{r}, a, int(f)).Get(at.container, at.ifName, asked)
		if gerr != nil {
			err = notAllocated(n.subnets[f], len(held), gerr)
			break
		}
		addr, _ := netip.AddrFromSlice(got.Address.IP)
		pods[f] = addr.Unmap()
	}
	if err != nil {
		return pods, errors.Join(err, a.ReleaseByID(at.container, at.ifName))
	}
	return pods, nil
}

// notAllocated explains an error of host-local's allocator, which has no errors
// to tell apart but by their text. What else it could complain about was looked
// at before.
func notAllocated(s netip.Prefix, held int, err error) error {
	if strings.HasPrefix(err.Error(), "no IP addresses available") {
		return fail(types.ErrTryAgainLater, fmt.Sprintf("%d are in use; pods that end free theirs, and GC those of pods that vanished", held), "the node's subnet %s has no free address", s)
	}
	return fmt.Errorf("allocate from %s: %w", s, err)
}

// mayAllocate says why an attachment can be given no address, or none of those
// that were asked for.
func mayAllocate(held map[netip.Addr]holder, own holder, n node, w wishes, dir string) error {
	if mine := ofHolder(held, own); len(mine) > 0 {
		return fail(codeAttached, "a runtime calls DEL before it calls ADD again", "%s of %s has address %s already", own.ifName, own.container, mine[0])
	}
	var elsewhere []string
	for _, addr := range slices.SortedFunc(maps.Keys(held), netip.Addr.Compare) {
		if !n.holds(addr) {
			elsewhere = append(elsewhere, fmt.Sprintf("%s of %s", addr, held[addr].container))
		}
	}
	if len(elsewhere) > 0 {
		const named = 3
		who := strings.Join(elsewhere[:min(len(elsewhere), named)], ", ")
		if more := len(elsewhere) - named; more > 0 {
			who += fmt.Sprintf(" and %d more", more)
		}
		return fail(codeOccupied, "end those pods (drain the node), then new ones can start; of containers that are gone, delete the files in "+dir,
			"the node's subnet is %s, and it has pods with addresses of another: %s", n.subnets, who)
	}
	for _, f := range subnet.Families {
		asked := w.Addresses[f]
		if !asked.IsValid() {
			continue
		}
		switch other, taken := held[asked]; {
		case !n.holds(asked):
			return fail(codeAddress, "", "address %s was asked for and is not in the node's subnet %s", asked, n.subnets)
		case asked == n.subnets[f].Addr() || asked == n.gateway(f) || f == subnet.V4 && asked == broadcast(n.subnets[f]):
			return fail(codeAddress, "", "address %s was asked for and is not for pods: the subnet's first two are the node's and the gateway, and the last of IPv4 is for broadcasts", asked)
		case taken:
			return fail(codeAddress, "", "address %s was asked for and belongs to container %s", asked, other.container)
		}
	}
	return nil
}

func ofHolder(held map[netip.Addr]holder, h holder) []netip.Addr {
	var out []netip.Addr
	for addr, by := range held {
		// Old versions of host-local wrote the container alone.
		if by == h || by == (holder{container: h.container}) {
			out = append(out, addr)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// broadcast is the last address of an IPv4 prefix.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	mask := net.CIDRMask(p.Bits(), 32)
	for i := range b {
		b[i] |= ^mask[i]
	}
	return netip.AddrFrom4(b)
}

// unreachable is the list of subnets that were made unreachable.
func (a *allocations) unreachable() ([]netip.Prefix, error) {
	text, err := os.ReadFile(filepath.Join(a.dir, heldFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which subnets are unreachable: %w", err)
	}
	var out []netip.Prefix
	for line := range bytes.Lines(text) {
		p, err := netip.ParsePrefix(strings.TrimSpace(string(line)))
		if err == nil { // A line that was cut short belongs to a machine that crashed, and its routes are gone.
			out = append(out, p)
		}
	}
	return out, nil
}

func (a *allocations) setUnreachable(subnets []netip.Prefix) error {
	path := filepath.Join(a.dir, heldFile)
	if len(subnets) == 0 {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("note that no subnet is unreachable: %w", err)
		}
		return nil
	}
	var text bytes.Buffer
	for _, s := range subnets {
		fmt.Fprintln(&text, s)
	}
	if err := renameio.WriteFile(path, text.Bytes(), 0o644); err != nil {
		return fmt.Errorf("note which subnets are unreachable: %w", err)
	}
	return nil
}
