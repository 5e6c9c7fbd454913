package network

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/ripstop-net/ripstop/subnet"
	"github.com/ripstop-net/ripstop/subnet/etcd"
	"github.com/ripstop-net/ripstop/subnet/subnettest"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// pausable is a real etcd in which presences last shortly.
type pausable struct {
	t   *testing.T
	srv *etcdserver.Server
}

const shortPresence = 8 * time.Second // A stall of some seconds must not end it.

func startPausable(t *testing.T) *pausable {
	t.Helper()
	srv, err := etcdserver.Start(t.Context(), etcdserver.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Kill(); err != nil {
			t.Error(err)
		}
	})
	p := &pausable{t, srv}
	if err := p.client().SetConfig(t.Context(), []byte(testConfig), 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pausable) client() *etcd.Store {
	p.t.Helper()
	s, err := etcd.Open(p.t.Context(), etcd.Options{Endpoints: []string{p.srv.URL()}, PresenceTTL: shortPresence, RequestTimeout: 2 * time.Second})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := s.Close(); err != nil {
			p.t.Error(err)
		}
	})
	return s
}

// node makes a node of the store, of the same name as all others here.
func (p *pausable) node(address string, client subnettest.Client) *rig {
	r := newRig(p.t)
	r.client = client
	r.host.host[0].Addresses[0] = netip.MustParseAddr(address)
	return r
}

// outlast stops etcd until every presence in it has run out, and runs do meanwhile.
func (p *pausable) outlast(do func()) {
	p.t.Helper()
	if err := p.srv.Pause(); err != nil {
		p.t.Fatal(err)
	}
	do()
	time.Sleep(shortPresence + time.Second)
	if err := p.srv.Resume(); err != nil {
		p.t.Fatal(err)
	}
}

// TestPauseOfEtcdLetsNobodyIn: the node that lives is known again before a clone
// that waits, and before one that starts.
func TestPauseOfEtcdLetsNobodyIn(t *testing.T) {
	t.Parallel()
	p := startPausable(t)
	r := p.node("10.99.0.1", p.client())
	r.start()
	r.ready()
	key, own := r.own()
	clone := p.node("10.99.0.8", p.client())
	clone.tune = func(n *Node) { n.settle = shortPresence }
	p.outlast(clone.start)
	// Whether it comes too late to see that the first lives is a matter of luck.
	clone.eventually("the clone is refused", func() bool { return len(clone.done) > 0 || clone.said("that of node1 (10.99.0.1)") })
	clone.stays("the clone is not let in", func() bool { return clone.kernel.State().Len() == 0 })
	if len(clone.done) > 0 {
		var refused *subnet.TwinError
		if err := clone.ends(); !errors.As(err, &refused) {
			t.Errorf("the clone ends with %v", err)
		}
	}
	if k, l := r.own(); k != key || l != own || r.node.NotReady() != nil || r.logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 0 {
		t.Errorf("the first has %s %+v, not ready: %v", k, l, r.node.NotReady())
	}
}

// TestPresenceLostToATwinInAPauseOfEtcd: a clone was quicker after all. The record
// does not go to and fro, and is the first's again once the clone has gone.
func TestPresenceLostToATwinInAPauseOfEtcd(t *testing.T) {
	t.Parallel()
	p := startPausable(t)
	client := &slowClient{Client: p.client()}
	r := p.node("10.99.0.1", client)
	r.start()
	r.ready()
	key, own := r.own()
	release := client.holdUp()
	defer release()
	clone := p.node("10.99.0.8", p.client())
	p.outlast(clone.start)
	clone.ready()
	_, taken := clone.own()
	release()
	r.eventually("it is not ready", func() bool { return r.node.NotReady() != nil })
	r.stays("the record is the clone's", func() bool {
		k, l := r.own()
		return k == key && l == taken && r.node.NotReady() != nil && clone.node.NotReady() == nil
	})
	if r.logs.FilterLevelExact(zapcore.ErrorLevel).Len() != 1 || r.count(twinMessage) != 1 {
		t.Errorf("said %v", r.logs.All())
	}
	clone.stop()
	r.eventually("its record is its own", func() bool { k, l := r.own(); return k == key && l.SameContent(own) })
	r.eventually("it is ready", func() bool { return r.node.NotReady() == nil })
}
