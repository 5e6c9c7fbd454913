package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/subnet"
)

// obstacles finds what of the host's is in the network's way, as a daemon does before
// it changes anything.
func (c *Scene) obstacles(ctx context.Context, s Sources, devices bool) ([]Verdict, error) {
	if c.ConfigErr != nil || !c.Options.Means().Carries() {
		return nil, ErrTooLittle
	}
	means := c.Options.Means()
	n := host.Network{VNI: means.VNI, Port: means.Port, Own: []subnet.Subnets{c.Own.Subnets}}
	if c.Saved != nil {
		n.Own = append(n.Own, c.Saved.Lease.Subnets)
	}
	var ranges []netip.Prefix
	for _, f := range c.Config.Families() {
		n.Ranges[f], n.Lengths[f] = c.Config.Ranges[f].Network, c.Config.Ranges[f].SubnetLen
		ranges = append(ranges, n.Ranges[f])
	}
	survey, err := s.Host.Survey(ctx, ranges)
	if err != nil {
		return nil, err
	}
	if devices {
		survey.Addresses, survey.Routes = nil, nil
		return judgeTunnels(n, survey, c.Over), nil
	}
	survey.Tunnels = nil
	return judgeOverlap(n, survey, c.Over), nil
}

func judgeTunnels(n host.Network, s backend.Survey, over host.Takeover) []Verdict {
	notes, err := host.Obstacles(n, s, over)
	if errors.Is(err, host.ErrTunnel) {
		return []Verdict{{
			Severity: Failure, Summary: "another VXLAN device has the VNI or the port that ours needs: packets of the two cannot be told apart", Evidence: []string{err.Error()},
			Remedy: []string{"Remove that device, or give this network another VNI or Port, on all nodes: in \"Backend\" of the network config, by 'ripstop config get' and 'ripstop config set'."},
		}}
	}
	var out []Verdict
	for _, note := range notes {
		out = append(out, Verdict{Severity: Note, Summary: "another VXLAN device shares the VNI or the port, and both may be", Evidence: []string{note}})
	}
	if len(out) > 0 {
		return out
	}
	return well("no other VXLAN device has our VNI or port")
}

func judgeOverlap(n host.Network, s backend.Survey, over host.Takeover) []Verdict {
	if _, err := host.Obstacles(n, s, over); err != nil {
		return []Verdict{{
			Severity: Failure, Summary: "the network overlaps addresses or routes of this host's own: one of the two is not reached", Evidence: []string{err.Error()},
			Remedy: []string{"Remove the address or the route, or choose another network for the pods."},
		}}
	}
	return well("the network overlaps nothing of this host's")
}

var forwardingKeys = subnet.PerFamily[string]{"ipv4/ip_forward", "ipv6/conf/all/forwarding"}

func checkForwarding(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	if c.ConfigErr != nil || !c.Options.Means().Carries() {
		return nil, ErrTooLittle
	}
	links, err := s.Kernel.Links(ctx)
	if err != nil {
		return nil, err
	}
	l := forwarders{underlay: c.Sites[subnet.V4].Interface, direct: c.Options.Means().Direct}
	for _, link := range links {
		if link.NoForwarding {
			l.shut = append(l.shut, link.Name)
		}
	}
	if own := c.Own.Subnets[subnet.V4]; len(l.shut) > 0 && own.IsValid() {
		survey, err := s.Host.Survey(ctx, []netip.Prefix{own})
		if err != nil {
			return nil, err
		}
		l.pods = leadTo(own, survey)
	}
	return judgeForwarding(c.Config.Families(), s.Settings.Get, l), nil
}

