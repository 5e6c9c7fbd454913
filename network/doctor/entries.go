package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// lookAgain is the pause before what differs is looked at again: a peer that came
// between the reading of the store and that of the kernel is no fault, and a daemon
// mends what another hand did within that time. looks bounds how often.
const (
	lookAgain = 250 * time.Millisecond
	looks     = 4
	// manyOps is what is no peer that came meanwhile: one more look will do.
	manyOps = 1000
)

func checkDevice(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	ops, err := c.difference(ctx, s)
	if err != nil {
		return nil, err
	}
	return judgeDevice(c, c.have, ops), nil
}

func checkEntries(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	ops, err := c.difference(ctx, s)
	if err != nil {
		return nil, err
	}
	return judgeEntries(c, ops), nil
}

// difference is what would make the kernel what it is to be: what stays of it when
// store and kernel are read anew. It is found out once.
func (c *Scene) difference(ctx context.Context, s Sources) ([]backend.Op, error) {
	if c.planner() == nil || c.mirror == nil {
		return nil, ErrTooLittle
	}
	c.once.Lock()
	defer c.once.Unlock()
	if c.compared {
		return c.differs, nil
	}
	ops, err := c.compare(ctx, s)
	if err == nil {
		c.differs, c.compared = ops, true
	}
	return ops, err
}

func (c *Scene) compare(ctx context.Context, s Sources) ([]backend.Op, error) {
	var lasting []backend.Op
	for look := range looks {
		if look > 0 {
			timer := time.NewTimer(lookAgain)
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil, ctx.Err()
			case <-timer.C:
			}
			if c.Listing != nil {
				if l, err := s.Store.List(ctx); err == nil {
					c.Listing = &l
					c.readPeers()
				}
			}
		}
		want, err := c.want()
		if err != nil {
			return nil, err
		}
		have, err := s.Kernel.Dump(ctx)
		if err != nil {
			return nil, fmt.Errorf("read the kernel: %w", err)
		}
		c.have = have
		ops := differing(have, want)
		if look > 0 {
			ops = inBoth(ops, lasting)
		}
		if lasting = ops; len(ops) == 0 || look > 0 && len(ops) > manyOps {
			break
		}
	}
	return lasting, nil
}

// want is what the kernel is to have.
func (c *Scene) want() (*backend.State, error) {
	p := c.planner()
	if p == nil {
		return nil, ErrTooLittle
	}
	own, err := p.Own()
	if err != nil {
		return nil, err
	}
	state := backend.NewState(own...)
	for l := range c.mirror.All() {
		for _, e := range p.Peer(l) {
			state.Put(e)
		}
	}
	return state, nil
}

// differing is the difference, but for the checksum offload, which has a check of its
// own: here it is not known for certain what the daemon was told.
func differing(have, want *backend.State) []backend.Op {
	for e := range want.OfKind(backend.KindDevice) {
		d := e.(backend.Device)
		if at, ok := have.Device(d.Name); ok && at.NoTxChecksum != d.NoTxChecksum {
			d.NoTxChecksum = at.NoTxChecksum
			want.Put(d)
		}
	}
	return backend.Diff(have, want)
}

func inBoth(a, b []backend.Op) []backend.Op {
	in := make(map[backend.Op]bool, len(b))
	for _, op := range b {
		in[op] = true
	}
	return slices.DeleteFunc(a, func(op backend.Op) bool { return !in[op] })
}

// heals is the remedy for what a daemon mends by itself.
func heals(c *Scene) []string {
	if c.Status == nil {
		return c.startDaemon()
	}
	return []string{"A daemon that runs mends this within a second. Since it stays, the kernel does not take it or another program undoes it; the status names what is in the way:", Command("ripstop status")}
}

// judgeDevice tells of our devices and their addresses.
func judgeDevice(c *Scene, have *backend.State, ops []backend.Op) []Verdict {
	// One that is made anew is first deleted.
	added := map[backend.Entry]bool{}
	for _, op := range ops {
		if op.Verb != backend.Delete {
			added[backend.Identity(op.Entry)] = true
		}
	}
	var out []Verdict
	for _, op := range ops {
		v := Verdict{Severity: Failure, Evidence: []string{op.Entry.String()}, Remedy: heals(c)}
		switch e := op.Entry.(type) {
		case backend.Device:
			at, there := have.Device(e.Name)
			switch {
			case op.Verb == backend.Add && there:
				continue // It is made anew; the delete before it tells.
			case op.Verb == backend.Add:
				v.Summary = fmt.Sprintf("device %s is missing: no packet goes into the tunnel or comes out of it", e.Name)
				v.Evidence[0] = "wanted: " + v.Evidence[0]
			case op.Verb == backend.Replace:
				v.Summary = fmt.Sprintf("device %s is not as it should be", e.Name)
				v.Evidence = []string{"there is: " + at.String(), "wanted: " + v.Evidence[0]}
			case added[backend.Identity(e)]:
				v.Summary = fmt.Sprintf("device %s is not as it should be, and cannot be changed in place", e.Name)
				v.Evidence[0] = "there is: " + v.Evidence[0]
			default:
				v.Severity, v.Summary = Warning, fmt.Sprintf("device %s is left over from another config", e.Name)
			}
		case backend.Address:
			if op.Verb == backend.Delete {
				v.Severity, v.Summary = Warning, fmt.Sprintf("device %s has an address that it should not have", e.Dev)
			} else {
				v.Summary = fmt.Sprintf("device %s lacks its address %s", e.Dev, e.Prefix)
			}
		default:
			continue
		}
		out = append(out, v)
	}
	if len(out) > 0 {
		return out
	}
	if !c.Options.Means().Tunnels() {
		return nil
	}
	return well("the VXLAN devices are as they should be")
}

