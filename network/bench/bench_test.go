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
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
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
	through := r.Traffic.Throughput
	for name, rate := range map[string]Rate{"tunnel": through.Tunnel, "no rules": through.Unruled, "direct": through.Direct, "underlay": through.Underlay} {
		if g := gigabits(rate.Took.Median()); !(g > 1e-3 && g < 1e3) || rate.CPU.Median() <= 0 || len(rate.Took) != len(rate.CPU) {
			t.Errorf("throughput, %s: %+v, %g Gb/s", name, rate, g)
		}
	}
	// What is least of each: whatever else the machine does makes one peer dearer by more than
	// all of them.
	if g := r.Traffic.Guard; g.Load.At(0) <= 0 || g.One.At(0) <= 0 || g.One.At(0) > g.Load.At(0)/4 {
		t.Errorf("guard: one more peer costs %s beside the load's %s", g.One.At(0), g.Load.At(0))
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
	testTrafficAlone(t, dir, r.Traffic, string(page))
	if drawn, err := os.ReadFile(filepath.Join(dir, picture)); err != nil || !strings.HasPrefix(string(drawn), "<?xml") {
		t.Errorf("the picture: %v, %.40q", err, drawn)
	}
}

// testTrafficAlone writes the part of traffic anew, which leaves all else as it was.
func testTrafficAlone(t *testing.T, dir string, traffic Traffic, page string) {
	t.Helper()
	traffic.Load = 12345.6
	if err := traffic.Write(dir, "another ripstopd"); err != nil {
		t.Fatal(err)
	}
	again, err := os.ReadFile(filepath.Join(dir, "performance.md"))
	if err != nil {
		t.Fatal(err)
	}
	was, is := strings.Split(page, "\n## "), strings.Split(string(again), "\n## ")
	if len(was) != len(is) {
		t.Fatalf("%d parts, before %d:\n%s", len(is), len(was), again)
	}
	for i := range was {
		changed := strings.HasPrefix("\n## "+is[i], "\n"+trafficHead)
		if (was[i] != is[i]) != changed || changed && (!strings.Contains(is[i], "another ripstopd") || !strings.Contains(is[i], "12345.6")) {
			t.Errorf("part %d was\n%s\nand is\n%s", i, was[i], is[i])
		}
	}
	if err := traffic.Write(t.TempDir(), "another ripstopd"); err == nil {
		t.Error("a part is written into a page that is not there")
	}
}

func TestTrafficGoals(t *testing.T) {
	good := Traffic{
		Throughput: Throughput{Tunnel: Rate{Took: Sample{100, 100, 400}}, Direct: Rate{Took: Sample{94, 94, 390}}},
		Guard:      Guard{Load: Sample{guardLimit - 1}, One: Sample{oneMoreLimit - 1}},
	}
	for name, tc := range map[string]struct {
		spoil func(*Traffic)
		fails int
	}{
		"nothing":          {func(*Traffic) {}, 0},
		"tunnel":           {func(x *Traffic) { x.Throughput.Direct.Took = Sample{92, 92, 400} }, 1},
		"load":             {func(x *Traffic) { x.Guard.Load = Sample{guardLimit} }, 1},
		"one more":         {func(x *Traffic) { x.Guard.One = Sample{oneMoreLimit} }, 1},
		"nothing measured": {func(x *Traffic) { x.Throughput = Throughput{} }, 1},
	} {
		spoilt := good
		tc.spoil(&spoilt)
		n := 0
		for _, g := range spoilt.goals() {
			if !g.holds {
				n++
			}
		}
		if n != tc.fails {
			t.Errorf("%s: %d fail, want %d: %+v", name, n, tc.fails, spoilt.goals())
		}
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
		"idle":           {func(s *Size) { s.Idle = 0.001 }, 1},
	} {
		most := good(60_000)
		tc.spoil(&most)
		r := Result{Sizes: []Size{good(100), good(1000), most}}
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
