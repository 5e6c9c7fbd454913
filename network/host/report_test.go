package host

import (
	"context"
	"io/fs"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// kept is a keeper that keeps the settings of a host until the test ends.
func kept(t *testing.T, h *fakeHost, n Needs) *Keeper {
	t.Helper()
	k := keeperOf(t, h, zap.NewNop())
	if _, err := k.Check(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	if k.Report().Kept {
		t.Error("settings are kept that are not set yet")
	}
	if err := k.Set(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Keep(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
	time.Sleep(k.rest)
	return k
}

// hand changes a setting, which the kernel announces.
func (h *fakeHost) hand(key string, value int) {
	h.untold(key, value)
	h.changed()
}

// untold changes a setting of which nobody is told yet.
func (h *fakeHost) untold(key string, value int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.values[key] = value
}

func (h *fakeHost) lock(readOnly bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.readOnly[""] = readOnly
}

func text(r status.Host) string {
	var all []string
	for _, s := range r.Settings {
		mark := ""
		if !s.Right {
			mark = "!"
		}
		if s.Fought {
			mark += "?"
		}
		all = append(all, s.String()+mark)
	}
	return strings.Join(all, " ")
}

// TestReportSaysWhatIsKept, at once where a hand changes it, and that a hand goes on.
func TestReportSaysWhatIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := usual()
		k := kept(t, h, both())
		well := "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.accept_ra=2"
		if r := k.Report(); !r.Kept || text(r) != well || r.Restored != 0 || r.Problem != "" || r.Settings[0].Forwards != "IPv4" || r.Settings[1].Forwards != "IPv6" || r.Settings[2].Forwards != "" {
			t.Errorf("after it was set: %+v", r)
		}
		h.untold("ipv4/ip_forward", 0)
		if got := text(k.Report()); got != strings.Replace(well, "ip_forward=1", "ip_forward=0!", 1) {
			t.Errorf("changed a moment ago: %s", got)
		}
		h.changed()
		time.Sleep(time.Second)
		if r := k.Report(); text(r) != well || r.Restored != 1 || r.Settings[0].Restored != 1 || time.Since(r.LastRestored) > time.Second {
			t.Errorf("put back: %+v", r)
		}
		for range 20 * 10 {
			h.hand("ipv4/ip_forward", 0)
			time.Sleep(100 * time.Millisecond)
		}
		r := k.Report()
		if !r.Settings[0].Fought || r.Restored <= mostSaid || r.Settings[1].Fought || r.Wrong() != 1 {
			t.Errorf("a hand goes on: %+v", r)
		}
		time.Sleep(k.calm)
		if got := text(k.Report()); got != well && got != strings.Replace(well, "ip_forward=1", "ip_forward=1?", 1) {
			t.Errorf("when the hand was calm: %s", got)
		}
		time.Sleep(k.pause)
		if got := text(k.Report()); got != well {
			t.Errorf("when the hand was calm for long: %s", got)
		}
	})
}

// TestReportSaysWhatCannotBeSet and that it can be again, though nobody announces that.
func TestReportSaysWhatCannotBeSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := usual()
		k := kept(t, h, both())
		h.lock(true)
		h.hand("ipv6/conf/all/forwarding", 0)
		time.Sleep(time.Second)
		r := k.Report()
		if !strings.Contains(r.Problem, "sysctl -w net.ipv6.conf.all.forwarding=1") || r.Settings[1].Right || r.Restored != 0 {
			t.Errorf("it cannot be written: %+v", r)
		}
		h.lock(false)
		time.Sleep(2 * k.pause)
		if r := k.Report(); r.Problem != "" || r.Wrong() != 0 || r.Restored != 1 {
			t.Errorf("it can be written again: %+v", r)
		}
		h.mu.Lock()
		delete(h.values, "ipv6/conf/eth0/accept_ra")
		h.mu.Unlock()
		if r := k.Report(); len(r.Settings) != 2 || r.Problem != "" {
			t.Errorf("without the link: %+v", r)
		}
		h.mu.Lock()
		delete(h.values, "ipv4/ip_forward")
		h.mu.Unlock()
		if r := k.Report(); r.Settings[0].Right || !strings.Contains(r.Problem, fs.ErrNotExist.Error()) {
			t.Errorf("a setting that cannot be read: %+v", r)
		}
	})
}

// TestReportOfReadOnlySettings: where each link forwards, it is right that
// ip_forward is 0; a hand that turns a link off again and again is told of.
func TestReportOfReadOnlySettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := usual()
		h.readOnly[""] = true
		h.still("eth0")
		k := kept(t, h, Needs{Families: []subnet.Family{subnet.V4}})
		if r := k.Report(); len(r.Settings) != 1 || !r.Settings[0].Right || !r.Settings[0].PerInterface || r.Settings[0].Have != 0 {
			t.Errorf("over netlink: %+v", r)
		}
		for i := range 20 { // Pods come.
			h.still("veth" + string(rune('a'+i)))
			h.changed()
			time.Sleep(time.Second)
		}
		if r := k.Report(); r.Settings[0].Fought || r.Restored != 0 {
			t.Errorf("pods are taken for a hand: %+v", r)
		}
		for range 10 {
			h.still("eth0")
			h.changed()
			time.Sleep(k.pause)
		}
		if r := k.Report(); !r.Settings[0].Fought || r.Restored <= mostSaid {
			t.Errorf("a hand is not told of: %+v", r)
		}
	})
}
