package subnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// Request is what a node asks for when it claims a lease.
type Request struct {
	Self Identity
	// Backend and Endpoints are what peers need to reach the node. Endpoints
	// are of the families that the config has.
	Backend   string
	Endpoints PerFamily[Endpoint]
	// MTU is what the node's pods take, in bytes.
	MTU int
	// EchoPort is where the node answers peers, 0 for nowhere.
	EchoPort uint16
	// Previous is the lease's subnets as the node knew them last, if it does.
	// Pods may run on them, so where they fit the config no others are taken.
	Previous Subnets
	// Preferred are subnets that the node had before a reboot: taken where they
	// are free, for the sake of those who remember them.
	Preferred Subnets
	// OnlyPrevious refuses any others also where the node has a record: it is
	// for a node that serves its Previous at this moment.
	OnlyPrevious bool
	// Seen is a listing of a moment ago, by which the first try goes; nil asks
	// for a fresh one. Another's write since then makes a try fail and no harm.
	Seen *Listing
}

// TakenError says that the subnets which a node must have are another's.
type TakenError struct {
	Subnets Subnets
	By      string
}

// Error names the subnets, who has them and what to do.
func (e *TakenError) Error() string {
	return fmt.Sprintf("this node's subnets %s are held by %s: pods that use them here cannot be reached; delete that record (subnets/%s in etcd) "+
		"if it is stale, give this node its old --node-name if that changed, or drain it and restart it without its subnet file",
		e.Subnets, e.By, e.Subnets.Key())
}

// StrandedError says that the config no longer has room for a lease that the
// node holds. Taking another would cut off every pod that runs on the old one.
type StrandedError struct {
	Lease Lease
	Why   error
}

// Error names the lease and the two ways out.
func (e *StrandedError) Error() string {
	return fmt.Sprintf("this node's lease %s does not fit the network config: %v: "+
		"set the config back, or, once no pod on this node uses the subnet, delete the record subnets/%s in etcd",
		e.Lease.Subnets, e.Why, e.Lease.Subnets.Key())
}

func (e *StrandedError) Unwrap() error { return e.Why }

// maxClaimTries bounds the races that one claim may lose. Each loss means that
// another node won, so even thousands of nodes at once end far below it.
const maxClaimTries = 1000

// Claim obtains the node's lease: its own record taken up again where there is
// one, then a reservation that names it, then its previous subnets, then free
// ones in the order of its name. A record is created only where there is none
// and rewritten only where it is the node's own and says something else. A lost
// race is tried again with a fresh listing.
//
// Errors that waiting does not mend are [*StrandedError] and what wraps
// [ErrRefused]; [*ExhaustedError] lasts until a lease expires or the config grows.
func Claim(ctx context.Context, store Store, cfg Config, req Request) (Lease, error) {
	for try := range maxClaimTries {
		seen, err := req.list(ctx, store, try)
		if err != nil {
			return Lease{}, fmt.Errorf("list leases: %w", err)
		}
		want, write, err := choose(cfg, req, seen)
		if err != nil || !write {
			return want, err
		}
		got, err := store.Write(ctx, want)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return Lease{}, fmt.Errorf("write lease %s: %w", want.Subnets, err)
		}
		return got, nil
	}
	return Lease{}, fmt.Errorf("claim a lease: lost %d races in a row", maxClaimTries)
}

// Rewrite makes the record of a lease that the node holds say what the request
// does now, its subnets apart. Where the record is not as it was held, it returns
// [ErrConflict] and changes nothing: then Claim finds out what became of it.
func Rewrite(ctx context.Context, store Store, held Lease, req Request) (Lease, error) {
	want := req.lease(held.Subnets)
	want.ID, want.Created, want.Modified = held.ID, held.Created, held.Modified
	if want.SameContent(held) {
		return held, nil
	}
	return store.Write(ctx, want)
}

// list is the listing by which a try goes.
func (r Request) list(ctx context.Context, store Store, try int) (Listing, error) {
	if try == 0 && r.Seen != nil {
		return *r.Seen, nil
	}
	return store.List(ctx)
}

// choose decides on the lease to claim, and whether its record must be written
// or is right as it stands.
func choose(cfg Config, req Request, seen Listing) (want Lease, write bool, err error) {
	if own, ok := req.Record(cfg, seen); ok {
		if err := cfg.CheckOwn(own.Subnets); err != nil {
			return Lease{}, false, &StrandedError{Lease: own, Why: err}
		}
		want = req.lease(own.Subnets)
		want.ID, want.Created, want.Modified = own.ID, own.Created, own.Modified
		return want, !want.SameContent(own), nil
	}
	var chosen Subnets
	for _, f := range cfg.Families() {
		o := occupy(cfg.Ranges[f], heldPrefixes(f, seen))
		if p := req.Previous[f]; req.OnlyPrevious || p.IsValid() && cfg.Ranges[f].Check(p) == nil {
			if o.taken(p) {
				return Lease{}, false, &TakenError{Subnets: req.Previous, By: seen.holderOf(f, p)}
			}
			chosen[f] = p
			continue
		}
		if p := req.Preferred[f]; p.IsValid() && cfg.Ranges[f].Check(p) == nil && !o.taken(p) {
			chosen[f] = p
			continue
		}
		p, ok := o.free(req.Self.Node)
		if !ok {
			return Lease{}, false, &ExhaustedError{Range: cfg.Ranges[f], Leases: holders(f, seen.Leases)}
		}
		chosen[f] = p
	}
	return req.lease(chosen), true, nil
}

