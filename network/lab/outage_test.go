package lab

import (
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/status"
)

// TestOutageCostsTheDaemonNoCPU: a daemon whose etcd is away takes less than 1 % of a
// processor, with all that it does beside asking for it. Beside other tests, and under
// the race detector, that may be five times as much.
func TestOutageCostsTheDaemonNoCPU(t *testing.T) {
	t.Parallel()
	const long, most = 10 * time.Second, 0.05
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	if err := l.Etcd.Kill(); err != nil {
		t.Fatal(err)
	}
	p := probeOf(t, l.Hosts[0])
	eventually(t, time.Minute, "the outage is noticed", func() bool {
		s, err := p.client.Status(t.Context())
		return err == nil && s.Store.State == status.Stale
	})
	before, err := ProcessorTime(l.Hosts[0].DaemonPID())
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	time.Sleep(long) // Nobody asks meanwhile.
	after, err := ProcessorTime(l.Hosts[0].DaemonPID())
	if err != nil {
		t.Fatal(err)
	}
	share := float64(after-before) / float64(time.Since(began))
	t.Logf("%s of processor time in %s of an outage: %.2f %%", after-before, time.Since(began), 100*share)
	if share > most {
		t.Errorf("%.2f %% of a processor, want at most %.0f %%", 100*share, 100*most)
	}
}
