package network

import (
	"cmp"
	"context"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/network/converge"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/network/status/serve"
	"github.com/ripstop-net/ripstop/subnet"
)

var _ serve.Source = (*Node)(nil)

// observe answers for the node in the run folder, which must be the caller's
// own, until stop is called or ctx ends.
func (n *Node) observe(ctx context.Context) (stop func(), err error) {
	server, err := serve.Open(serve.Options{Dir: n.opts.RunDir, Listen: n.opts.Listen, Level: n.opts.Level, Log: n.log}, n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Run(ctx); err != nil { // Pods do not need it.
			n.log.Error("status is not answered any more", zap.Error(err))
		}
	}()
	return func() { cancel(); <-done }, nil
}

// Beat returns nil once the loop has answered, and at once where there is none yet.
func (n *Node) Beat(ctx context.Context) error {
	n.view.mu.Lock()
	loop := n.view.loop
	n.view.mu.Unlock()
	if loop == nil {
		return nil
	}
	return loop.Beat(ctx)
}

// Status tells how the node is. It waits for nothing.
func (n *Node) Status() status.Status {
	now := time.Now()
	v := &n.view
	v.mu.Lock()
	s := status.Status{
		Version: status.Version, Node: n.opts.Name, Up: v.up, Waiting: v.longestWaited(),
		Daemon: status.Daemon{Version: n.opts.Version, PID: os.Getpid(), Started: v.started, LogLevel: n.opts.Level.String()},
		Lease:  v.lease, Underlay: slices.Clone(v.underlay), UnderlayMoves: v.moves, Peers: v.peers, Store: v.store,
	}
	s.Backend = v.config.Backend.Type
	loop, notWritten, probing := v.loop, v.fileProblem, v.probing
	v.mu.Unlock()

	away := false
	if reporter, ok := n.store.Store.(subnet.Reporter); ok {
		var o subnet.Outage
		o, away = reporter.Outage()
		s.Store.Outages = o.Count
		if away {
			s.Store.Outage = &status.Outage{Since: o.Since, Reason: o.Reason, Failures: o.Failures}
		}
	}
	s.Firewall, s.Host = n.firewall.Report(context.Background()), n.settings.Report()
	s.Store.State = storeState(s.Store, now, away)
	if s.Lease.Subnets == nil {
		s.Lease.Subnets = prefixes(subnet.Subnets{})
	}
	if loop != nil {
		r := loop.Report()
		s.Loop, s.Devices = loopStatus(r), deviceStatus(r)
	}
	select {
	case <-n.ready:
		if err := n.NotReady(); err != nil {
			s.Trouble = err.Error()
		}
	default:
	}
	var fileProblem string
	s.SubnetFile, fileProblem = n.file.status()
	s.Probing = probing.status()
	s.Conditions = status.Judge(s, now, cmp.Or(fileProblem, notWritten))
	n.tracker.Note(s.Conditions, now)
	s.Ready = status.Met(s.Conditions)
	n.trouble.Store(uint32(troubleOf(s)))
	return s
}

func loopStatus(r converge.Report) status.Loop {
	l := status.Loop{
		Passes: r.Passes, LastPass: r.Ended, LastSeconds: r.Took.Seconds(), Wanted: r.Wanted, Failing: r.Failing, Fought: r.Fought,
		Ops: r.Ops, Failures: r.Failures, Drift: r.Drift, Findings: r.Findings, Dumps: status.Dumps(r.Dumps), Unread: r.Unread,
		PassTimes: status.Times{Count: r.Times.Count, Sum: r.Times.Sum.Seconds()},
	}
	for i, bound := range r.Times.Bounds() {
		l.PassTimes.Buckets = append(l.PassTimes.Buckets, status.Bucket{Within: bound.Seconds(), Count: r.Times.Within[i]})
	}
	for _, p := range r.Problems {
		l.Problems = append(l.Problems, status.Problem{Entry: p.Entry.String(), Reason: p.Reason, Foreign: p.Foreign, Fought: p.Fought})
	}
	return l
}

func deviceStatus(r converge.Report) []status.Device {
	var out []status.Device
	for _, d := range r.Devices {
		dev := status.Device{
			Name: d.Device.Name, VNI: d.Device.VNI, Port: d.Device.Port, MAC: d.Device.MAC.String(), MTU: d.Device.MTU, Local: d.Device.Local,
			Right: d.Problem == "", Problem: d.Problem,
		}
		for _, a := range d.Addresses {
			dev.Addresses = append(dev.Addresses, a.Prefix)
		}
		out = append(out, dev)
	}
	return out
}