// leadTo lists the interfaces that lead to pods of this node: those with an address in its
// subnet, as a bridge, or a route into it, as one for each pod.
func leadTo(own netip.Prefix, s backend.Survey) (out []string) {
	for _, a := range s.Addresses {
		if !a.Ours && own.Contains(a.Prefix.Addr()) {
			out = append(out, a.Dev)
		}
	}
	for _, r := range s.Routes {
		if r.Dev != "" && !r.Nowhere && own.Contains(r.Dst.Addr()) && r.Dst.Bits() >= own.Bits() {
			out = append(out, r.Dev)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// forwarders are links beside our own devices, which the check of those is for. The
// kernel goes by the setting of that by which an IPv4 packet comes (IN_DEV_FORWARD in
// ip_route_input_slow), whatever ip_forward is: to write that sets the others.
type forwarders struct {
	// shut are links that do not forward IPv4 packets.
	shut []string
	// pods are those by which pods' packets come, underlay that by which packets of
	// others do; direct tells that those of other nodes' pods are among them as they are.
	pods     []string
	underlay string
	direct   bool
}

// judge tells of links that do not forward though the host does.
func (l forwarders) judge() (out []Verdict) {
	add := func(severity Severity, what string, links []string) {
		v := Verdict{Severity: severity, Family: subnet.V4.String(), Summary: fmt.Sprintf("%s %s: %s", strings.Join(first(links), ", "), map[bool]string{true: "does not forward IPv4", false: "do not forward IPv4"}[len(links) == 1], what)}
		for _, link := range links[:min(len(links), mostNamed)] {
			v.Evidence = append(v.Evidence, fmt.Sprintf("net/ipv4/conf/%s/forwarding is 0, and net/ipv4/ip_forward is 1", link))
			v.Remedy = append(v.Remedy, Command("sysctl -w net/ipv4/conf/%s/forwarding=1", link))
		}
		v.Remedy = append(v.Remedy, "Find what turns it off: a file in /etc/sysctl.d, or the program that made the interface.")
		out = append(out, v)
	}
	var pods []string
	for _, link := range l.shut {
		switch {
		case slices.Contains(l.pods, link):
			pods = append(pods, link)
		case link != l.underlay:
		case l.direct:
			add(Failure, "what pods of other nodes send directly is dropped", []string{link})
		default:
			add(Warning, "answers from outside of the network do not reach pods, nor do requests", []string{link})
		}
	}
	if len(pods) > 0 {
		add(Failure, "what pods of this node send to others is dropped", pods)
	}
	return out
}

// judgeForwarding goes by the setting of each link for IPv4, which is what the kernel
// goes by, and for IPv6 by that of all.
func judgeForwarding(families []subnet.Family, get func(string) (int, error), l forwarders) []Verdict {
	var out []Verdict
	for _, f := range families {
		on, err := get(forwardingKeys[f])
		v := Verdict{
			Severity: Failure, Family: f.String(), Summary: fmt.Sprintf("this host does not forward %s: packets between pods and the tunnel are dropped", f),
			Remedy: []string{Command("sysctl -w net.%s=1", strings.ReplaceAll(forwardingKeys[f], "/", ".")), "A daemon that runs sets it again; if it is off all the same, another program turns it off, or /proc/sys is read-only for the daemon."},
		}
		switch {
		case err != nil:
			v.Evidence = []string{err.Error()}
		case on != 0 && f == subnet.V4:
			out = append(out, l.judge()...)
			continue
		case on != 0:
			continue
		case f == subnet.V4 && len(l.shut) == 0:
			continue // Turned on link by link, where /proc/sys is read-only.
		default:
			v.Evidence = []string{fmt.Sprintf("net/%s is %d", forwardingKeys[f], on)}
			if f == subnet.V4 {
				v.Evidence = append(v.Evidence, "links that do not forward: "+strings.Join(first(l.shut), ", "))
			}
		}
		out = append(out, v)
	}
	if len(out) > 0 {
		return out
	}
	return well("packets are forwarded")
}

func checkPathFilter(_ context.Context, c *Scene, s Sources) ([]Verdict, error) {
	if c.ConfigErr != nil || !c.Options.Means().Carries() || !c.Config.Ranges[subnet.V4].Enabled() {
		return nil, ErrTooLittle
	}
	means := c.Options.Means()
	device := ""
	if means.Tunnels() {
		if device = c.Over.Devices[subnet.V4].Name; device == "" {
			device = vxlan.DeviceName(subnet.V4, means.VNI)
		}
	}
	direct := ""
	if means.Direct {
		direct = c.Sites[subnet.V4].Interface
	}
	return judgePathFilter(device, direct, s.Settings.Get), nil
}

// judgePathFilter finds where packets are dropped for the address that they come from.
// IPv6 has no such filter.
func judgePathFilter(device, direct string, get func(string) (int, error)) []Verdict {
	var out []Verdict
	if device != "" && host.Strict(device, get) {
		out = append(out, Verdict{
			Severity: Failure, Family: subnet.V4.String(), Summary: fmt.Sprintf("rp_filter is strict on %s: packets out of the tunnel are dropped where the way back is another", device),
			Evidence: []string{"rp_filter of all and of the device: 1"}, Remedy: []string{Command("sysctl -w net/ipv4/conf/%s/rp_filter=2", device), "A daemon that runs sets it again by itself."},
		})
	}
	if direct != "" && host.Strict(direct, get) {
		out = append(out, Verdict{
			Severity: Warning, Family: subnet.V4.String(), Summary: fmt.Sprintf("rp_filter is strict on %s: what a peer sends directly is dropped while this node sends to it by the tunnel", direct),
			Evidence: []string{"rp_filter of all and of the interface: 1"}, Remedy: []string{Command("sysctl -w net/ipv4/conf/%s/rp_filter=2", direct)},
		})
	}
	if len(out) > 0 {
		return out
	}
	return well("no packet is dropped for the way back to its sender")
}

func checkAdvertisements(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	if c.ConfigErr != nil || !c.Config.Ranges[subnet.V6].Enabled() || !c.Options.Means().Carries() {
		return nil, ErrTooLittle
	}
	advertised, err := s.Kernel.Advertised(ctx)
	if err != nil {
		return nil, err
	}
	hasDefault := slices.ContainsFunc(c.Interfaces, func(i backend.Interface) bool { return i.DefaultV6 })
	return judgeAdvertisements(advertised, c.Sites[subnet.V6].Interface, hasDefault, s.Settings.Get), nil
}

// judgeAdvertisements finds links whose routers are not heard any more since the host
// forwards (ipv6_accept_ra).
func judgeAdvertisements(advertised []string, underlay string, hasDefault bool, get func(string) (int, error)) []Verdict {
	forwards, err := get(forwardingKeys[subnet.V6])
	if err != nil || forwards == 0 {
		return nil // The check of forwarding tells.
	}
	links := slices.Clone(advertised)
	if !hasDefault && underlay != "" && !slices.Contains(links, underlay) {
		links = append(links, underlay)
	}
	var out []Verdict
	for _, link := range links {
		accepts, err := get("ipv6/conf/" + link + "/accept_ra")
		if err != nil || accepts != 1 {
			continue
		}
		v := Verdict{
			Severity: Warning, Family: subnet.V6.String(), Summary: fmt.Sprintf("routers are not heard on %s, for the host forwards: its default route runs out", link),
			Evidence: []string{fmt.Sprintf("net/ipv6/conf/%s/accept_ra is 1, and conf/all/forwarding 1", link)}, Remedy: []string{Command("sysctl -w net/ipv6/conf/%s/accept_ra=2", link)},
		}
		if !hasDefault {
			v.Summary = fmt.Sprintf("routers are not heard on %s, for the host forwards: it has no IPv6 default route", link)
		}
		out = append(out, v)
	}
	if len(out) > 0 {
		return out
	}
	return well("no router is passed over")
}

func checkConntrack(_ context.Context, _ *Scene, s Sources) ([]Verdict, error) {
	lost, _ := s.Settings.Tracking() // Where the kernel does not tell there is less to be seen.
	return judgeConntrack(s.Settings.Get, lost), nil
}

// fullAt is the part of the table of connections, in percent, from which on it is
// spoken of.
const fullAt = 80

// judgeConntrack says how full the table of connections is. When it is, packets of new
// ones are dropped, and all else goes on. What was dropped before is no more than
// evidence: the kernel counts under the same name what it drops for other reasons.
func judgeConntrack(get func(string) (int, error), lost host.Tracking) []Verdict {
	used, err := get("netfilter/nf_conntrack_count")
	most, errMax := get("netfilter/nf_conntrack_max")
	if err != nil || errMax != nil || most <= 0 {
		return nil // Connections are not tracked here.
	}
	v := Verdict{
		Evidence: []string{fmt.Sprintf("%d of %d connections", used, most)},
		Remedy: []string{
			Command("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*most),
			"It is one setting for the whole machine: from within a container's network namespace it cannot be written. A file in /etc/sysctl.d makes it last. Who has most connections is seen by:",
			Command("conntrack -L | sed -n 's/.* src=\\([^ ]*\\) .* src=.*/\\1/p' | sort | uniq -c | sort -n | tail"),
		},
	}
	if lost != (host.Tracking{}) {
		v.Evidence = append(v.Evidence, fmt.Sprintf("since this network namespace was made: %d packets dropped, %d connections pushed out for new ones, %d not entered (drop, early_drop and insert_failed of /proc/net/stat/nf_conntrack)", lost.Dropped, lost.Early, lost.NotInserted))
	}
	switch percent := 100 * used / most; {
	case percent >= 99:
		v.Severity, v.Summary = Failure, "the table of connections is full: packets of new ones are dropped"
	case percent >= fullAt:
		v.Severity, v.Summary = Warning, fmt.Sprintf("the table of connections is filled to %d %%: when it is full, packets of new ones are dropped", percent)
	default:
		v.Summary, v.Remedy = fmt.Sprintf("%d of %d connections are tracked", used, most), nil
	}
	return []Verdict{v}
}
