package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// probe asks a host's daemon at its socket.
type probe struct {
	t      *testing.T
	client *status.Client
}

func probeOf(t *testing.T, h *Host) probe {
	c := status.NewClient(filepath.Join(h.Dir, "run"))
	t.Cleanup(c.Close)
	return probe{t, c}
}

// anyCode is for an answer whose texts count alone.
const anyCode = 0

// ready waits for an answer of /readyz with a code and texts in it.
func (p probe) ready(code int, texts ...string) {
	p.t.Helper()
	var got int
	var body string
	_, in := timeUntil(20*time.Second, func() bool {
		var err error
		if got, body, err = p.client.Get(p.t.Context(), status.PathReady); err != nil {
			body = err.Error()
			return false
		}
		return (code == anyCode || got == code) && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(body, text) })
	})
	if !in {
		p.t.Fatalf("want %d with %q, have %d:\n%s", code, texts, got, body)
	}
}

// presentPeers waits until a host's daemon tells of so many peers that all their entries are
// in the kernel. Of a loop that is busy it is not known.
func presentPeers(t *testing.T, h *Host, count int) (page status.Page) {
	t.Helper()
	p := probeOf(t, h)
	var err error
	_, in := timeUntil(talkLimit, func() bool {
		page, err = p.client.Peers(t.Context(), status.Query{})
		return err == nil && len(page.Peers) == count && !slices.ContainsFunc(page.Peers, func(peer status.Peer) bool {
			return slices.ContainsFunc(peer.Ways, func(w status.Way) bool { return w.Entries != status.Present })
		})
	})
	if !in {
		t.Fatalf("%s tells of its peers: %+v, %v", h.Name, page, err)
	}
	return page
}

