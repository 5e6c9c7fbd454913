package lab

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// elsewhere and another are where nothing is, by family.
var (
	elsewhere = subnet.PerFamily[netip.Addr]{netip.MustParseAddr("10.99.0.222"), netip.MustParseAddr("fd99::222")}
	another   = subnet.PerFamily[netip.Prefix]{netip.MustParsePrefix("10.5.253.0/24"), netip.MustParsePrefix("fd00:10:5:fffd::/64")}
	strangers = backend.MAC{2, 's', 't', 'r', 'a', 'y'}
)

// changeKind has a host's entries of a kind say something else: one of them, half
// or all.
func changeKind(kind backend.Kind, change func(backend.Entry, subnet.Family) backend.Entry) walkDeed {
	return func(w *walk, h *Host, r *rand.Rand) (func() error, error) {
		return nil, harmEntries(w, h, r, func(e backend.Entry, f subnet.Family) (backend.Op, bool) {
			if e.Kind() != kind {
				return backend.Op{}, false
			}
			changed := change(e, f)
			// The same again would be announced all the same.
			return backend.Op{Verb: backend.Replace, Entry: changed}, changed != e
		})
	}
}

func fdbElsewhere(e backend.Entry, f subnet.Family) backend.Entry {
	fdb := e.(backend.FDB)
	fdb.Remote = elsewhere[f]
	return fdb
}

func neighbourElsewhere(e backend.Entry, _ subnet.Family) backend.Entry {
	n := e.(backend.Neighbour)
	n.MAC = strangers
	return n
}

func routeWithMTU(e backend.Entry, _ subnet.Family) backend.Entry {
	route := e.(backend.Route)
	route.MTU = 1300
	return route
}

// routeElsewhere leads to where nobody is, if it is a direct one.
func routeElsewhere(e backend.Entry, f subnet.Family) backend.Entry {
	route := e.(backend.Route)
	if route.Plain {
		route.Via.Gateway = elsewhere[f]
	}
	return route
}

func deviceWithLocal(e backend.Entry, f subnet.Family) backend.Entry {
	d := e.(backend.Device)
	d.Local = elsewhere[f]
	return d
}

// addStrange adds an entry of a kind that nobody wants.
func addStrange(kind backend.Kind) walkDeed {
	return func(w *walk, h *Host, r *rand.Rand) (func() error, error) {
		done := subnet.PerFamily[bool]{}
		return nil, harmEntries(w, h, r, func(e backend.Entry, f subnet.Family) (backend.Op, bool) {
			if done[f] || e.Kind() != kind {
				return backend.Op{}, false
			}
			done[f] = true
			switch of := e.(type) {
			case backend.Address:
				of.Prefix = netip.PrefixFrom(another[f].Addr().Next(), another[f].Addr().BitLen())
				e = of
			case backend.FDB:
				of.MAC = strangers
				e = of
			case backend.Neighbour:
				of.IP = another[f].Addr()
				e = of
			case backend.Nexthop:
				of.Gateway = another[f].Addr()
				e = of
			case backend.Route:
				of.Dst = another[f]
				e = of
			}
			return backend.Op{Verb: backend.Add, Entry: e}, true
		})
	}
}

// harmEntries carries out what harm makes of a host's entries, of one family or
// both: one of the ops, half or all, in an order of the random's own. What the
// daemon or the kernel was faster to change does not matter.
func harmEntries(w *walk, h *Host, r *rand.Rand, harm func(backend.Entry, subnet.Family) (backend.Op, bool)) error {
	k, err := kernel.OpenAt(h.Namespace.file, vxlan.OwnsDevice)
	if err != nil {
		return err
	}
	defer k.Close()
	have, err := k.Dump(w.t.Context())
	if err != nil {
		return err
	}
	family := r.IntN(3)
	var ops []backend.Op
	for e := range have.All() {
		f := subnet.V4
		if r, ok := e.(backend.Route); ok && r.Dst.Addr().Is6() || e.On() == vxlan.DeviceName(subnet.V6, vxlanVNI) {
			f = subnet.V6
		}
		if family != 2 && family != int(f) {
			continue
		}
		if op, ok := harm(e, f); ok {
			ops = append(ops, op)
		}
	}
	slices.SortFunc(ops, func(a, b backend.Op) int { return strings.Compare(a.String(), b.String()) })
	r.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
	most := []int{1, (len(ops) + 1) / 2, len(ops)}[r.IntN(3)]
	k.Apply(w.t.Context(), ops[:min(most, len(ops))])
	return nil
}
