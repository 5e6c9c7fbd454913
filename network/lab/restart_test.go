package lab

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL, unix.SIGTERM} {
		state, took, err := a.StopDaemon(t.Context(), sig)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: ended after %s: %s", sig, took.Round(time.Millisecond), state)
		if sig == unix.SIGTERM && (state.ExitCode() != 0 || took > time.Second) {
			t.Errorf("SIGTERM: %s after %s, want exit status 0 within a second", state, took)
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