// TestReadinessOfALivingDaemon walks through what a node can meet, and sees each
// in /readyz while it lasts and gone after.
func TestReadinessOfALivingDaemon(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: IPv4})
	h, ctx := l.Hosts[0], t.Context()
	p, store := probeOf(t, h), openStore(t, l)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p.ready(http.StatusOK)

	// Coming up without a store and with nothing saved.
	_, _, err := h.StopDaemon(ctx, unix.SIGTERM)
	must(err)
	must(l.Etcd.Kill())
	must(os.RemoveAll(filepath.Join(h.Dir, "state")))
	must(h.StartDaemon())
	p.ready(http.StatusServiceUnavailable, "[-]started failed: waits for network config since ", "connection refused", "[-]lease failed", "[-]device failed")
	if code, body, err := p.client.Get(ctx, status.PathHealth); err != nil || code != http.StatusOK {
		t.Errorf("a daemon that waits is not in health: %d %s %v", code, body, err)
	}
	must(l.Etcd.Restart(ctx))
	p.ready(http.StatusOK)

	// The store goes and comes.
	must(l.Etcd.Kill())
	p.ready(http.StatusOK, "[+]store ok: knowingly stale", "connection refused")
	must(l.Etcd.Restart(ctx))
	p.ready(http.StatusOK, "[+]store ok\n")

	// A hand that keeps the host from forwarding.
	fight, end := context.WithCancel(ctx)
	var hand sync.WaitGroup
	hand.Go(func() {
		for fight.Err() == nil {
			_ = h.Namespace.Do(func() error { return setSysctl("ipv4/ip_forward", "0") })
			time.Sleep(20 * time.Millisecond)
		}
	})
	p.ready(http.StatusServiceUnavailable, "[-]forwarding failed: net.ipv4.ip_forward is 0, so that no IPv4 packets of pods are forwarded: an outside hand changes", "[+]device ok")

	// One that holds the device down, too.
	devices, err := h.Devices()
	must(err)
	hand.Go(func() {
		for fight.Err() == nil {
			_ = h.Namespace.netlink(func(n *netlink.Handle) error {
				link, err := n.LinkByName(devices[subnet.V4])
				if err == nil && link.Attrs().Flags&1 != 0 { // IFF_UP
					err = n.LinkSetDown(link)
				}
				return err
			})
			time.Sleep(time.Millisecond)
		}
	})
	p.ready(http.StatusServiceUnavailable, "[-]device failed: ripstop.1: is down", "again and again", "[-]entries failed")
	end()
	hand.Wait()
	p.ready(http.StatusServiceUnavailable, "[-]forwarding failed: IPv4 packets of pods are forwarded by fits and starts", "[+]device ok", "[-]entries failed: ", "again and again undone")

	// Another takes the subnet.
	env, err := h.Env()
	must(err)
	key := Prefix + "/subnets/" + env.Subnets.Key()
	answer, err := store.Get(ctx, key)
	must(err)
	if len(answer.Kvs) != 1 {
		t.Fatalf("%s is not there", key)
	}
	thief := strings.NewReplacer(h.Name, "thief", h.Address(subnet.V4).String(), "10.99.0.200").Replace(string(answer.Kvs[0].Value))
	_, err = store.Put(ctx, key, thief)
	must(err)
	p.ready(http.StatusServiceUnavailable, "[-]lease failed", "thief", "[-]undisputed failed")
	_, err = store.Delete(ctx, key)
	must(err)
	// The hand may have been calm for long enough by now, and the node ready.
	p.ready(anyCode, "[+]lease ok", "[+]undisputed ok")
	_, in := timeUntil(60*time.Second, func() bool { // A hand must be calm for half a minute.
		code, _, err := p.client.Get(ctx, status.PathReady)
		return err == nil && code == http.StatusOK
	})
	if !in {
		_, body, _ := p.client.Get(ctx, status.PathReady)
		t.Errorf("not ready in the end:\n%s", body)
	}
	s, err := p.client.Status(ctx)
	if err != nil || s.Loop.Drift == 0 || s.Host.Restored == 0 || s.Lease.Losses == 0 || s.Store.Outages == 0 || s.Peers.Count != 1 {
		t.Errorf("it remembers nothing: %+v, %v", s, err)
	}
	page := presentPeers(t, h, 1)
	if page.Peers[0].Node != "node2" || page.Peers[0].Ways[0].Path != status.Tunnel {
		t.Errorf("peers: %+v", page)
	}
}

// Limits on answers with 10,000 peers, on a machine that does nothing else, as for "make
// faults"; tests beside this one make them othersFactor times as long at most.
const (
	othersFactor = 10
	statusLimit  = 100 * time.Millisecond
	scrapeLimit  = 20 * time.Millisecond
	pageLimit    = 50 * time.Millisecond
	mostSeries   = 200
)

