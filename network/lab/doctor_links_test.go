package lab

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/doctor"
)

// TestDoctorNamesLinksThatDoNotForward beside a daemon that lives and says nothing of
// them, and one that ends again and again.
func TestDoctorNamesLinksThatDoNotForward(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 1, Mode: IPv4})
	h := l.Hosts[0]
	set(t, h, "ipv4/conf/"+podBridge+"/forwarding=0", "ipv4/conf/"+hostInterface+"/forwarding=0")
	d := diagnose(t, h, "--check=forwarding")
	if !d.names("forwarding", doctor.Failure, podBridge+" does not forward IPv4", "sysctl -w net/ipv4/conf/"+podBridge+"/forwarding=1") {
		t.Errorf("the pods' bridge does not forward:\n%s", d.text())
	}
	if !d.names("forwarding", doctor.Warning, hostInterface+" does not forward IPv4") || strings.Count(d.text(), "\n") != 1 {
		t.Errorf("the underlay does not forward:\n%s", d.text())
	}
	set(t, h, "ipv4/conf/"+podBridge+"/forwarding=1", "ipv4/conf/"+hostInterface+"/forwarding=1")
	isWell(t, h, "forwarding again")

	for range 3 {
		if err := h.RestartDaemon(t.Context(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if d := diagnose(t, h, "--check=daemon"); !d.names("daemon", doctor.Warning, "started 4 times within ") {
		t.Errorf("the daemon ends again and again:\n%s", d.text())
	}
	if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if d := diagnose(t, h, "--check=daemon"); !d.names("daemon", doctor.Warning, "started 4 times within ") {
		t.Errorf("one restart by hand ends no loop:\n%s", d.text())
	}
}
