package cleanup

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ripstop-net/ripstop/subnet"
)

// Store is what a lease is given back to.
type Store interface {
	List(ctx context.Context) (subnet.Listing, error)
	subnet.Releaser
}

// Lease gives back the node's lease, if that can be proved to be the node's: its
// record bears the node's name, and either hangs on the store's lease that this
// host has saved, or names this host's own addresses.
type Lease struct {
	Store Store
	Node  string
	// Saved is the lease as this host has saved it, zero for none.
	Saved subnet.Lease
	// Addresses are the host's.
	Addresses []netip.Addr
	found     []subnet.Lease
}

// Find implements Remover.
func (r *Lease) Find(ctx context.Context) (out Finding, err error) {
	seen, err := r.Store.List(ctx)
	if err != nil {
		return out, fmt.Errorf("find this node's lease: %w", err)
	}
	r.found = nil
	for _, l := range seen.Leases {
		if l.Node != r.Node {
			continue
		}
		name := fmt.Sprintf("lease %s of %s", l.Subnets, l.Holder())
		switch {
		case l.Reservation():
			out.Left = append(out.Left, name+": it is an operator's reservation")
		case l.ID != r.Saved.ID && !r.here(l):
			out.Left = append(out.Left, name+": neither its address is this host's, nor is it the one that this host has saved")
		default:
			r.found = append(r.found, l)
			out.Ours = append(out.Ours, name)
		}
	}
	return out, nil
}

// here tells whether all the lease's public addresses are the host's.
func (r *Lease) here(l subnet.Lease) bool {
	any := false
	for _, e := range l.Endpoints {
		if !e.PublicIP.IsValid() {
			continue
		}
		if !slices.Contains(r.Addresses, e.PublicIP) {
			return false
		}
		any = true
	}
	return any
}

// Remove implements Remover.
func (r *Lease) Remove(ctx context.Context) error {
	for _, l := range r.found {
		if err := r.Store.Release(ctx, l); err != nil {
			return err
		}
	}
	return nil
}
