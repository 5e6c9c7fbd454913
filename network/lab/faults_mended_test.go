package lab

import (
	"bytes"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// rulesWithin is what putting all rules back may take.
const rulesWithin = 200 * time.Millisecond

// rulesAgain tells that a host's guard is what it is, with all the peers that it lets
// in.
func rulesAgain(t *testing.T, _ *Lab, h *Host) func() bool {
	t.Helper()
	rules, peers, err := guardPicture(h)
	if err != nil || len(rules) == 0 || len(peers) == 0 {
		t.Fatalf("the guard has %d rules and %d peers: %v", len(rules), len(peers), err)
	}
	return func() bool {
		now, let, err := guardPicture(h)
		return err == nil && slices.Equal(now, rules) && maps.Equal(let, peers)
	}
}

// forwardsAgain tells that a host forwards in all families, itself and by its devices.
func forwardsAgain(t *testing.T, l *Lab, h *Host) func() bool {
	t.Helper()
	devices, err := h.Devices()
	if err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, f := range l.Families() {
		keys = append(keys, subnet.PerFamily[string]{"ipv4/ip_forward", "ipv6/conf/all/forwarding"}[f],
			subnet.PerFamily[string]{"ipv4/conf/", "ipv6/conf/"}[f]+devices[f]+"/forwarding")
	}
	return func() bool {
		return !slices.ContainsFunc(keys, func(key string) bool { return sysctl(t, h, key) != "1" })
	}
}

// fileAgain tells that a host's subnet file says what it says.
func fileAgain(t *testing.T, _ *Lab, h *Host) func() bool {
	t.Helper()
	text, err := os.ReadFile(h.SubnetFile())
	if err != nil {
		t.Fatal(err)
	}
	return func() bool {
		now, err := os.ReadFile(h.SubnetFile())
		return err == nil && bytes.Equal(now, text)
	}
}

// nothingNamed tells that a host's daemon names no rule of another's. The rule itself
// is not the daemon's to mend.
func nothingNamed(t *testing.T, _ *Lab, h *Host) func() bool {
	t.Helper()
	p := probeOf(t, h)
	return func() bool {
		s, err := p.client.Status(t.Context())
		return err == nil && len(s.Firewall.Findings) == 0
	}
}

// TestMendedIsNotSoByItself: what a fault is measured by does not hold while a daemon
// that sleeps leaves things as they are. It would measure nothing else.
func TestMendedIsNotSoByItself(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	h := l.Hosts[0]
	c := nft(t, h.Namespace)
	named := nothingNamed(t, l, h)
	if !named() {
		t.Error("a rule is named")
	}
	strict, err := addStrict(c)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, talkLimit, "the rule is named", func() bool { return !named() })
	c.DelTable(strict)
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	eventually(t, talkLimit, "the rule is named no more", named)
	for _, f := range hostFaults {
		if f.mended == nil || f.name == "another's firewall rule in the way for a while" { // That deed has the daemon say so.
			continue
		}
		undone := f.mended(t, l, h)
		if !undone() {
			t.Errorf("%s: already before", f.name)
		}
		if err := standStill(h.DaemonPID()); err != nil {
			t.Fatal(err)
		}
		err := f.do.act(t, l, h)
		time.Sleep(calm)
		if err != nil || undone() {
			t.Errorf("%s: it is so by itself (%v)", f.name, err)
		}
		if err := goOn(h.DaemonPID()); err != nil {
			t.Fatal(err)
		}
		eventually(t, talkLimit, f.name+": mended", undone)
	}
}
