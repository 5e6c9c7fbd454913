package firewall

import (
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/network/status"
)

// What is told of the rules follows what happens to them, and waits for no pass.
func TestReport(t *testing.T) {
	f, ns := opened(t, everything, networks["ipv4"])
	f.Update(nil, addrs(0, 3))
	running(t, f)
	c := outside(t, ns)
	told := func(what string, is func(status.Firewall) bool) {
		t.Helper()
		eventually(t, what, func() bool { return is(f.Report(t.Context())) })
	}
	told("the rules", func(r status.Firewall) bool {
		return r.Kept && r.Guard && r.Problem == "" && r.Peers == 3 && r.Writes > 0 && r.Heals == 0 && r.LastHeal.IsZero() && len(r.Findings) == 0
	})
	c.nft.FlushRuleset()
	if err := c.nft.Flush(); err != nil {
		t.Fatal(err)
	}
	told("another hand", func(r status.Firewall) bool { return r.Heals == 1 && !r.LastHeal.IsZero() })

	w := writer{t, c, filterIP}
	w.base("late", 0, dropPolicy) // Not iptables', so not to be changed.
	w.done()
	told("what drops", func(r status.Firewall) bool {
		return len(r.Findings) == 1 && r.Findings[0].Table == "ip filter" && r.Findings[0].Chain == "late" && r.Findings[0].Rule == "policy drop" && r.Findings[0].Certain &&
			r.Findings[0].Traffic != "" && r.Findings[0].Mend != ""
	})
	c.nft.FlushRuleset()
	if err := c.nft.Flush(); err != nil {
		t.Fatal(err)
	}
	told("nothing drops", func(r status.Firewall) bool { return len(r.Findings) == 0 })

	<-f.turn // A pass is at work.
	asked := make(chan status.Firewall, 1)
	go func() { asked <- f.Report(t.Context()) }()
	select {
	case r := <-asked:
		if r.Peers != 3 {
			t.Errorf("while a pass is at work: %+v", r)
		}
	case <-time.After(patience):
		t.Error("it waits for the pass")
	}
	f.turn <- struct{}{}
}
