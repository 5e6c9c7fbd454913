package lab

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// Invariant 6: stop, crash and restart lose not one packet.
func TestRestartLosesNothing(t *testing.T) {
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	a, b := l.Hosts[0], l.Hosts[1]
	before, err := a.Env()
	if err != nil {
		t.Fatal(err)
	}
	type flow struct {
		name   string
		pinger *Pinger
	}
	var flows []flow
	for _, f := range l.Families() {
		for _, ends := range [][2]*Pod{{a.Pods[0], b.Pods[0]}, {b.Pods[0], a.Pods[0]}} {
			from, to := ends[0], ends[1]
			p, err := StartPinger(t.Context(), from.Namespace, from.Addresses[f], to.Addresses[f], 100, PingOptions{Timeout: 3 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			flows = append(flows, flow{fmt.Sprintf("%s from %s to %s", f, from.Name, to.Name), p})
		}
	}
	const calm = 300 * time.Millisecond // Before, between and after: what comes late is to be seen.
	time.Sleep(calm)
	quickest := time.Hour // A machine that is busy may hold one up.
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGTERM} {
		state, took, err := a.StopDaemon(t.Context(), sig)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: ended after %s: %s", sig, took.Round(time.Millisecond), state)
		if sig == unix.SIGTERM {
			quickest = min(quickest, took)
			if state.ExitCode() != 0 {
				t.Errorf("SIGTERM: %s after %s, want exit status 0", state, took)
			}
		}
		time.Sleep(calm)
		began := time.Now()
		if err := a.StartDaemon(); err != nil {
			t.Fatal(err)
		}
		if err := a.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("ready again after %s", time.Since(began).Round(time.Millisecond))
		time.Sleep(calm)
	}
	if log := a.DaemonLog(); strings.Contains(log, "snapshot not saved") {
		t.Errorf("it did not end in time to save all:\n%s", log)
	}
	if quickest > time.Second {
		t.Errorf("SIGTERM: it took %s at least, want a second at most", quickest)
	}
	for _, f := range flows {
		r := f.pinger.Stop()
		t.Logf("%s: %s", f.name, r)
		if r.Lost != 0 || len(r.Failed) != 0 {
			t.Errorf("%s: lost packets: %s", f.name, r)
		}
	}
	if after, err := a.Env(); err != nil || after != before {
		t.Errorf("subnet file says %v (%v), before the restarts it said %v", after, err, before)
	}
}

// A config that changes takes effect at the restart of each daemon: with
// another VNI and port all is made anew, and nothing of the old is left.
func TestRestartAppliesAChangedConfig(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	const changed = `{"EnableIPv6": true, "Network": "10.5.0.0/16", "IPv6Network": "fd00:10:5::/48", "Backend": {"Type": "vxlan", "VNI": 4321, "Port": 4789, "MTU": 1400}}`
	if err := l.SetConfig(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts {
		before, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		after, err := h.Env()
		if err != nil || after.Subnets != before.Subnets || after.MTU != 1400 {
			t.Errorf("%s: subnet file says %v (%v), before it said %v", h.Name, after, err, before)
		}
	}
	everyPairTalks(t, l, talkLimit)
	for _, h := range l.Hosts {
		eventually(t, talkLimit, h.Name+" has the new devices alone", func() bool {
			devices, err := h.Devices()
			return err == nil && devices == subnet.PerFamily[string]{"ripstop.4321", "ripstop-v6.4321"}
		})
	}
}
