package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/ripstop-net/ripstop/network/firewall"
	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// guarded is the number of peers that the guard is measured with.
const guarded = 10_000

// Guard is what it takes to bring the guard's peers into the kernel: all of them with
// the table that holds them, and one more.
type Guard struct{ Load, One Sample }

// measureGuard loads the guard anew in a namespace of its own each time, and then has
// single peers come and go.
func measureGuard(ctx context.Context, o Options) (g Guard, err error) {
	loads, more := 15, 200
	if o.Short {
		loads, more = 3, 5
	}
	all := publicAddresses(guarded + more)
	for range loads {
		if err := g.load(ctx, all[:guarded], nil); err != nil {
			return g, err
		}
	}
	return g, g.load(ctx, all[:guarded], all[guarded:])
}

// publicAddresses are n addresses that no two peers share.
func publicAddresses(n int) []netip.Addr {
	out := make([]netip.Addr, n)
	for i := range out {
		out[i] = netip.AddrFrom4([4]byte{10, 98, byte(i >> 8), byte(i)})
	}
	return out
}

func (g *Guard) load(ctx context.Context, peers, more []netip.Addr) (err error) {
	ns, err := lab.NewNamespace("guard")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	f, err := openFirewall(ns, firewall.Options{Guard: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	ranges, own := subnet.Subnets{netip.MustParsePrefix("10.64.0.0/10")}, subnet.Subnets{netip.MustParsePrefix("10.64.0.0/24")}
	at := subnet.PerFamily[[]netip.Addr]{{netip.MustParseAddr("10.99.0.1")}}
	f.Begin(ranges, own, subnet.PerFamily[string]{"ripstop.1"}, at, 1, 8472, false)
	update := func(into *Sample, came []netip.Addr, all int) error {
		began := time.Now()
		f.Update(nil, came)
		took := time.Since(began)
		if s := f.Status(ctx); s.Err != nil || s.Peers != all || ctx.Err() != nil {
			return errors.Join(ctx.Err(), s.Err, fmt.Errorf("the guard has %d peers, not %d", s.Peers, all))
		}
		*into = append(*into, took)
		return nil
	}
	if err := update(&g.Load, peers, len(peers)); err != nil {
		return err
	}
	for i := range more {
		if err := update(&g.One, more[i:i+1], len(peers)+i+1); err != nil {
			return err
		}
	}
	return nil
}
