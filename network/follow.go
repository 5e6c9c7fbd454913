package network

import (
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network/converge"
	"github.com/ripstop-net/ripstop/subnet"
)

// follower turns what happens in the store into what the loop is to want. It
// lives on the goroutine of the store's Watch.
type follower struct {
	config subnet.Config
	self   vxlan.Self
	ident  subnet.Identity
	mirror *subnet.Mirror
	loop   *converge.Loop
	log    *zap.Logger

	own  []backend.Entry // What the node owes for itself, until it is told.
	said map[string]string
	// text is the config as it was last seen in the store.
	text string
}

func newFollower(p prepared, loop *converge.Loop, own []backend.Entry, log *zap.Logger) *follower {
	return &follower{
		config: p.config, self: p.self, ident: p.request.Self, mirror: subnet.NewMirror(p.config, p.request.Self, p.self.Check),
		loop: loop, log: log, own: own, said: map[string]string{}, text: string(p.text),
	}
}

// follow takes one change of the store. The first one is whole, so the loop's
// first want is whole too.
func (f *follower) follow(c subnet.Change) {
	if c.ConfigSet {
		f.configChanged(c.Config)
	}
	var release, owe []backend.Entry
	owe, f.own = f.own, nil
	for _, d := range f.mirror.Apply(c) {
		release = append(release, f.self.Peer(d.Before)...)
		owe = append(owe, f.self.Peer(d.After)...)
		f.log.Debug("peer changed", zap.Stringer("before", d.Before.Subnets), zap.Stringer("after", d.After.Subnets), zap.String("holder", d.After.Holder()))
	}
	f.loop.Update(c.Revision, release, owe)
	f.reportProblems()
}

// mostSaid bounds the lines about records per change; the rest is counted.
const mostSaid = 10

// reportProblems says once of each record that it is passed over and why, and
// once that it no longer is.
func (f *follower) reportProblems() {
	now := f.mirror.Problems()
	lines := 0
	for key, why := range now {
		if f.said[key] == why {
			continue
		}
		if lines++; lines <= mostSaid {
			f.log.Warn("record passed over", zap.String("key", key), zap.String("reason", why))
		}
	}
	for key := range f.said {
		if _, still := now[key]; !still {
			if lines++; lines <= mostSaid {
				f.log.Info("record no longer passed over", zap.String("key", key))
			}
		}
	}
	if lines > mostSaid {
		f.log.Warn("more records like these", zap.Int("records", lines-mostSaid), zap.Int("passed_over", len(now)))
	}
	f.said = now
}

// configChanged reports a config that is no longer the one in use. It is not
// applied: pods live by the old one.
func (f *follower) configChanged(text []byte) {
	if string(text) == f.text {
		return
	}
	f.text = string(text)
	if text == nil {
		f.log.Error("network config was deleted from the store: this node goes on with the one it has, others cannot start; write it again with 'ripstop config set'")
		return
	}
	cfg, err := subnet.ParseConfig(text)
	if err == nil {
		_, err = vxlan.ParseOptions(cfg.Backend)
	}
	switch {
	case err != nil:
		f.log.Error("network config in the store was changed and cannot be used: this node goes on with the one it has; mend it with 'ripstop config set'", zap.Error(err))
	case cfg == f.config:
		f.log.Info("network config in the store is the one in use")
	case cfg.CheckOwn(f.self.Subnets) != nil:
		f.log.Error("network config in the store was changed so that it has no room for this node's lease: this node will refuse to start with it; set it back",
			zap.Stringer("subnets", f.self.Subnets), zap.Error(cfg.CheckOwn(f.self.Subnets)))
	default:
		f.log.Warn("network config in the store was changed: it takes effect when this daemon is restarted")
	}
}
