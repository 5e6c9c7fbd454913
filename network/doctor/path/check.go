package path

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/network/probe"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// Choice says to which peers paths are looked at.
type Choice struct {
	// Peers are asked for, each by its name, by an address of its own or by one of its
	// pods'.
	Peers []string
	// Some is how many more are taken: those that do not answer the daemon's probing, and
	// then any.
	Some int
}

// checkID is that of the check as a whole; those of its verdicts begin with it.
const checkID = "path"

// limit is more than an examination takes, see [Examine], of as many as there are at
// the same time. With what there is to be known of the node, the doctor ends within
// fifteen seconds.
const limit = examineLimit + time.Second

// lifeLimit bounds the question to the store who lives.
const lifeLimit = time.Second

// Check looks at the paths to some peers, all at the same time.
func Check(c Choice) doctor.SceneCheck {
	return doctor.SceneCheck{
		ID: checkID, Title: "the paths to peers", Limit: limit * time.Duration(1+2*(len(c.Peers)+c.Some)/mostAtOnce),
		Judge: func(ctx context.Context, scene *doctor.Scene, s doctor.Sources) ([]doctor.Verdict, error) {
			chosen, absent := choose(c, scene.Peers(), silentBy(scene.Status), scene.Source)
			targets, err := targetsOf(ctx, scene, s, chosen)
			switch {
			case errors.Is(err, doctor.ErrTooLittle) || err == nil && len(targets) == 0:
				return absent, nil
			case err != nil:
				return nil, err
			}
			verdicts := make([][]doctor.Verdict, len(targets))
			asker, err := probe.OpenAsker(ctx, scene.Config.Families()...)
			if err != nil {
				return nil, fmt.Errorf("open a socket: %w", err)
			}
			var group errgroup.Group
			group.SetLimit(mostAtOnce)
			for i, t := range targets {
				group.Go(func() error {
					verdicts[i] = Examine(ctx, t, NewOn(t, asker))
					return nil
				})
			}
			_ = group.Wait() // They return none.
			return append(absent, slices.Concat(verdicts...)...), asker.Close()
		},
	}
}

// mostAtOnce bounds the targets that are tried out at the same time.
const mostAtOnce = 64

// sample takes at most so many of those that it is given, each as likely as any other.
type sample struct {
	most, given int
	taken       []subnet.Lease
}

func (s *sample) give(l subnet.Lease) {
	s.given++
	if len(s.taken) < s.most {
		s.taken = append(s.taken, l)
	} else if at := rand.IntN(s.given); at < s.most {
		s.taken[at] = l
	}
}

// silentBy tells which peers have not answered the daemon's probing.
func silentBy(s *status.Status) func(subnet.Lease) bool {
	if s == nil || len(s.Probing.Silent) == 0 {
		return func(subnet.Lease) bool { return false }
	}
	silent := map[netip.Prefix]bool{}
	for _, p := range s.Probing.Silent {
		for _, subnet := range p.Subnets {
			silent[subnet] = true
		}
	}
	return func(l subnet.Lease) bool {
		return slices.ContainsFunc(l.Subnets[:], func(p netip.Prefix) bool { return p.IsValid() && silent[p] })
	}
}

// choose finds the peers that are asked for, and says which are not there. Of the others
// those are taken first that are silent, and then so that each is as likely as any
// other. source is where the peers are known from, "" where nothing tells of any.
func choose(c Choice, peers iter.Seq[subnet.Lease], silent func(subnet.Lease) bool, source string) (chosen []subnet.Lease, absent []doctor.Verdict) {
	found := make([]bool, len(c.Peers))
	first, rest := sample{most: c.Some}, sample{most: c.Some}
	for l := range peers {
		asked := false
		for i, text := range c.Peers {
			if is(l, text) {
				found[i], asked = true, true
			}
		}
		switch {
		case asked:
			chosen = append(chosen, l)
		case silent(l):
			first.give(l)
		default:
			rest.give(l)
		}
	}
	for i, text := range c.Peers {
		if found[i] {
			continue
		}
		summary := fmt.Sprintf("there is no peer %s, by %s", text, source)
		if source == "" {
			summary = fmt.Sprintf("peer %s is not known: neither the store nor what was saved tells of peers", text)
		}
		absent = append(absent, doctor.Verdict{
			Check: CheckHost, Severity: doctor.Failure, Peer: text, Summary: summary,
			Remedy: []string{"A peer is known by its node's name, its public address, or an address of its pods:", doctor.Command("ripstop peers")},
		})
	}
	// Of a part of a sample, each is as likely only in any order.
	rand.Shuffle(len(rest.taken), func(i, j int) { rest.taken[i], rest.taken[j] = rest.taken[j], rest.taken[i] })
	return slices.Concat(chosen, first.taken, rest.taken[:min(len(rest.taken), c.Some-len(first.taken))]), absent
}