// Record finds the node's own record, which a claim takes up.
func (r Request) Record(cfg Config, seen Listing) (own Lease, ok bool) {
	return ownLease(r.Self, r.eligible(cfg, seen.Leases))
}

// Standing finds the node's lease of just these subnets among the records, where
// it is as the node itself would write it at this moment. What it says beyond the way
// to the node, such as whether peers may ask it, can be written later.
func (r Request) Standing(cfg Config, seen Listing, of Subnets) (Lease, bool) {
	r.Previous, r.OnlyPrevious = of, true
	l, write, err := choose(cfg, r, seen)
	if err != nil || !write {
		return l, err == nil
	}
	own, ok := r.Record(cfg, seen)
	for f := range l.Endpoints {
		l.Endpoints[f].Translated = own.Endpoints[f].Translated
	}
	l.EchoPort = own.EchoPort
	return own, ok && l.SameContent(own)
}

// Elsewhere finds a record that bears the node's name with another public address
// than the node has, where there is none with its own.
func (r Request) Elsewhere(seen Listing) (found Lease, ok bool) {
	for _, l := range seen.Leases {
		if l.Node != r.Self.Node {
			continue
		}
		moved := false
		for _, f := range Families {
			at := l.Endpoints[f].PublicIP
			moved = moved || at.IsValid() && r.Self.PublicIP[f].IsValid() && at != r.Self.PublicIP[f]
		}
		if !moved {
			return Lease{}, false
		}
		found, ok = l, true
	}
	return found, ok
}

// eligible are the leases that the node may take up. Where its previous subnets
// may be in use, a lease of others is no use to it, though it bears its name: a
// backup may have brought that back, or an operator reserved it.
func (r Request) eligible(cfg Config, leases []Lease) []Lease {
	if !r.OnlyPrevious && cfg.CheckOwn(r.Previous) != nil {
		return leases
	}
	return slices.DeleteFunc(slices.Clone(leases), func(l Lease) bool { return l.Subnets != r.Previous })
}

// holderOf names who holds any part of p.
func (l Listing) holderOf(f Family, p netip.Prefix) string {
	for _, lease := range l.Leases {
		if s := lease.Subnets[f]; s.IsValid() && s.Overlaps(p) {
			return lease.Holder()
		}
	}
	return "a record that cannot be read"
}

func (r Request) lease(s Subnets) Lease {
	return Lease{Subnets: s, Node: r.Self.Node, Backend: r.Backend, Endpoints: r.Endpoints, MTU: r.MTU, EchoPort: r.EchoPort}
}

// CheckOwn tells why a node cannot go on with its subnets under the config. It is
// stricter than CheckSubnets: a node serves all families of the config.
func (c Config) CheckOwn(s Subnets) error {
	for _, f := range c.Families() {
		if !s[f].IsValid() {
			return fmt.Errorf("it has no %s subnet", f)
		}
	}
	for _, f := range Families {
		if s[f].IsValid() && !c.Ranges[f].Enabled() {
			return fmt.Errorf("%s is off in the config", f)
		}
	}
	return c.CheckSubnets(s)
}

// ownLease finds the node's lease among all: one that lives before one that is
// only reserved, for pods may use it; then one by name before one by address,
// then the oldest.
func ownLease(self Identity, leases []Lease) (Lease, bool) {
	var own []Lease
	for _, l := range leases {
		if self.Owns(l) {
			own = append(own, l)
		}
	}
	if len(own) == 0 {
		return Lease{}, false
	}
	rank := func(l Lease) int {
		switch {
		case !l.Reservation() && l.Node != "":
			return 0
		case !l.Reservation():
			return 1
		case l.Node != "":
			return 2
		default:
			return 3
		}
	}
	return slices.MinFunc(own, func(a, b Lease) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Created, b.Created))
	}), true
}

// heldPrefixes are all subnets of a family that any record holds. A record
// whose value cannot be read still holds what its key says.
func heldPrefixes(f Family, seen Listing) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, l := range seen.Leases {
			if !yield(l.Subnets[f]) {
				return
			}
		}
		for _, b := range seen.Bad {
			if s, err := ParseKey(b.Key); err == nil && !yield(s[f]) {
				return
			}
		}
	}
}

func holders(f Family, leases []Lease) []Lease {
	out := slices.DeleteFunc(slices.Clone(leases), func(l Lease) bool { return !l.Subnets[f].IsValid() })
	slices.SortFunc(out, func(a, b Lease) int {
		return cmp.Or(a.Subnets[f].Addr().Compare(b.Subnets[f].Addr()), strings.Compare(a.Node, b.Node))
	})
	return out
}

// Stranded lists the leases that a config has no room for, in the order of
// their keys: what setting it would cut off, for their nodes refuse to start.
func (c Config) Stranded(leases []Lease) []BadRecord {
	var out []BadRecord
	for _, l := range leases {
		if err := c.CheckOwn(l.Subnets); err != nil {
			out = append(out, BadRecord{Key: l.Subnets.Key(), Reason: fmt.Sprintf("%v (held by %s)", err, l.Holder())})
		}
	}
	slices.SortFunc(out, func(a, b BadRecord) int { return strings.Compare(a.Key, b.Key) })
	return out
}
