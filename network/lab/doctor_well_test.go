package lab

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/doctor"
)

// usualChecks are those that have something to see on every host, tunnelChecks those
// beside them where there is a tunnel.
var (
	usualChecks  = []string{"daemon", "kernel", "store", "clock", "underlay", "record", "records", "conntrack", "subnet-file", "cni"}
	routeChecks  = []string{"overlap", "entries", "forwarding", "mtu", "firewall", "foreign-rules"}
	tunnelChecks = []string{"tunnels", "device", "checksum", "big-tcp", "guard", "path/overlay"}
)

// TestDoctorFindsNothing: on healthy hosts of each family and of each backend there is
// nothing to be said and much to be seen, and it takes no longer than somebody waits;
// also while daemons are restarted beside it.
func TestDoctorFindsNothing(t *testing.T) {
	t.Parallel()
	type network struct {
		name   string
		opts   Options
		checks []string
		// afterFlannel means that all nodes were flannel's.
		afterFlannel bool
	}
	all := slices.Concat(usualChecks, routeChecks, tunnelChecks)
	var networks []network
	for _, mode := range Modes {
		networks = append(networks, network{name: string(mode), opts: Options{Mode: mode}, checks: all})
	}
	networks = append(networks,
		network{name: "direct routes and a router", opts: Options{Mode: Dual, Far: 1, Config: configWith(Dual, directRoutes)}, checks: all},
		network{name: "host-gw", opts: Options{Mode: Dual, Config: configWith(Dual, hostGateway)}, checks: slices.Concat(usualChecks, routeChecks, []string{"path/underlay"})},
		network{name: "alloc", opts: Options{Mode: Dual, Config: configWith(Dual, `{"Type": "alloc"}`)}, checks: usualChecks},
		network{name: "taken over from flannel", opts: Options{Mode: Dual}, checks: all, afterFlannel: true},
		network{name: "taken over from flannel, direct routes", opts: Options{Mode: IPv4, Config: configWith(IPv4, directRoutes)}, checks: all, afterFlannel: true},
	)
	for _, n := range networks {
		t.Run(n.name, func(t *testing.T) {
			t.Parallel()
			n.opts.Nodes = 3
			var l *Lab
			if n.afterFlannel {
				l, _ = takenOver(t, n.opts)
				for _, h := range l.Hosts {
					bridgeFollows(t, h)
				}
			} else {
				l = startLab(t, n.opts)
			}
			if _, err := toolPath(); err != nil { // Building it is not the doctor's time.
				t.Fatal(err)
			}
			if slices.Contains(n.checks, "entries") {
				allKnow(t, l) // Who has not heard of a peer yet lacks its entries.
			}
			quickest := time.Hour // A machine that is busy may hold one up.
			for _, h := range l.Hosts {
				d := isWell(t, h, "all is well")
				t.Logf("%s: %s, %d verdicts", h.Name, d.took.Round(time.Millisecond), len(d.verdicts))
				quickest = min(quickest, d.took)
				for _, id := range n.checks {
					if !d.looked(id) {
						t.Errorf("nothing was looked at by the check %q", id)
					}
				}
			}
			if limit := soonWell(); quickest > limit {
				t.Errorf("all is well, and the doctor takes %s to say so, want at most %s", quickest, limit)
			}
			ctx, stop := context.WithCancel(t.Context())
			var restarts sync.WaitGroup
			restarts.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if err := l.Hosts[i%2].RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
						t.Error(err)
						return
					}
					select {
					case <-ctx.Done():
					case <-time.After(betweenRestarts):
					}
				}
			})
			for range 2 {
				for _, h := range l.Hosts {
					// A daemon that is found between its end and its start is waited for, and one
					// that comes up is worth a note.
					if d := diagnose(t, h); d.code != 0 {
						t.Errorf("while daemons are restarted, %s: %s", h.Name, d.text())
					}
				}
			}
			stop()
			restarts.Wait()
		})
	}
}

// betweenRestarts is how long a daemon is left alone at least, of two that are restarted
// in turn: one that is never there when it is asked would not be well.
const betweenRestarts = 500 * time.Millisecond

// soonWell is how long the doctor may take where all is well, with three peers: 5 s,
// and more where daemons have the race detector and other tests beside them.
func soonWell() time.Duration {
	if raceDetector {
		return 15 * time.Second
	}
	return 5 * time.Second
}

// bridgeFollows does what the doctor says of pods that flannel has given an MTU which
// the tunnel over IPv6 does not carry; where there is none it has nothing to say.
func bridgeFollows(t *testing.T, h *Host) {
	t.Helper()
	if h.lab.Mode() == IPv4 {
		return
	}
	if d := diagnose(t, h, "--check=mtu"); !d.names("mtu", doctor.Warning, "interface cni0, by which pods are reached, has MTU 1450, and the tunnel carries 1430", "$ ip link set cni0 mtu 1430") {
		t.Errorf("%s: flannel's pods: %s", h.Name, d.text())
	}
	err := h.Namespace.netlink(func(n *netlink.Handle) error {
		bridge, err := n.LinkByName(podBridge)
		if err != nil {
			return err
		}
		return n.LinkSetMTU(bridge, 1430)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestDoctorBesideFlannel: while some nodes are flannel's yet, and tell nothing of
// themselves, nothing is wrong with those that are taken over, one after another.
func TestDoctorBesideFlannel(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual, NoDaemons: true})
	layOutFlannel(t, l, inNFTables)
	for _, h := range l.Hosts {
		if err := h.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := h.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		bridgeFollows(t, h)
		d := isWell(t, h, "those that come later are flannel's")
		if !d.looked("path/overlay") || !d.looked("device") {
			t.Errorf("%s: too little was looked at: %+v", h.Name, d.verdicts)
		}
	}
}

// looked tells whether a check had something to say.
func (d diagnosis) looked(id string) bool {
	for _, v := range d.verdicts {
		if v.Check == id && v.Severity == doctor.OK {
			return true
		}
	}
	return false
}
