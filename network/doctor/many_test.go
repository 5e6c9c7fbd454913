package doctor_test

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/planners"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/network/envfile"
	"github.com/ripstop-net/ripstop/network/host"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// manyPeers is how many nodes a large network has.
const manyPeers = 10_000

// sources answers for all that is not the kernel.
type sources struct {
	status  status.Status
	listing subnet.Listing
}

func (s sources) Status(context.Context) (status.Status, error)            { return s.status, nil }
func (s sources) Process(context.Context) (int, error)                     { return 0, nil }
func (s sources) Tracking() (host.Tracking, error)                         { return host.Tracking{}, fs.ErrNotExist }
func (s sources) List(context.Context) (subnet.Listing, error)             { return s.listing, nil }
func (s sources) Servers(context.Context) []doctor.Server                  { return nil }
func (s sources) Alive(context.Context, []string) (map[string]bool, error) { return nil, nil }

// Get is of a host that forwards, filters loosely and tracks no connections.
func (s sources) Get(key string) (int, error) {
	if strings.HasPrefix(key, "netfilter/") {
		return 0, fs.ErrNotExist
	}
	return 2, nil
}

func (s sources) Examine(_ context.Context, _ doctor.Filtered, peers []netip.Addr) (doctor.Rules, error) {
	if len(peers) != manyPeers {
		return doctor.Rules{}, fmt.Errorf("%d peers are asked about", len(peers))
	}
	return doctor.Rules{There: true}, nil
}

// TestManyPeersAreLookedAtInTime: the whole of a node's part among 10,000 peers on the
// real kernel, with nothing wrong and with everything.
func TestManyPeersAreLookedAtInTime(t *testing.T) {
	doctor.Unhurried(t)
	ns := kerneltest.Namespace(t)
	k, err := kernel.OpenAt(ns, vxlan.OwnsDevice)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	const text = `{"Network": "10.0.0.0/8", "SubnetLen": 24, "Backend": {"Type": "vxlan"}}`
	cfg, err := subnet.ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	opts, err := planners.Parse(cfg.Backend)
	if err != nil {
		t.Fatal(err)
	}
	lease := func(n int) subnet.Lease {
		name := fmt.Sprintf("node%d", n)
		var public subnet.PerFamily[netip.Addr]
		public[subnet.V4] = netip.AddrFrom4([4]byte{172, 16, byte(n >> 8), byte(n)})
		l := subnet.Lease{Node: name, Backend: "vxlan", Endpoints: opts.Endpoints(plan.Self{Node: name}, public), MTU: 65485, ID: 1, Created: int64(n + 1), Modified: int64(n + 1)}
		l.Subnets[subnet.V4] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(1 + n>>8), byte(n), 0}), 24)
		return l
	}
	own := lease(0)
	own.Endpoints[subnet.V4].PublicIP = netip.MustParseAddr("192.0.2.1")
	s := sources{listing: subnet.Listing{Revision: 1, Config: []byte(text), Leases: []subnet.Lease{own}}}
	for n := range manyPeers {
		s.listing.Leases = append(s.listing.Leases, lease(n+1))
	}
	self := plan.Self{Node: own.Node, Subnets: own.Subnets}
	self.Underlay[subnet.V4] = plan.Underlay{Interface: "lo", Addr: netip.MustParseAddr("192.0.2.1"), MTU: 65535}
	planner := opts.Planner(self)
	owed, err := planner.Own()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range s.listing.Leases[1:] {
		owed = append(owed, planner.Peer(l)...)
	}
	want := backend.NewState(owed...)
	if failed := backend.Execute(t.Context(), k, backend.NewState(), backend.Diff(backend.NewState(), want)); len(failed) > 0 {
		t.Fatal(failed[0])
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "subnet.env")
	env := envfile.Env{Subnets: own.Subnets, MTU: 65485}
	env.Networks[subnet.V4] = cfg.Ranges[subnet.V4].Network
	if err := env.Write(file); err != nil {
		t.Fatal(err)
	}
	s.status = status.Status{
		Node: own.Node, Ready: true, Up: true, Daemon: status.Daemon{Started: time.Now()},
		Underlay: []status.Underlay{{Family: "IPv4", Interface: "lo", Address: netip.MustParseAddr("192.0.2.1"), Public: netip.MustParseAddr("192.0.2.1")}},
	}
	all := doctor.Sources{
		Setup:  doctor.Setup{SubnetFile: file, ConfDir: dir, RunDir: dir, Release: "6.1.0", Guard: true},
		Daemon: s, Store: s, Saved: func() (*doctor.Saved, error) { return nil, nil }, Kernel: k, Host: loopback{k}, Firewall: s, Settings: s,
	}
	examine := func(what string) []doctor.Verdict {
		began, before := time.Now(), used(t)
		checks := doctor.Node(all)
		for i := range checks { // On a machine that is busy with others they would run out.
			checks[i].Limit = time.Hour
		}
		got := doctor.Run(t.Context(), checks, nil)
		took := used(t) - before
		t.Logf("%s: %s, of which %s of a processor's", what, time.Since(began).Round(time.Millisecond), took.Round(time.Millisecond))
		if took > inTime*slower {
			t.Errorf("%s: it took %s of a processor's time among %d peers", what, took, manyPeers)
		}
		return got
	}
	for _, v := range examine("all is well") {
		if v.Severity > doctor.OK {
			t.Errorf("%+v", v)
		}
	}
	if failed := backend.Execute(t.Context(), k, want, backend.Diff(want, backend.NewState())); len(failed) > 0 {
		t.Fatal(failed[0])
	}
	for _, v := range examine("nothing is there") {
		if v.Check == "entries" && (v.Severity != doctor.Failure || len(v.Evidence) != 11 || v.Evidence[10] != "and 39990 more") {
			t.Errorf("%+v", v)
		}
	}
	_ = os.Remove(file)
}

// inTime is what a look at a node may take among so many. It is judged by the time of
// the processor, the kernel's work for it included, of which others on the machine
// take nothing away; it waits for little beside.
const inTime = 3 * time.Second

func used(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// loopback has the underlay's address on lo.
type loopback struct{ *kernel.Kernel }

func (loopback) Interfaces(context.Context) ([]backend.Interface, error) {
	return []backend.Interface{{Name: "lo", Up: true, MTU: 65535, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}}, nil
}