var kindNames = map[backend.Kind]string{
	backend.KindFDB: "FDB entries", backend.KindNeighbour: "neighbours", backend.KindNexthop: "nexthops", backend.KindRoute: "routes",
}

// judgeEntries tells of what peers owe, with the peer's name.
func judgeEntries(c *Scene, ops []backend.Op) []Verdict {
	ops = slices.DeleteFunc(slices.Clone(ops), func(op backend.Op) bool { return op.Entry.Kind() < backend.KindFDB })
	owed := c.owners(ops)
	var out []Verdict
	for _, group := range []struct {
		verb     backend.Verb
		severity Severity
		summary  string
		word     string
	}{
		{backend.Add, Failure, "missing", "missing"},
		{backend.Replace, Failure, "wrong", "wrong, wanted"},
		{backend.Delete, Warning, "left over", "left over"},
	} {
		counts := map[backend.Kind]int{}
		peers := map[string]bool{}
		var lines []string
		for _, op := range ops {
			if op.Verb != group.verb {
				continue
			}
			counts[op.Entry.Kind()]++
			line := group.word + ": " + op.Entry.String()
			if who := owed[backend.Identity(op.Entry)]; who != "" {
				peers[who] = true
				line += " (of " + who + ")"
			}
			if len(lines) <= mostNamed {
				lines = append(lines, line)
			}
		}
		if len(lines) == 0 {
			continue
		}
		total, parts := 0, []string(nil)
		for _, k := range []backend.Kind{backend.KindFDB, backend.KindNeighbour, backend.KindNexthop, backend.KindRoute} {
			if n := counts[k]; n > 0 {
				total += n
				parts = append(parts, fmt.Sprintf("%d %s", n, kindNames[k]))
			}
		}
		if total > mostNamed {
			lines = append(lines[:mostNamed], fmt.Sprintf("and %d more", total-mostNamed))
		}
		v := Verdict{Severity: group.severity, Summary: fmt.Sprintf("%s are %s in the kernel", strings.Join(parts, ", "), group.summary), Evidence: lines, Remedy: heals(c)}
		switch {
		case len(peers) == 1:
			for who := range peers {
				v.Peer = who
				v.Summary += ": packets to " + who + " are lost"
			}
		case len(peers) > 1:
			v.Summary += fmt.Sprintf(": packets to %d peers are lost", len(peers))
		}
		switch why := c.kept(); {
		case group.verb == backend.Delete && why != "":
			v.Severity, v.Remedy = Note, []string{why}
		case c.Listing == nil && c.Status != nil && c.Status.Loop.Failing+c.Status.Loop.Fought == 0:
			v.Severity, v.Remedy = Note, []string{"The store was not read. The daemon, which has what it wants, may know of changes after what is known here was saved."}
		}
		out = append(out, v)
	}
	if len(out) > 0 {
		return out
	}
	if !c.Options.Means().Carries() {
		return nil
	}
	return well("the kernel has the entries of all %s, by %s", status.Count(c.mirror.Count(), "peer", "peers"), c.Source)
}

// kept says why a daemon may leave what no record owes.
func (c *Scene) kept() string {
	switch {
	case c.Status != nil && c.Status.Peers.Held > 0:
		return fmt.Sprintf("%d peers without a record are held for a time of grace (--peer-grace).", c.Status.Peers.Held)
	case len(c.mirror.Unread()) > 0 || c.Listing != nil && len(c.Listing.Bad) > 0:
		return "Records that cannot be read leave their nodes' entries as they were; the check \"records\" names them."
	case c.Listing == nil:
		return "The store was not read: they may be of peers that came after what is known was saved."
	}
	return ""
}

// owners names who owes the entries of ops.
func (c *Scene) owners(ops []backend.Op) map[backend.Entry]string {
	out := map[backend.Entry]string{}
	p := c.planner()
	if len(ops) == 0 || p == nil {
		return out
	}
	for _, op := range ops {
		out[backend.Identity(op.Entry)] = ""
	}
	for l := range c.mirror.All() {
		for _, e := range p.Peer(l) {
			if _, asked := out[backend.Identity(e)]; asked {
				out[backend.Identity(e)] = peerName(l)
			}
		}
	}
	return out
}

// peerName is how a peer is called: flannel's have no names.
func peerName(l subnet.Lease) string {
	if l.Node != "" {
		return l.Node
	}
	return l.Holder()
}

func checkTunnels(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	return c.obstacles(ctx, s, true)
}

func checkOverlap(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	return c.obstacles(ctx, s, false)
}

func checkKernel(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	var tunnel error
	if c.Options == nil || c.Options.Means().Tunnels() {
		tunnel = s.Host.CanTunnel(ctx)
	}
	preflight := s.Host.Preflight(ctx)
	if errors.Is(preflight, backend.ErrNotPermitted) {
		return nil, preflight
	}
	return judgeKernel(preflight, tunnel, c.Setup.Release), nil
}

func judgeKernel(preflight, tunnel error, release string) []Verdict {
	var out []Verdict
	for _, err := range []error{preflight, tunnel} {
		if err != nil {
			out = append(out, Verdict{
				Severity: Failure, Summary: "the kernel cannot do what is needed", Evidence: []string{err.Error(), "it is Linux " + release},
				Remedy: []string{"Linux 5.3 or later is needed, with VXLAN; where it is a module:", Command("modprobe vxlan")},
			})
		}
	}
	if len(out) > 0 {
		return out
	}
	return well("Linux %s has nexthop objects and VXLAN", release)
}
