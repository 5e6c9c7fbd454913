package fleet

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/lab"
)

var daemonPath string

func TestMain(m *testing.M) {
	lab.RunIfChild()
	if unix.Geteuid() != 0 {
		fmt.Println("the tests of network/fleet make network namespaces: run them as root")
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "ripstop-fleet-test-")
	if err == nil {
		daemonPath = filepath.Join(dir, "ripstopd")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", daemonPath, "github.com/ripstop-net/ripstop/cmd/ripstopd").CombinedOutput(); err != nil {
			err = fmt.Errorf("build ripstopd: %w\n%s", err, out)
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// TestFleet: of twenty daemons that start at once none dies, each node's kernel
// comes to have the routes to all others, and those of late joiners.
func TestFleet(t *testing.T) {
	for _, mode := range []lab.Mode{lab.IPv4, lab.Dual} {
		t.Run(string(mode), func(t *testing.T) {
			const nodes, joiners = 20, 3
			report, err := Run(t.Context(), Options{
				Nodes: nodes, Joiners: joiners, Idle: 100 * time.Millisecond,
				Lab: lab.Options{Mode: mode, Dir: t.TempDir(), Daemon: daemonPath, Progress: func(line string) { t.Log(line) }},
			})
			if err != nil {
				t.Fatal(err)
			}
			var text strings.Builder
			if err := report.Write(&text); err != nil {
				t.Fatal(err)
			}
			t.Logf("\n%s", text.String())
			if len(report.IdleCPU) != nodes || len(report.Resident) != nodes || len(report.Everywhere) != joiners || len(report.Known) != nodes+nodes+1+nodes+2 {
				t.Errorf("not everything was measured: %+v", report)
			}
			for _, d := range append(report.Known, report.Whole, report.StartCPU, report.StartStore.CPU) {
				if d <= 0 || d > wholeLimit {
					t.Errorf("measured %s", d)
				}
			}
			// Each node watches config and records, and asks for more than that to start.
			if w := report.IdleStore.Watchers; w < 2*nodes || report.StartStore.Requests < 2*nodes || report.StartStore.Sent == 0 {
				t.Errorf("etcd's load: %+v, at the start %+v", report.IdleStore, report.StartStore)
			}
		})
	}
}

// TestFleetNoticesDeathAndMissingRoutes: a measurement among daemons that died,
// or whose kernels are wrong, fails.
func TestFleetNoticesDeathAndMissingRoutes(t *testing.T) {
	l, err := lab.Start(t.Context(), lab.Options{Nodes: 3, Mode: lab.IPv4, Dir: t.TempDir(), Daemon: daemonPath, NoDaemons: true})
	if err != nil {
		t.Fatal(err)
	}
	r := &run{lab: l}
	t.Cleanup(func() {
		for _, m := range r.members {
			_ = m.routes.close() // Nothing hangs on it.
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := r.start(t.Context(), &Report{}); err != nil {
		t.Fatal(err)
	}
	if err := r.alive(); err != nil {
		t.Error(err)
	}
	if err := r.check(); err != nil {
		t.Error(err)
	}
	first := r.members[0]
	had := first.subnets
	first.subnets = nil // Then the others have a route too many.
	if err := r.check(); err == nil {
		t.Error("a route that nobody needs is not noticed")
	}
	first.subnets = []netip.Prefix{had[0], netip.MustParsePrefix("10.6.0.0/24")}
	if err := r.check(); err == nil {
		t.Error("a route that is missing is not noticed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.await(ctx, r.members[1], first.subnets); err == nil {
		t.Error("a route that never comes is not noticed")
	}
	if _, _, err := first.host.StopDaemon(t.Context(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := r.alive(); err == nil || !strings.Contains(err.Error(), first.host.Name) {
		t.Errorf("a daemon that was killed: %v", err)
	}
}

func TestReadMetrics(t *testing.T) {
	const text = `# HELP grpc_server_handled_total Total.
grpc_server_handled_total{grpc_code="OK",grpc_method="Range",grpc_service="etcdserverpb.KV",grpc_type="unary"} 5
grpc_server_handled_total{grpc_code="OK",grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"} 7
grpc_server_handled_total{grpc_code="OK",grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 100
etcd_debugging_lease_renewed_total 9
etcd_debugging_mvcc_watcher_total 4
etcd_network_client_grpc_sent_bytes_total 1.5e+06
no number
`
	var s Store
	if err := s.read(strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	if want := (Store{Requests: 12, Renewals: 9, Watchers: 4, Sent: 1.5e6}); s != want {
		t.Errorf("read %+v, want %+v", s, want)
	}
}
