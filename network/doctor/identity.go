package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/network/underlay"
	"github.com/ripstop-net/ripstop/subnet"
)

func checkUnderlay(_ context.Context, c *Scene, _ Sources) ([]Verdict, error) {
	if c.ConfigErr != nil {
		return nil, ErrTooLittle
	}
	return judgeUnderlay(c), nil
}

// judgeUnderlay says whether the host has what the tunnel leaves by.
func judgeUnderlay(c *Scene) []Verdict {
	var out []Verdict
	for _, f := range c.Config.Families() {
		s := c.Sites[f]
		if s.Problem != "" {
			out = append(out, Verdict{
				Severity: Failure, Family: f.String(), Summary: fmt.Sprintf("the underlay does not serve: by %s no packet of the tunnel leaves this host", f),
				Evidence: []string{s.Problem, "there are " + underlay.List(c.Interfaces)},
				Remedy:   []string{"Set the interface up, see to its cable and its address:", Command("ip address"), "If another is to be used, name it by --iface."},
			})
		}
	}
	if c.Listing != nil {
		out = append(out, twins(c)...)
	}
	if len(out) > 0 {
		return out
	}
	v := Verdict{Summary: "the underlay serves"}
	for _, f := range c.Config.Families() {
		s := c.Sites[f]
		v.Evidence = append(v.Evidence, fmt.Sprintf("%s: %s on %s, MTU %d", f, s.Addr, s.Interface, s.MTU))
	}
	return []Verdict{v}
}

// twins finds this node's address in the records of others.
func twins(c *Scene) (out []Verdict) {
	for _, l := range c.Listing.Leases {
		if l.Node == c.Node || l.Node == "" && c.identity().Owns(l) {
			continue
		}
		for _, f := range c.Config.Families() {
			if a := l.Endpoints[f].PublicIP; a.IsValid() && a == c.Sites[f].Public {
				out = append(out, Verdict{
					Severity: Warning, Peer: l.Node, Family: f.String(), Summary: fmt.Sprintf("the record of %s has this node's address %s", l.Holder(), a),
					Evidence: []string{"subnets/" + l.Subnets.Key()},
					Remedy:   []string{"If that was this host under an earlier name, the record goes by itself within --lease-ttl. If it is another host, give each an address of its own: --iface or --public-ip."},
				})
			}
		}
	}
	return out
}

func checkRecord(_ context.Context, c *Scene, _ Sources) ([]Verdict, error) {
	if c.Listing == nil || c.ConfigErr != nil {
		return nil, ErrTooLittle
	}
	return judgeRecord(c), nil
}

// judgeRecord compares the node's record with what the node is: others send by it.
func judgeRecord(c *Scene) []Verdict {
	if c.Own.Subnets == (subnet.Subnets{}) {
		v := Verdict{
			Severity: Failure, Summary: fmt.Sprintf("there is no record of the node %q in the store: no other node sends to it", c.Node),
			Remedy: []string{"A daemon that runs claims its subnet again by itself. If the name is not this node's, give --node-name."},
		}
		if c.Status == nil {
			v.Remedy = c.startDaemon()
		}
		return []Verdict{v}
	}
	var wrong []string
	if err := c.Config.CheckOwn(c.Own.Subnets); err != nil {
		wrong = append(wrong, fmt.Sprintf("subnets %s: %v", c.Own.Subnets, err))
	}
	if c.Own.Backend != c.Config.Backend.Type {
		wrong = append(wrong, fmt.Sprintf("BackendType is %q, the network's is %q", c.Own.Backend, c.Config.Backend.Type))
	}
	public := c.identity().PublicIP
	want := c.Options.Endpoints(c.Self(), public)
	for _, f := range c.Config.Families() {
		have := c.Own.Endpoints[f]
		if public[f].IsValid() && have.PublicIP != public[f] {
			wrong = append(wrong, fmt.Sprintf("%s address is %s, this node is at %s", f, have.PublicIP, public[f]))
		}
		if have.MAC != want[f].MAC {
			wrong = append(wrong, fmt.Sprintf("%s VtepMAC is %s, this node's device has %s", f, have.MAC, want[f].MAC))
		}
		if have.VNI != want[f].VNI {
			wrong = append(wrong, fmt.Sprintf("%s VNI is %d, the network's is %d", f, have.VNI, want[f].VNI))
		}
	}
	if p := c.planner(); p != nil {
		if mtu, err := p.MTU(); err == nil && c.Own.MTU != mtu {
			wrong = append(wrong, fmt.Sprintf("MTU is %d, pods on this node take %d", c.Own.MTU, mtu))
		}
	}
	if key := c.Own.Subnets.Key(); c.mirror != nil {
		if why := c.mirror.Problem(key); why != "" {
			wrong = append(wrong, why)
		}
	}
	if len(wrong) > 0 {
		return []Verdict{{
			Severity: Failure, Summary: "the record of this node says what is not so: others send to where it is not", Evidence: append(wrong, "subnets/"+c.Own.Subnets.Key()),
			Remedy: []string{"A daemon that runs puts its record right by itself. If it does not, something else writes it: look for a second node of this name."},
		}}
	}
	return well("the record of this node is as it should be: %s", c.Own.Subnets)
}

func checkRecords(_ context.Context, c *Scene, _ Sources) ([]Verdict, error) {
	if c.Listing == nil || c.mirror == nil {
		return nil, ErrTooLittle
	}
	return judgeRecords(c), nil
}

// judgeRecords names the records that are no peers and should be.
func judgeRecords(c *Scene) []Verdict {
	var lines []string
	for key, why := range c.mirror.Problems() {
		if key != c.Own.Subnets.Key() {
			lines = append(lines, "subnets/"+key+": "+why)
		}
	}
	slices.Sort(lines)
	if len(lines) > 0 {
		v := Verdict{
			Severity: Warning, Summary: fmt.Sprintf("%s passed over: to those nodes nothing is sent", status.Count(len(lines), "record in the store is", "records in the store are")), Evidence: first(lines),
			Remedy: []string{"The reason says which node is to be mended."},
		}
		if key, _, _ := strings.Cut(lines[0], ": "); len(lines) == 1 && c.Setup.Prefix != "" {
			v.Remedy = append(v.Remedy, "If nobody holds it any more, delete the record:", Command("etcdctl del %s/%s", c.Setup.Prefix, key))
		} else {
			v.Remedy = append(v.Remedy, "A record that nobody holds any more can be deleted by its key ('etcdctl del').")
		}
		return []Verdict{v}
	}
	return well("%s in the store, all of them sound", status.Count(c.mirror.Count(), "peer", "peers"))
}