// TestAnswersWithManyPeers measures how long a daemon with 10,000 peers takes to
// answer, and whether it mends any slower while it is asked all the time. Under
// the race detector there are fewer, and nothing is held to the limits.
func TestAnswersWithManyPeers(t *testing.T) {
	peers, factor := 10_000, time.Duration(othersFactor)
	if raceDetector {
		peers = 500
	}
	if os.Getenv(faultsEnv) != "" {
		factor = 1
	}
	l := startLab(t, Options{Nodes: 1, Mode: IPv4, Config: `{"Network": "10.128.0.0/9", "Backend": {"Type": "vxlan"}, "SubnetMin": "10.200.0.0"}`})
	h, store, ctx := l.Hosts[0], openStore(t, l), t.Context()
	for n := 0; n < peers; {
		var puts []clientv3.Op
		for ; n < peers && len(puts) < 100; n++ {
			lease := subnet.Lease{
				Node: fmt.Sprintf("peer-%d", n), Backend: vxlan.Type, Subnets: subnet.Subnets{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128 + byte(n>>8), byte(n), 0}), 24)},
				Endpoints: subnet.PerFamily[subnet.Endpoint]{{PublicIP: netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), VNI: 1, MAC: subnet.MAC{2, 1, 0, 0, byte(n >> 8), byte(n)}}},
			}
			puts = append(puts, clientv3.OpPut(Prefix+"/subnets/"+lease.Subnets.Key(), string(lease.Record())))
		}
		if _, err := store.Txn(ctx).Then(puts...).Commit(); err != nil {
			t.Fatal(err)
		}
	}
	p := probeOf(t, h)
	took, in := timeUntil(time.Minute, func() bool {
		s, err := p.client.Status(ctx)
		return err == nil && s.Peers.Count == peers && s.Loop.Wanted == 2+4*peers && s.Ready
	})
	if !in {
		t.Fatalf("not ready with %d peers after %s", peers, took)
	}
	series := 0
	measure := func(what, path string, limit time.Duration) {
		t.Helper()
		var all []time.Duration
		size := 0
		for range 30 {
			began := time.Now()
			code, body, err := p.client.Get(ctx, path)
			all = append(all, time.Since(began))
			if err != nil || code != http.StatusOK {
				t.Fatalf("%s: %d, %v", what, code, err)
			}
			size = len(body)
			if path == status.PathMetrics {
				series = 0
				for line := range strings.Lines(body) {
					if !strings.HasPrefix(line, "#") {
						series++
					}
				}
			}
		}
		slices.Sort(all)
		t.Logf("%d peers, %-10s median %v, longest %v, %d bytes", peers, what, all[len(all)/2], all[len(all)-1], size)
		if !raceDetector && all[len(all)/2] > factor*limit {
			t.Errorf("%s took %v, the limit is %v on a machine that does nothing else", what, all[len(all)/2], limit)
		}
	}
	measure("status", status.PathStatus, statusLimit)
	measure("scrape", status.PathMetrics, scrapeLimit)
	if series == 0 || series >= mostSeries {
		t.Errorf("%d series, want fewer than %d", series, mostSeries)
	}
	t.Logf("%d series", series)
	measure("first page", status.PathPeers, pageLimit)

	heal := func(third byte) (longest time.Duration) { // A route that nobody has touched before.
		t.Helper()
		dst := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128, third, 0}), 24)
		err := h.Namespace.netlink(func(n *netlink.Handle) error {
			device, err := n.LinkByName("ripstop.1")
			if err != nil {
				return err
			}
			reached := func() bool {
				found, err := n.RouteGet(dst.Addr().Next().AsSlice())
				return err == nil && len(found) == 1 && found[0].LinkIndex == device.Attrs().Index
			}
			for range 4 { // One more is called a fight.
				if err := n.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: dst.Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}, Protocol: ourProtocol}); err != nil {
					return err
				}
				took, in := timeUntil(10*time.Second, reached)
				if !in {
					return errors.New("it does not heal")
				}
				longest = max(longest, took)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return longest
	}
	var quiet, busy time.Duration
	for third := range byte(10) {
		quiet = max(quiet, heal(third))
	}
	asking, enough := context.WithCancel(ctx)
	var askers sync.WaitGroup
	answers := make([]int, 3)
	for i, path := range []string{status.PathStatus, status.PathMetrics, status.PathPeers + "?limit=1000"} {
		askers.Go(func() {
			c := status.NewClient(filepath.Join(h.Dir, "run"))
			defer c.Close()
			for asking.Err() == nil {
				if code, _, err := c.Get(asking, path); err == nil && code == http.StatusOK {
					answers[i]++
				}
			}
		})
	}
	for third := range byte(10) {
		busy = max(busy, heal(10+third))
	}
	enough()
	askers.Wait()
	t.Logf("longest heal %v, while asked all the time %v (%v answers)", quiet, busy, answers)
	if !raceDetector && busy > factor*(quiet+100*time.Millisecond) {
		t.Errorf("asking holds up the loop: %v, and %v without", busy, quiet)
	}
}
