package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/ripstop-net/ripstop/network/lab"
)

func TestMain(m *testing.M) {
	lab.RunIfChild()
	goleak.VerifyTestMain(m)
}

// TestRunMeasuresAllThereIs: a real daemon among few peers, each thing once.
func TestRunMeasuresAllThereIs(t *testing.T) {
	daemon := filepath.Join(t.TempDir(), "ripstopd")
	if out, err := exec.Command("go", "build", "-o", daemon, "github.com/ripstop-net/ripstop/cmd/ripstopd").CombinedOutput(); err != nil {
		t.Fatalf("build ripstopd: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := Run(ctx, Options{
		Peers: []int{120, 3}, Short: true, Daemon: daemon, Progress: func(line string) { t.Log(line) },
		pauses: pauses{settle: 100 * time.Millisecond, quiet: 100 * time.Millisecond, idle: 100 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Sizes) != 2 || r.Sizes[0].Peers != 3 || r.Sizes[1].Peers != 120 {
		t.Fatalf("sizes: %+v", r.Sizes)
	}
	for _, s := range r.Sizes {
		samples := map[string]Sample{
			"list": s.List, "cold": s.Cold, "cold CPU": s.ColdCPU, "warm": s.Warm, "add": s.Add, "remove": s.Remove,
			"join": s.Join.Whole, "leave": s.Leave.Whole, "move": s.Move.Whole,
		}
		if s.Burst > 0 {
			samples["joins"], samples["leaves"] = s.Joins, s.Leaves
		}
		for _, f := range s.Floors {
			samples[f.Tool+" add"], samples[f.Tool+" remove"], samples[f.Tool+" one"] = f.Add, f.Remove, f.One
		}
		for name, sample := range samples {
			if sample.Median() <= 0 {
				t.Errorf("%d peers: %s: %v", s.Peers, name, sample)
			}
		}
		if last := s.Floors[len(s.Floors)-1]; last.Tool != "bare sender" {
			t.Errorf("%d peers: floors: %+v", s.Peers, s.Floors)
		}
		if s.WarmEvents != 0 {
			t.Errorf("%d peers: %d announcements at a warm restart", s.Peers, s.WarmEvents)
		}
		if s.Settled.Now == 0 || s.Settled.Most < s.Settled.Now || s.Restarted.Now == 0 || s.IdleTime == 0 {
			t.Errorf("%d peers: %+v", s.Peers, s)
		}
	}
	for name, took := range map[string]Sample{"tunnel": r.Throughput.Tunnel, "direct": r.Throughput.Direct, "underlay": r.Throughput.Underlay} {
		if rate := perSecond(took); !(rate > 1e6 && rate < 1e12) {
			t.Errorf("throughput, %s: %v, %g b/s", name, took, rate)
		}
	}
	dir := t.TempDir()
	if err := r.Write(dir, "ripstopd of a test", "name  sec/op"); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| peers | 3 | 120 |", "**cold start**", "bare sender", "ripstopd of a test", "name  sec/op", picture, "pod to pod over the tunnel"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
	if drawn, err := os.ReadFile(filepath.Join(dir, picture)); err != nil || !strings.HasPrefix(string(drawn), "<?xml") {
		t.Errorf("the picture: %v, %.40q", err, drawn)
	}
}

func TestSample(t *testing.T) {
	s := Sample{5, 1, 4, 2, 3}
	if s.Median() != 3 || s.At(0.99) != 5 || s.At(0) != 1 || s.Spread() != 4./3 {
		t.Errorf("median %d, p99 %d, least %d, spread %v", s.Median(), s.At(0.99), s.At(0), s.Spread())
	}
	if s = nil; s.Median() != 0 || s.Spread() != 0 {
		t.Error("of nothing")
	}
}

// TestGoalsTellWhatDoesNotHold: each limit is passed by one value only.
func TestGoalsTellWhatDoesNotHold(t *testing.T) {
	good := func(peers int) Size {
		per := time.Duration(peers) * time.Microsecond
		change := Changes{Kernel: Sample{time.Millisecond}}
		return Size{
			Peers: peers, Floors: []Floor{{Tool: "floor", Add: Sample{10 * per}}}, List: Sample{per}, Cold: Sample{15 * per}, Warm: Sample{per},
			Join: change, Leave: change, Move: change, Burst: 10, Joins: Sample{per}, Leaves: Sample{2 * per},
			Add: Sample{per}, Remove: Sample{2 * per}, Settled: Memory{Now: 20e6}, Idle: 0.0004, IdleTime: time.Minute,
		}
	}
	for name, tc := range map[string]struct {
		spoil func(most *Size)
		fails int
	}{
		"nothing":        {func(*Size) {}, 0},
		"cold start":     {func(s *Size) { s.Cold = Sample{s.Cold[0] + 2*s.List[0]} }, 1},
		"growth":         {func(s *Size) { s.Cold, s.List = Sample{2 * s.Cold[0]}, Sample{s.Cold[0]} }, 1},
		"removal":        {func(s *Size) { s.Remove = Sample{3 * s.Add[0]} }, 1},
		"leaves":         {func(s *Size) { s.Leaves = Sample{3 * s.Joins[0]} }, 1},
		"warm changes":   {func(s *Size) { s.WarmEvents = 1 }, 1},
		"slower change":  {func(s *Size) { s.Join.Kernel = Sample{3 * time.Millisecond} }, 1},
		"slowest change": {func(s *Size) { s.Move.Kernel = append(make(Sample, 99), 6*time.Millisecond) }, 1},
		"memory":         {func(s *Size) { s.Restarted.Now = 91e6 }, 1},
		"tunnel":         {func(*Size) {}, 1},
		"idle":           {func(s *Size) { s.Idle = 0.001 }, 1},
	} {
		most := good(60_000)
		tc.spoil(&most)
		r := Result{Sizes: []Size{good(100), good(1000), most}, Throughput: Throughput{Tunnel: Sample{100}, Direct: Sample{95}}}
		if name == "tunnel" {
			r.Throughput.Tunnel[0] = 104
		}
		failed := ""
		n := 0
		for _, g := range r.goals() {
			if !g.holds {
				n++
				failed += fmt.Sprintf("\n%+v", g)
			}
		}
		if n != tc.fails {
			t.Errorf("%s: %d fail, want %d:%s", name, n, tc.fails, failed)
		}
	}
}

// TestPlotOfAnything: also of few numbers of peers, or of none that is drawn.
func TestPlotOfAnything(t *testing.T) {
	for _, peers := range [][]int{{3}, {100}, {3, 1000}, {100, 60_000}} {
		var r Result
		for _, n := range peers {
			r.Sizes = append(r.Sizes, Size{Peers: n, Cold: Sample{time.Duration(n) * time.Millisecond}, Warm: Sample{time.Second}})
		}
		var out strings.Builder
		if err := r.Plot(&out); err != nil || !strings.Contains(out.String(), "</svg>") {
			t.Errorf("%v: %v", peers, err)
		}
	}
}
