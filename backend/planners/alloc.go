package planners

import (
	"net/netip"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/subnet"
)

// allocType is the backend that leases a subnet and lets others carry packets.
const allocType = "alloc"

type allocOptions struct{}

func (allocOptions) Unheeded() []string { return nil }

func (allocOptions) Endpoints(_ plan.Self, public subnet.PerFamily[netip.Addr]) subnet.PerFamily[subnet.Endpoint] {
	return plan.Addresses(public)
}

func (allocOptions) Means() plan.Means { return plan.Means{} }

func (allocOptions) Planner(s plan.Self) plan.Planner { return alloc{s} }

// alloc owes nothing to the kernel.
type alloc struct{ plan.Self }

func (alloc) Own() ([]backend.Entry, error)     { return nil, nil }
func (alloc) Peer(subnet.Lease) []backend.Entry { return nil }
func (alloc) Check(subnet.Lease) error          { return nil }
func (a alloc) MTU() (int, error)               { return a.LinkMTU() }
