package lab

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/doctor"
	"github.com/ripstop-net/ripstop/network/status"
)

// TestDoctorNamesAnEchoPortThatIsTaken: another program has the port at which peers are
// answered. The daemon goes on, says so once in its log and all the while in its status,
// the doctor names it there and on a peer, and once the port is free it is used.
func TestDoctorNamesAnEchoPortThatIsTaken(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: Dual, NoDaemons: true})
	peer, h := l.Hosts[0], l.Hosts[1]
	var taken []net.PacketConn
	free := func() {
		for _, c := range taken {
			_ = c.Close()
		}
	}
	defer free()
	err := h.Namespace.Do(func() error {
		for _, network := range []string{"udp4", "udp6"} {
			c, err := (&net.ListenConfig{}).ListenPacket(t.Context(), network, net.JoinHostPort("", "8473"))
			if err != nil {
				return err
			}
			taken = append(taken, c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range l.Hosts {
		if err := errors.Join(h.StartDaemon(), h.WaitReady(t.Context()), h.addPods(t.Context(), 1)); err != nil {
			t.Fatal(err)
		}
	}
	everyPairTalks(t, l, talkLimit)
	p := probeOf(t, h)
	now := func() status.Status {
		s, err := p.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	eventually(t, talkLimit, "the status names the port", func() bool { return strings.Contains(now().Probing.Problem, "address already in use") })
	if !now().Ready {
		t.Error("the node is not ready for it")
	}
	saysInTime(t, h, "peers that ask whether this node can be reached are not answered, trying on")
	if d := diagnose(t, h); !d.names("daemon", doctor.Warning, "UDP port 8473 cannot be had", "address already in use", "$ ss -ulpn") || d.code != doctor.ExitWarnings {
		t.Errorf("exit code %d: %s", d.code, d.text())
	}
	pathFault{name: "the echo's port is taken", check: "path/daemon", least: doctor.Warning, says: []string{
		"the overlay of PEER works, and its daemon does not answer at UDP port 8473: it hangs, or the port is blocked",
	}}.isNamed(t, diagnose(t, peer), h)
	free()
	eventually(t, time.Minute, "the port is had", func() bool { return now().Probing.Problem == "" })
	asker := probeOf(t, peer)
	eventually(t, 2*time.Minute, "the peer is answered, if it asked meanwhile", func() bool { // It asks again ever less often.
		s, err := asker.client.Status(t.Context())
		return err == nil && len(s.Probing.Silent) == 0
	})
	for _, h := range l.Hosts {
		isWell(t, h, "the port is free")
	}
	if n := strings.Count(h.DaemonLog(), "are not answered, trying on"); n != len(l.Families()) {
		t.Errorf("it is said %d times", n)
	}
}
