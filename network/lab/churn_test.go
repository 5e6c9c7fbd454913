package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/ripstop-net/ripstop/subnet"
)

// openStore opens a client on the lab's etcd that writes what no node would.
func openStore(t *testing.T, l *Lab) *clientv3.Client {
	t.Helper()
	dial := func(ctx context.Context, target string) (conn net.Conn, err error) {
		err = l.EtcdNamespace().Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", target)
			return err
		})
		return conn, err
	}
	// When etcd comes back this client is there at once, not some seconds later.
	soon := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1, MaxDelay: 50 * time.Millisecond}, MinConnectTimeout: time.Second}
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{l.EtcdURL()}, Logger: zap.NewNop(), DialOptions: []grpc.DialOption{grpc.WithContextDialer(dial), grpc.WithConnectParams(soon)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// entries lists the overlay's routes, neighbours and forwarding entries on a
// host, sorted.
func entries(t *testing.T, h *Host) []string {
	t.Helper()
	devices, err := h.Devices()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	err = h.Namespace.netlink(func(n *netlink.Handle) error {
		for _, f := range h.lab.Families() {
			link, err := n.LinkByName(devices[f])
			if err != nil {
				return err
			}
			family := subnet.PerFamily[int]{unix.AF_INET, unix.AF_INET6}[f]
			routes, err := n.RouteListFiltered(family, &netlink.Route{Protocol: 82}, netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				return err
			}
			for _, r := range routes {
				out = append(out, fmt.Sprintf("route %s", r.Dst))
			}
			neighbours, err := n.NeighList(link.Attrs().Index, family)
			if err != nil {
				return err
			}
			for _, e := range neighbours {
				if e.State == netlink.NUD_PERMANENT {
					out = append(out, fmt.Sprintf("neighbour %s %s", e.IP, e.HardwareAddr))
				}
			}
			fdb, err := n.NeighList(link.Attrs().Index, unix.AF_BRIDGE)
			if err != nil {
				return err
			}
			for _, e := range fdb {
				out = append(out, fmt.Sprintf("fdb %s dst %s", e.HardwareAddr, e.IP))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// eventually waits for a condition.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// mentions tells whether an entry is for one of a host's addresses or subnets.
func mentions(list []string, h *Host, subnets subnet.Subnets) bool {
	var words []string
	for _, f := range subnet.Families {
		words = append(words, h.Address(f).String())
		if s := subnets[f]; s.IsValid() {
			words = append(words, s.String(), s.Addr().String())
		}
	}
	return slices.ContainsFunc(list, func(e string) bool {
		return slices.ContainsFunc(strings.Fields(e), func(w string) bool { return slices.Contains(words, w) })
	})
}

// Nodes come late, come back and go for good, and records are broken, in the
// life of one network.
func TestNodesComeAndGo(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	store := openStore(t, l)
	first := l.Hosts[0]

	t.Run("a broken record leaves all peers in place", func(t *testing.T) {
		before := entries(t, first)
		if len(before) == 0 {
			t.Fatal("a node with peers has no entries")
		}
		keys := []string{"rubbish", "10.5.77.0-24", "10.5.78.0-24&fd00:10:5:4e::-64"}
		for _, key := range keys {
			if _, err := store.Put(t.Context(), Prefix+"/subnets/"+key, "not JSON at all"); err != nil {
				t.Fatal(err)
			}
		}
		for _, key := range keys {
			eventually(t, talkLimit, "the node logs the broken record "+key, func() bool { return strings.Contains(first.DaemonLog(), key) })
		}
		time.Sleep(200 * time.Millisecond)
		if after := entries(t, first); !slices.Equal(after, before) {
			t.Errorf("entries are now\n%s\nand were\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
		everyPairTalks(t, l, 0)
	})

	t.Run("a broken record outlives a restart that remembers nothing", func(t *testing.T) {
		env, err := l.Hosts[1].Env()
		if err != nil {
			t.Fatal(err)
		}
		key := Prefix + "/subnets/" + env.Subnets.Key()
		record, err := store.Get(t.Context(), key)
		if err != nil || len(record.Kvs) != 1 {
			t.Fatalf("%+v, %v", record, err)
		}
		if _, _, err := l.Hosts[1].StopDaemon(t.Context(), unix.SIGKILL); err != nil { // It would claim its record again.
			t.Fatal(err)
		}
		before := entries(t, first)
		if _, _, err := first.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(first.Dir, "state")); err != nil {
			t.Fatal(err)
		}
		on := clientv3.WithLease(clientv3.LeaseID(record.Kvs[0].Lease))
		if _, err := store.Put(t.Context(), key, "not JSON at all", on); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(first.StartDaemon(), first.WaitReady(t.Context())); err != nil {
			t.Fatal(err)
		}
		everyPairTalks(t, l, 0)
		if after := entries(t, first); !slices.Equal(after, before) {
			t.Errorf("entries are now\n%s\nand were\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
		}
		if _, err := store.Put(t.Context(), key, string(record.Kvs[0].Value), on); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(l.Hosts[1].StartDaemon(), l.Hosts[1].WaitReady(t.Context())); err != nil {
			t.Fatal(err)
		}
		everyPairTalks(t, l, talkLimit)
	})

	t.Run("a late node joins", func(t *testing.T) {
		began := time.Now()
		if _, err := l.AddHost(t.Context()); err != nil {
			t.Fatal(err)
		}
		everyPairTalks(t, l, talkLimit)
		t.Logf("every pair talks with the new node %s after its start began", time.Since(began).Round(time.Millisecond))
	})

	t.Run("a node that comes back keeps its subnet", func(t *testing.T) {
		h := l.Hosts[1]
		before, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		if err := h.RestartDaemon(t.Context(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if after, err := h.Env(); err != nil || after != before {
			t.Errorf("subnet file says %v (%v), before it said %v", after, err, before)
		}
		everyPairTalks(t, l, talkLimit)
	})

	t.Run("a node that is gone for good is forgotten", func(t *testing.T) {
		gone := l.Hosts[2]
		env, err := gone.Env()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := gone.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		peers := []*Host{l.Hosts[0], l.Hosts[1], l.Hosts[3]}
		for _, h := range peers {
			if !mentions(entries(t, h), gone, env.Subnets) {
				t.Fatalf("%s has no entries for %s, whose lease lives", h.Name, gone.Name)
			}
		}
		answer, err := store.Delete(t.Context(), Prefix+"/subnets/"+env.Subnets.Key())
		if err != nil || answer.Deleted != 1 {
			t.Fatalf("delete the lease %s: %v, %v", env.Subnets.Key(), answer, err)
		}
		began := time.Now()
		for _, h := range peers {
			eventually(t, talkLimit, h.Name+" forgets "+gone.Name, func() bool { return !mentions(entries(t, h), gone, env.Subnets) })
		}
		t.Logf("all peers forgot it within %s", time.Since(began).Round(time.Millisecond))
		for _, f := range l.Families() {
			from := l.Hosts[0].Pods[0]
			for _, h := range peers[1:] {
				if _, err := Ping(t.Context(), from.Namespace, netip.Addr{}, h.Pods[0].Addresses[f], PingOptions{}); err != nil {
					t.Error(err)
				}
			}
		}
	})
}
