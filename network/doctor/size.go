package doctor

import (
	"context"
	"fmt"
	"slices"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/subnet"
)

func checkMTU(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	p := c.planner()
	if p == nil || !c.Options.Means().Carries() {
		return nil, ErrTooLittle
	}
	mtu, err := p.MTU()
	if err != nil {
		return []Verdict{{
			Severity: Failure, Summary: "the underlay's MTU leaves too little for pods", Evidence: []string{err.Error()}, Remedy: []string{"Give the interface a larger MTU, or choose another with --iface."},
		}}, nil
	}
	have, err := c.kernel(ctx, s)
	if err != nil {
		return nil, err
	}
	own, err := p.Own()
	if err != nil {
		return nil, err
	}
	file, _ := readSubnetFile(c.Setup.SubnetFile) // Its own check tells what is wrong with it.
	return judgeMTU(c, mtu, own, have, file.MTU), nil
}

// judgeMTU compares what the underlay carries with what devices, the subnet file and
// the links of pods have: what is larger vanishes on the way, or comes in pieces.
func judgeMTU(c *Scene, mtu int, own []backend.Entry, have *backend.State, file int) []Verdict {
	var out []Verdict
	for _, e := range own {
		d, ok := e.(backend.Device)
		if !ok {
			continue
		}
		f := subnet.FamilyOf(d.Local)
		at, there := have.Device(d.Name)
		if !there || at.MTU == d.MTU {
			continue
		}
		v := Verdict{
			Severity: Warning, Family: f.String(), Summary: fmt.Sprintf("device %s has MTU %d, the underlay carries %d: packets are smaller than they could be", d.Name, at.MTU, d.MTU),
			Evidence: []string{fmt.Sprintf("interface %s has MTU %d", c.Sites[f].Interface, c.Sites[f].MTU)}, Remedy: heals(c),
		}
		if at.MTU > d.MTU {
			v.Severity, v.Summary = Failure, fmt.Sprintf("device %s has MTU %d, the underlay carries %d: larger packets vanish", d.Name, at.MTU, d.MTU)
		}
		out = append(out, v)
	}
	if file != 0 && file != mtu {
		out = append(out, Verdict{
			Severity: Warning, Summary: fmt.Sprintf("the subnet file says MTU %d, and pods on this node can have %d", file, mtu), Evidence: []string{c.Setup.SubnetFile},
			Remedy: heals(c),
		})
	}
	for _, i := range c.Interfaces {
		ours := slices.ContainsFunc(c.Config.Families(), func(f subnet.Family) bool {
			for _, a := range i.Addresses {
				if c.Own.Subnets[f].Contains(a) {
					return true
				}
			}
			return false
		})
		if ours && i.MTU > mtu {
			out = append(out, Verdict{
				Severity: Warning, Summary: fmt.Sprintf("interface %s, by which pods are reached, has MTU %d, and the tunnel carries %d: pods from before send packets that are too large", i.Name, i.MTU, mtu),
				Remedy: []string{"Start those pods anew, and have the bridge follow:", Command("ip link set %s mtu %d", i.Name, mtu)},
			})
		}
	}
	if len(out) > 0 {
		return out
	}
	return well("pods can send packets of %d bytes", mtu)
}

func checkChecksum(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	if c.ConfigErr != nil || !c.Options.Means().Tunnels() {
		return nil, ErrTooLittle
	}
	have, err := c.kernel(ctx, s)
	if err != nil {
		return nil, err
	}
	return judgeChecksum(have, c.Setup.TxChecksum, c.Setup.Release), nil
}

// judgeChecksum says whether checksums are left to hardware that gets them wrong.
func judgeChecksum(have *backend.State, policy host.TxChecksum, release string) []Verdict {
	off := policy.Without(release)
	var out []Verdict
	for e := range have.OfKind(backend.KindDevice) {
		d := e.(backend.Device)
		switch {
		case d.NoTxChecksum == off:
		case off:
			out = append(out, Verdict{
				Severity: Failure, Summary: fmt.Sprintf("device %s leaves checksums to others, and Linux %s gets them wrong: TCP and UDP between nodes hang while pings pass", d.Name, release),
				Evidence: []string{"tx-checksumming is on; it should be off: --tx-checksum=" + string(policy)}, Remedy: []string{Command("ethtool -K %s tx-checksum-ip-generic off", d.Name), "A daemon that runs does that by itself, unless it was told --tx-checksum=on."},
			})
		default:
			out = append(out, Verdict{
				Severity: Note, Summary: fmt.Sprintf("device %s makes checksums in software, which costs time and is not needed on Linux %s", d.Name, release),
				Evidence: []string{"tx-checksumming is off"}, Remedy: []string{"If the daemon was not told --tx-checksum=off on purpose: ", Command("ethtool -K %s tx-checksum-ip-generic on", d.Name)},
			})
		}
	}
	if len(out) > 0 {
		return out
	}
	return well("checksums are left to whom they can be left to")
}

func checkSegments(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	if c.ConfigErr != nil || !c.Options.Means().Tunnels() {
		return nil, ErrTooLittle
	}
	links, err := s.Kernel.Segments(ctx)
	if err != nil {
		return nil, err
	}
	return judgeSegments(links), nil
}

// largestSegment is what a packet in one piece has at most where nobody has raised it
// (GSO_LEGACY_MAX_SIZE).
const largestSegment = 65536

// judgeSegments finds BIG TCP: larger pieces than 64 KiB must be cut in software before
// they go into the tunnel, by which 14 Gb/s became 0.3 (Linux 6.18).
func judgeSegments(links []backend.Segments) []Verdict {
	var lines, names []string
	for _, l := range links {
		if most := max(l.GSO, l.GRO, l.GSOv4, l.GROv4); most > largestSegment {
			lines = append(lines, fmt.Sprintf("%s: gso_max_size %d, gso_ipv4_max_size %d, gro_max_size %d, gro_ipv4_max_size %d", l.Name, l.GSO, l.GSOv4, l.GRO, l.GROv4))
			names = append(names, l.Name)
		}
	}
	if len(lines) == 0 {
		return well("no packet is over 64 KiB in one piece")
	}
	v := Verdict{
		Severity: Warning, Summary: "BIG TCP is on: packets over 64 KiB do not pass through VXLAN in one piece, and throughput breaks down", Evidence: first(lines),
		Remedy: []string{"Set it back:"},
	}
	for _, name := range names[:min(len(names), mostNamed)] {
		v.Remedy = append(v.Remedy, Command("ip link set %s gso_max_size 65536 gro_max_size 65536 gso_ipv4_max_size 65536 gro_ipv4_max_size 65536", name))
	}
	return []Verdict{v}
}
