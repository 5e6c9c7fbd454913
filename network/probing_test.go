package network

import (
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/network/probe"
	"github.com/ripstop-net/ripstop/network/status"
)

func TestEchoPortIsNotTheTunnels(t *testing.T) {
	vxlan, direct := plan.Means{VNI: 1, Port: 8472}, plan.Means{Direct: true}
	if checkEchoPort(8472, vxlan) == nil {
		t.Error("the tunnel's port is taken for the echo's")
	}
	for _, err := range []error{checkEchoPort(8473, vxlan), checkEchoPort(0, direct), checkEchoPort(8472, direct)} {
		if err != nil {
			t.Error(err)
		}
	}
}

// TestPeersAreToldOfTrouble: each condition by its number, and rules in the way.
func TestPeersAreToldOfTrouble(t *testing.T) {
	s := status.Status{Conditions: status.Judge(status.Status{}, time.Unix(1, 0), "")}
	s.Firewall.Findings = []status.Rule{{Certain: false}}
	var want probe.Trouble
	for i, c := range s.Conditions {
		if c.Name != status.Names[i] {
			t.Errorf("condition %d is %s, want %s", i, c.Name, status.Names[i])
		}
		if !c.OK {
			want |= probe.Condition(i)
		}
	}
	if got := troubleOf(s); got != want || got == 0 || got&probe.InTheWay != 0 {
		t.Errorf("trouble is %b, want %b", got, want)
	}
	s.Firewall.Findings[0].Certain = true
	if got := troubleOf(s); got != want|probe.InTheWay {
		t.Errorf("trouble with a rule in the way is %b", got)
	}
	if got := troubleOf(status.Status{}); got != 0 {
		t.Errorf("trouble with nothing known is %b", got)
	}
}