// is tells whether a lease's holder is meant by a name or an address.
func is(l subnet.Lease, text string) bool {
	if l.Node == text {
		return true
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		return false
	}
	for _, f := range subnet.Families {
		if l.Endpoints[f].PublicIP == a || l.Subnets[f].IsValid() && l.Subnets[f].Contains(a) {
			return true
		}
	}
	return false
}

// targetsOf says of peers where and how they are to be reached.
func targetsOf(ctx context.Context, scene *doctor.Scene, s doctor.Sources, peers []subnet.Lease) (out []Target, err error) {
	planner := scene.Planner()
	if planner == nil {
		return nil, doctor.ErrTooLittle
	}
	if len(peers) == 0 {
		return nil, nil
	}
	mtu, err := planner.MTU()
	if err != nil {
		return nil, err
	}
	have, err := s.Kernel.Dump(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the kernel: %w", err)
	}
	self, means := scene.Self(), scene.Options.Means()
	lifeOf := func(subnet.Lease) Life { return LifeUnknown }
	if scene.Listing != nil { // A store that did not answer is not waited for again.
		lifeOf = livesOf(ctx, s, peers)
	}
	for _, l := range peers {
		owed := planner.Peer(l)
		for _, f := range subnet.Families {
			if !self.Shares(f, l) {
				continue
			}
			t := Target{
				Node: scene.Node, Peer: nameOf(l), Family: f.String(), EchoPort: l.EchoPort, TunnelPort: means.Port, MTU: mtu, Life: lifeOf(l), Interface: scene.Sites[f].Interface,
				Own:   [2]netip.Addr{Underlay: self.Underlay[f].Addr},
				Their: [2]netip.Addr{Underlay: l.Endpoints[f].PublicIP},
			}
			if means.Tunnels() {
				t.Own[Overlay], t.Their[Overlay] = self.Subnets[f].Addr(), l.Subnets[f].Addr()
			}
			for _, e := range owed {
				if plan.FamilyOf(e) != f {
					continue
				}
				if r, ok := e.(backend.Route); ok {
					t.Direct = r.Plain
					if r.MTU != 0 {
						t.MTU = min(t.MTU, int(r.MTU))
					}
				}
				if !have.Has(e) {
					t.Lacks = append(t.Lacks, "not there: "+e.String())
				}
			}
			if t.tunnels() && means.Tunnels() {
				t.Overhead = vxlan.Overhead(f)
			}
			out = append(out, t)
		}
	}
	return out, nil
}

// nameOf is what a peer is called: a flannel has no name.
func nameOf(l subnet.Lease) string {
	if l.Node != "" {
		return l.Node
	}
	return l.Holder()
}

// livesOf asks the store at once which peers' daemons give signs of life. Of a flannel
// there are none.
func livesOf(ctx context.Context, s doctor.Sources, peers []subnet.Lease) func(subnet.Lease) Life {
	unknown := func(subnet.Lease) Life { return LifeUnknown }
	var names []string
	for _, l := range peers {
		if l.Node != "" {
			names = append(names, l.Node)
		}
	}
	if s.Store == nil || len(names) == 0 {
		return unknown
	}
	ctx, cancel := context.WithTimeout(ctx, lifeLimit)
	defer cancel()
	lives, err := s.Store.Alive(ctx, names)
	if err != nil {
		return unknown
	}
	return func(l subnet.Lease) Life {
		switch {
		case l.Node == "":
			return LifeUnknown
		case lives[l.Node]:
			return Living
		}
		return NoSign
	}
}