// Peers returns a page of peers and what the kernel has of each.
func (n *Node) Peers(ctx context.Context, q status.Query) status.Page {
	v := &n.view
	v.mu.Lock()
	f, loop, planner := v.follower, v.loop, v.planner
	page := status.Page{Version: status.Version, Peers: []status.Peer{}, Backend: v.config.Backend.Type}
	v.mu.Unlock()
	if f == nil {
		return page
	}
	peers, more, total, revision := f.page(q)
	page.Total, page.Revision = total, revision
	var entries []backend.Entry
	for _, p := range peers {
		entries = append(entries, planner.Peer(p.Lease)...)
	}
	// What the loop cannot tell in time is left open.
	facts, err := loop.Facts(ctx, entries)
	mtu := map[string]int{}
	for _, u := range v.links() {
		mtu[u.Interface] = u.MTU
	}
	for _, d := range loop.Report().Devices {
		mtu[d.Device.Name] = d.Device.MTU
	}
	for _, p := range peers {
		own := planner.Peer(p.Lease)
		var known []converge.Fact
		if err == nil {
			known, facts = facts[:len(own)], facts[len(own):]
		}
		page.Peers = append(page.Peers, peerStatus(p, own, known, mtu))
	}
	if more {
		page.Continue = status.Cursor(peers[len(peers)-1].Lease.Subnets)
	}
	return page
}

// peerStatus describes a peer by what it owes, per family, and by the facts about
// that, which are nil if they are not known.
func peerStatus(p subnet.Saved, owed []backend.Entry, facts []converge.Fact, mtu map[string]int) status.Peer {
	out := status.Peer{Node: p.Lease.Node, Ways: []status.Way{}, Held: p.Held}
	for _, f := range subnet.Families {
		e := p.Lease.Endpoints[f]
		way := status.Way{Family: f.String(), Subnet: p.Lease.Subnets[f], Public: e.PublicIP, Entries: status.Unknown}
		mine := false
		var of []converge.Fact
		for i, o := range owed {
			if plan.FamilyOf(o) != f {
				continue
			}
			if r, ok := o.(backend.Route); ok {
				mine, way.Device, way.Path, way.MTU = true, r.Via.Dev, status.Direct, cmp.Or(int(r.MTU), mtu[r.Via.Dev])
				if !r.Plain {
					way.Path, way.MAC = status.Tunnel, e.MAC.String()
				}
			}
			if facts != nil {
				of = append(of, facts[i])
			}
		}
		switch {
		case mine:
		case len(owed) == 0 && way.Subnet.IsValid():
			way.Path, way.Entries = status.NoPath, status.NoneOwed
			out.Ways = append(out.Ways, way)
			continue
		default:
			continue
		}
		if facts != nil {
			way.Entries, way.Reason = presence(of)
		}
		out.Ways = append(out.Ways, way)
	}
	return out
}

// presence sums up facts. Of several that fail, the first that waits for no
// other's sake says why.
func presence(facts []converge.Fact) (status.Presence, string) {
	all, why := true, ""
	for _, f := range facts {
		all = all && f.Present
		reason := f.Failing
		if f.Fought {
			reason = "an outside hand undoes it again and again"
		}
		why = cmp.Or(why, reason)
	}
	switch {
	case why != "":
		return status.Failing, why
	case all:
		return status.Present, ""
	}
	return status.Missing, ""
}

// numbers are what a status says of the peers.
func (f *follower) numbers() (p status.Peers, revision int64, epoch string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.mirror.Holds()
	p = status.Peers{
		Count: f.mirror.Count(), Held: h.Now, Returned: h.Returned, Displaced: h.Displaced, Expired: h.Expired,
		GraceSeconds: f.mirror.Grace().Seconds(), PassedOver: f.mirror.Passed(),
	}
	for key, reason := range f.mirror.SomeProblems(mostRecords) {
		p.Records = append(p.Records, status.Record{Key: key, Reason: reason})
	}
	slices.SortFunc(p.Records, func(a, b status.Record) int { return cmp.Compare(a.Key, b.Key) })
	return p, f.mirror.Revision(), f.mirror.Epoch()
}

// page copies a page of peers.
func (f *follower) page(q status.Query) (peers []subnet.Saved, more bool, total int, revision int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	peers, more = f.mirror.Page(q.After, cmp.Or(q.Limit, status.UsualPeers), q.Match)
	return peers, more, f.mirror.Count(), f.mirror.Revision()
}
