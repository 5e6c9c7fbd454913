package firewall

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLacking means that the kernel has no nftables.
var ErrLacking = errors.New("kernel lacks nftables")

// Examination is what a look at the rules has found.
type Examination struct {
	// There tells that our table is. Wrong has what it lacks and what is in it that
	// should not be; rules of masquerading are judged by whether there are any.
	There bool
	Wrong []string
	// Shut are the peers, of those that were asked about, that the guard does not let
	// in.
	Shut      []netip.Addr
	Dropped   uint64
	Strangers []Stranger
	Findings  []Finding
}

// Examine reads rules, ours and others', and compares ours with what the options and
// the network of Begin ask for. It changes nothing and needs no Run.
func (f *Firewall) Examine(ctx context.Context, peers []netip.Addr) (x Examination, err error) {
	if err := f.take(ctx); err != nil {
		return x, err
	}
	defer f.give()
	n := f.networkNow()
	look := func() error { return f.with(ctx, func(c *conn) error { return f.examine(c, n, peers, &x) }) }
	if err = look(); err != nil && ctx.Err() == nil {
		x = Examination{}
		err = look() // What another hand changes while it is read makes the reading fail.
	}
	for _, lacking := range []error{unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.EOPNOTSUPP} {
		if errors.Is(err, lacking) {
			return x, ErrLacking
		}
	}
	if err == nil {
		x.Findings = slices.Concat(x.Findings, legacyFindings(f.ns, n))
	}
	return x, err
}

func (f *Firewall) examine(c *conn, n Network, peers []netip.Addr, x *Examination) error {
	have, err := c.readOwn()
	if err != nil {
		return err
	}
	x.There = have.exists
	x.Dropped = have.dropped.Packets
	want := Plan(f.opts, n, len(peers))
	want.widen(have.size)
	x.Wrong = unlike(have.skeleton, want.skeleton())
	if f.opts.Guard && n.Port != 0 && x.There {
		for _, a := range peers {
			if !have.peers.has(a) {
				x.Shut = append(x.Shut, a)
			}
		}
	}
	if x.There {
		if x.Strangers, err = c.readStrangers(); err != nil {
			return err
		}
	}
	if err := inNamespace(f.ns, n.look); err != nil {
		return err
	}
	o, err := c.readOthers(mostChains)
	if err != nil {
		return err
	}
	x.Findings = o.findings(n)
	return nil
}

// unlike lists what two tables differ by, but for what depends on options that are not
// known here: exceptions of masquerading, the sets' sizes, and what notes strangers.
func unlike(have, want []string) (out []string) {
	about := func(lines []string) map[string]bool {
		in := map[string]bool{}
		for _, line := range lines {
			masquerades := strings.HasPrefix(line, "rule "+chainMasquerade+" ")
			sets := strings.HasPrefix(line, "set ")
			if masquerades || sets {
				continue
			}
			if rest, ok := strings.CutPrefix(line, "rule "+chainVXLAN+" "); ok {
				if strings.Contains(line, rememberedText) {
					continue
				}
				// The place in the chain is another without those.
				_, text, _ := strings.Cut(rest, " ")
				line = "rule " + chainVXLAN + " " + text
			}
			in[line] = true
		}
		return in
	}
	h, w := about(have), about(want)
	for line := range w {
		if !h[line] {
			out = append(out, "missing: "+line)
		}
	}
	for line := range h {
		if !w[line] {
			out = append(out, "not ours: "+line)
		}
	}
	slices.Sort(out)
	return out
}
