package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// Floor is what the kernel takes for the entries of peers when they are simply
// put into it, in the way that Tool says.
type Floor struct {
	Tool string
	// Add and Remove are for all peers, Join and Leave for a burst on top of
	// them, One for the entries of one peer on top of them.
	Add, Remove, Join, Leave, One Sample
}

// loader puts the entries of peers into a namespace, and takes them away, in
// the order in which the kernel is fastest. What can be prepared is prepared
// before the clock runs.
type loader interface {
	name() string
	// prepare returns a function that adds or removes the entries.
	prepare(peers []subnet.Lease, from int, add bool) (run func(context.Context) error, err error)
}

// device is the entries of the node itself, as the daemon would have them.
var device = []backend.Op{
	{Verb: backend.Add, Entry: backend.Device{
		Name: deviceName, VNI: vni, Port: 8472, Local: netip.MustParseAddr("10.99.0.1"), MAC: backend.MAC{2, 0x52, 0xff, 0, 0, 1}, MTU: 1450,
	}},
	{Verb: backend.Add, Entry: backend.Address{Dev: deviceName, Prefix: netip.MustParsePrefix("100.127.255.224/32")}},
}

var deviceName = vxlan.DeviceName(subnet.V4, vni)

// openKernel opens the kernel of a namespace as the daemon does.
func openKernel(ns *lab.Namespace) (*kernel.Kernel, error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", ns.FD()))
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", ns.Name(), err)
	}
	defer func() { _ = f.Close() }()
	return kernel.OpenAt(f, vxlan.OwnsDevice)
}

// measureFloor loads and removes peers and a burst, runs times each, in a new
// namespace.
func measureFloor(ctx context.Context, make func(*lab.Namespace, int) (loader, error), count, burst, runs int, p peers) (f Floor, err error) {
	ns, err := lab.NewNamespace("floor")
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, ns.Close()) }()
	k, err := openKernel(ns)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	for _, op := range device {
		if errs := k.Apply(ctx, []backend.Op{op}); errs[0] != nil {
			return f, fmt.Errorf("prepare the floor's namespace: %s: %w", op, errs[0])
		}
	}
	index, err := deviceIndex(ns)
	if err != nil {
		return f, err
	}
	l, err := make(ns, index)
	if err != nil {
		return f, err
	}
	f.Tool = l.name()
	all, more, one := p.between(0, count), p.between(count, count+burst), p.between(count, count+1)
	for range runs {
		for _, step := range []struct {
			peers []subnet.Lease
			from  int
			add   bool
			to    *Sample
		}{
			{all, 0, true, &f.Add},
			{more, count, true, &f.Join}, {more, count, false, &f.Leave},
			{one, count, true, &f.One}, {one, count, false, nil},
			{all, 0, false, &f.Remove},
		} {
			run, err := l.prepare(step.peers, step.from, step.add)
			if err != nil {
				return f, err
			}
			began := time.Now()
			if err := run(ctx); err != nil {
				return f, fmt.Errorf("load the floor by %s: %w", l.name(), err)
			}
			if step.to != nil {
				*step.to = append(*step.to, time.Since(began))
			}
			if step.to == &f.Add || step.to == &f.Remove {
				if err := checkFloor(ctx, k, p.entries(all), step.add); err != nil {
					return f, fmt.Errorf("load the floor by %s: %w", l.name(), err)
				}
			}
		}
	}
	return f, nil
}

// checkFloor sees that all entries are there, or none.
func checkFloor(ctx context.Context, k *kernel.Kernel, entries *backend.State, there bool) error {
	have, err := k.Dump(ctx)
	if err != nil {
		return err
	}
	for e := range entries.All() {
		if have.Has(e) != there {
			return fmt.Errorf("%s: there %t, wanted %t", e, !there, there)
		}
	}
	return nil
}

// firstID is the number of the first peer's nexthop.
const firstID = 1 << 20

// toolLoader uses ip and bridge of iproute2.
type toolLoader struct {
	ns         *lab.Namespace
	ip, bridge string
	dir        string
}

func (t *toolLoader) name() string { return "ip -batch, bridge -batch" }

func (t *toolLoader) prepare(leases []subnet.Lease, from int, add bool) (func(context.Context) error, error) {
	verb := "del"
	if add {
		verb = "add"
	}
	var fdb, neighbours, nexthops, routes []byte
	for i, l := range leases {
		at, to, id := l.Subnets[subnet.V4], l.Endpoints[subnet.V4], firstID+from+i
		fdb = fmt.Appendf(fdb, "fdb %s %s dev %s dst %s\n", verb, to.MAC, deviceName, to.PublicIP)
		neighbours = fmt.Appendf(neighbours, "neighbour %s %s lladdr %s dev %s nud permanent\n", verb, at.Addr(), to.MAC, deviceName)
		if add {
			nexthops = fmt.Appendf(nexthops, "nexthop add id %d via %s dev %s onlink proto %d\n", id, at.Addr(), deviceName, kernel.Protocol)
			routes = fmt.Appendf(routes, "route add %s nhid %d proto %d\n", at, id, kernel.Protocol)
		} else {
			nexthops = fmt.Appendf(nexthops, "nexthop del id %d\n", id)
			routes = fmt.Appendf(routes, "route del %s proto %d\n", at, kernel.Protocol)
		}
	}
	rest := append(append(neighbours, nexthops...), routes...)
	steps := []struct{ tool, file string }{{t.bridge, "fdb"}, {t.ip, "rest"}}
	if !add { // What needs the others goes first.
		rest = append(append(routes, nexthops...), neighbours...)
		steps[0], steps[1] = steps[1], steps[0]
	}
	for file, text := range map[string][]byte{"fdb": fdb, "rest": rest} {
		if err := os.WriteFile(filepath.Join(t.dir, file), text, 0o600); err != nil {
			return nil, fmt.Errorf("write the floor's batch: %w", err)
		}
	}
	return func(ctx context.Context) error {
		for _, s := range steps {
			if err := runIn(ctx, t.ns, s.tool, "-batch", filepath.Join(t.dir, s.file)); err != nil {
				return err
			}
		}
		return nil
	}, nil
}
