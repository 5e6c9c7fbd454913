package serve

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"

	"github.com/ripstop-net/ripstop/network/status"
)

// full is a status in which everything has a value.
func full() status.Status {
	now := time.Now()
	s := well().Status()
	s.Daemon = status.Daemon{Version: "v1", PID: 1, Started: now, LogLevel: "info", Beat: now}
	s.Firewall.Kept = true
	s.Lease.Expires, s.Loop.LastPass, s.Store.Heard = now, now, now
	s.Devices = append(s.Devices, status.Device{Name: "ripstop-v6.1", Right: true, MTU: 1430})
	for i := range 9 {
		s.Loop.PassTimes.Buckets = append(s.Loop.PassTimes.Buckets, status.Bucket{Within: float64(i + 1)})
	}
	for _, l := range []string{"underlay", "overlay"} {
		layer := status.ProbedLayer{Layer: l}
		for i := range 13 {
			layer.RoundTrips.Buckets = append(layer.RoundTrips.Buckets, status.Bucket{Within: float64(i + 1)})
		}
		s.Probing.Layers = append(s.Probing.Layers, layer)
	}
	return s
}

func gather(t testing.TB, s status.Status) map[string]*dto.MetricFamily {
	t.Helper()
	r, err := NewRegistry(func() status.Status { return s })
	if err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*dto.MetricFamily{}
	for _, f := range families {
		out[f.GetName()] = f
	}
	return out
}

func TestMetricsAreLinted(t *testing.T) {
	r, err := NewRegistry(full)
	if err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// TestSeriesDoNotGrowWithPeers: there are fewer than 200 on a node of both
// families that has met everything, as a scrape has them.
func TestSeriesDoNotGrowWithPeers(t *testing.T) {
	lines := func(peers int) (n int) {
		s := full()
		s.Peers = status.Peers{Count: peers, PassedOver: peers}
		for i := range peers {
			s.Peers.Records = append(s.Peers.Records, status.Record{Key: fmt.Sprint(i)})
			s.Loop.Problems = append(s.Loop.Problems, status.Problem{Entry: fmt.Sprint(i)})
		}
		r, err := NewRegistry(func() status.Status { return s })
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		metricsHandler(r).ServeHTTP(w, httptest.NewRequest(http.MethodGet, status.PathMetrics, nil))
		for line := range strings.Lines(w.Body.String()) {
			if !strings.HasPrefix(line, "#") {
				n++
			}
		}
		return n
	}
	few, many := lines(1), lines(1000)
	if few != many || many >= 200 {
		t.Errorf("%d series with a peer, %d with 1,000", few, many)
	}
	t.Logf("%d series", many)
}

// TestDocumentationHasEveryMetric: Documentation/metrics.md names each of ours
// with its type, labels and help, and no other.
func TestDocumentationHasEveryMetric(t *testing.T) {
	text, err := os.ReadFile("../../../Documentation/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(ripstop_\\w+)` \\| (.*) \\|$").FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = m[2]
	}
	exposed := map[string]string{}
	for name, f := range gather(t, full()) {
		if !strings.HasPrefix(name, "ripstop_") {
			continue
		}
		labels := map[string]bool{}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				labels["`"+l.GetName()+"`"] = true
			}
		}
		exposed[name] = fmt.Sprintf("%s | %s | %s", strings.ToLower(f.GetType().String()), strings.Join(slices.Sorted(maps.Keys(labels)), ", "), f.GetHelp())
	}
	for _, name := range slices.Sorted(maps.Keys(exposed)) {
		if documented[name] != exposed[name] {
			t.Errorf("Documentation/metrics.md has %q of it, it should have the line\n| `%s` | %s |", documented[name], name, exposed[name])
		}
	}
	for name := range documented {
		if _, ok := exposed[name]; !ok {
			t.Errorf("Documentation/metrics.md has %s, which does not exist", name)
		}
	}
}

// TestNoRulesAreNoWrongRules: where none are kept, as with backend alloc, the alert
// on wrong rules has nothing to go by.
func TestNoRulesAreNoWrongRules(t *testing.T) {
	s := full()
	s.Firewall = status.Firewall{}
	if f := gather(t, s)["ripstop_firewall_right"]; f != nil {
		t.Errorf("without rules: %v", f)
	}
	s.Firewall = status.Firewall{Kept: true, Problem: "refused"}
	if f := gather(t, s)["ripstop_firewall_right"]; f == nil || f.Metric[0].GetGauge().GetValue() != 0 {
		t.Errorf("with wrong rules: %v", f)
	}
}

// BenchmarkScrape is what a scrape costs beside the status itself.
func BenchmarkScrape(b *testing.B) {
	r, err := NewRegistry(full)
	if err != nil {
		b.Fatal(err)
	}
	h := metricsHandler(r)
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, status.PathMetrics, nil))
		if w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}
