package lab

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manyRestarts is invariant 6 in earnest: the daemon is stopped and killed in
// turn, one time in ten with etcd away, and not one packet is lost, nothing in
// the kernel changed.
func (s *faultSuite) manyRestarts(t *testing.T) {
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	h := l.Hosts[0]
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	before := mustPicture(t, h)
	ear := listen(t, h)
	looks := startLook(t, h, []sign{anotherDaemon})
	flows := startFlows(t, l)
	var longest time.Duration
	for i := range s.restarts {
		away := i%10 == 9
		if away {
			if err := l.Etcd.Kill(); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		if err := h.RestartDaemon(t.Context(), []unix.Signal{unix.SIGTERM, unix.SIGKILL}[(i+i/10)%2]); err != nil {
			t.Fatalf("restart %d: %v", i+1, err)
		}
		if away {
			if err := l.Etcd.Restart(t.Context()); err != nil {
				t.Fatal(err)
			}
		} else {
			longest = max(longest, time.Since(began))
		}
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(calm)
	row := stopFlows(t, l, flows, nobody)
	if heard := ear.heard(t); len(heard) != 0 {
		t.Errorf("the kernel announced %d changes, the first is %s", len(heard), heard[0])
	}
	if !looksLike(h, before) {
		t.Errorf("after the restarts:\n%s", differs(h, before))
	}
	if after, err := h.Env(); err != nil || after != env {
		t.Errorf("subnet file says %v (%v), before it said %v", after, err, env)
	}
	t.Logf("%d restarts, the longest with etcd there took %s", s.restarts, longest.Round(time.Millisecond))
	row.lab, row.fault, row.healed = "dual", "restarts of the daemon, one in ten with etcd away", longest
	s.add(row, looks.end(t))
}
