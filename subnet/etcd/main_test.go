package etcd

import (
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/subnet/subnettest"
	"github.com/ripstop-net/ripstop/subnet/subnettest/etcdserver"
)

// shared is a server that no test kills; each test has a prefix of its own.
var shared *etcdserver.Server

func TestMain(m *testing.M) {
	holdIfChild()
	etcdserver.RunIfChild()
	// Most of these tests wait most of the time.
	flag.Parse()
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ripstop-etcd")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if shared, err = etcdserver.Start(context.Background(), etcdserver.Options{Dir: dir}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := shared.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

func open(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// raw is a bare client, for what a Store does not do.
func raw(t *testing.T, where string) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{where}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

var prefixes atomic.Int64

func newPrefix() string { return fmt.Sprintf("/test/%d", prefixes.Add(1)) }

// hand is another's hand in an etcd.
type hand struct {
	t      *testing.T
	c      *clientv3.Client
	prefix string
}

func (h hand) ctx() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}

func (h hand) must(err error) {
	if err != nil {
		h.t.Error(err)
	}
}

func (h hand) Put(key string, value []byte, leased bool) {
	ctx, cancel := h.ctx()
	defer cancel()
	var opts []clientv3.OpOption
	if leased {
		l, err := h.c.Grant(ctx, 3600)
		h.must(err)
		opts = append(opts, clientv3.WithLease(l.ID))
	}
	_, err := h.c.Put(ctx, h.prefix+"/subnets/"+key, string(value), opts...)
	h.must(err)
}

func (h hand) Delete(key string) {
	ctx, cancel := h.ctx()
	defer cancel()
	_, err := h.c.Delete(ctx, h.prefix+"/subnets/"+key)
	h.must(err)
}

func (h hand) lease(key string) clientv3.LeaseID {
	ctx, cancel := h.ctx()
	defer cancel()
	resp, err := h.c.Get(ctx, h.prefix+"/subnets/"+key)
	h.must(err)
	if err != nil || len(resp.Kvs) == 0 {
		return 0
	}
	return clientv3.LeaseID(resp.Kvs[0].Lease)
}

func (h hand) Expire(key string) {
	ctx, cancel := h.ctx()
	defer cancel()
	if id := h.lease(key); id != 0 {
		_, err := h.c.Revoke(ctx, id)
		h.must(err)
	}
}

func (h hand) SetConfig(value []byte) {
	ctx, cancel := h.ctx()
	defer cancel()
	var err error
	if value == nil {
		_, err = h.c.Delete(ctx, h.prefix+"/config")
	} else {
		_, err = h.c.Put(ctx, h.prefix+"/config", string(value))
	}
	h.must(err)
}

func (h hand) NewEpoch() {
	ctx, cancel := h.ctx()
	defer cancel()
	_, err := h.c.Put(ctx, h.prefix+"/ripstop/epoch", rand.Text())
	h.must(err)
}

func (h hand) Vanish(node string) {
	ctx, cancel := h.ctx()
	defer cancel()
	resp, err := h.c.Get(ctx, h.prefix+"/ripstop/nodes/"+node)
	h.must(err)
	for _, kv := range resp.Kvs {
		_, err := h.c.Revoke(ctx, clientv3.LeaseID(kv.Lease))
		h.must(err)
	}
}

func newHand(t *testing.T, where, prefix string) hand {
	return hand{t: t, c: raw(t, where), prefix: prefix}
}

func TestConformance(t *testing.T) {
	subnettest.Conformance(t, func(t *testing.T) subnettest.Harness {
		prefix := newPrefix()
		return subnettest.Harness{
			Open: func(t *testing.T) subnettest.Client {
				s := open(t, Options{Endpoints: []string{shared.URL()}, Prefix: prefix})
				// The time that is left is told in whole seconds.
				s.checkEvery, s.presenceTTL = 300*time.Millisecond, 8*time.Second
				return s
			},
			Hand: newHand(t, shared.URL(), prefix),
		}
	})
}
