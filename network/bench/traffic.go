package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// Traffic is what pods' traffic meets: the ways that it goes, and the guard.
type Traffic struct {
	Began time.Time
	// Load is how many processes of others ran or waited for a processor when it
	// began.
	Load       float64
	Throughput Throughput
	Guard      Guard
}

// RunTraffic measures traffic alone. It needs root, and leaves nothing behind.
func RunTraffic(ctx context.Context, o Options) (t Traffic, err error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	dir, err := os.MkdirTemp("", "ripstop-bench-")
	if err != nil {
		return t, fmt.Errorf("make a folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	return measureTraffic(ctx, o, dir)
}

func measureTraffic(ctx context.Context, o Options, dir string) (t Traffic, err error) {
	t.Began, t.Load = time.Now(), load()
	o.Progress("throughput")
	if t.Throughput, err = measureThroughput(ctx, o, dir); err != nil {
		return t, fmt.Errorf("throughput: %w", err)
	}
	o.Progress("the guard")
	if t.Guard, err = measureGuard(ctx, o); err != nil {
		return t, fmt.Errorf("guard: %w", err)
	}
	return t, nil
}

const (
	// tunnelRatio is how much of a direct route's throughput the tunnel is to have.
	tunnelRatio = 0.93
	// guardLimit is for loading guarded peers, oneMoreLimit for one beyond them.
	guardLimit   = 50 * time.Millisecond
	oneMoreLimit = time.Millisecond
)

func (t Traffic) goals() []goal {
	ratio := middle(ratios(t.Throughput.Direct.Took, t.Throughput.Tunnel.Took))
	whole, one := t.Guard.Load.Median(), t.Guard.One.Median()
	return []goal{
		{"throughput, tunnel : direct route", fmt.Sprintf("at least %.2f", tunnelRatio), fmt.Sprintf("%.2f", ratio), ratio >= tunnelRatio},
		{"the guard's load, " + thousands(guarded) + " peers", duration(guardLimit), duration(whole), whole < guardLimit},
		{"one more peer", duration(oneMoreLimit), duration(one), one < oneMoreLimit},
	}
}

// middle is the median of sorted values, 0 of none.
func middle(sorted []float64) float64 { return at(sorted, 0.5) }

// at is the value below which the given part of sorted values lies.
func at(sorted []float64, part float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

// trafficHead begins the part of the page that is of traffic.
const trafficHead = "## Traffic"

// Section writes the part of performance.md that is of traffic. Version says what was
// measured.
func (t Traffic) section(w *pageWriter, version string) {
	w.line(trafficHead)
	w.line("")
	w.line("This part can be had alone: `bin/ripstop-lab bench --traffic --write Documentation`. Here: %s,", version)
	w.line("%s; when it began, %.1f processes of others ran or waited for a processor.", t.Began.UTC().Format("2006-01-02 15:04 MST"), t.Load)
	w.line("")
	goalTable(w, t.goals())
	w.line("")
	w.line("One TCP connection each between two hosts of this machine, whose two processors do all the work,")
	w.line("also that of the wire. MTU 1500 between hosts, 1450 between pods. In each of %d rounds every", len(t.Throughput.Tunnel.Took))
	w.line("way has its turn for %d MiB. The middle half of the rounds is in brackets; the ratios are those", slice>>20)
	w.line("within a round. Processor time is that of both ends with the kernel's on their behalf: it is less")
	w.line("bent than the rate is by whatever else the machine does.")
	w.line("")
	w.line("| way | Gb/s | processor time, 1 GB |")
	w.line("|---|--:|--:|")
	for _, of := range []struct {
		name string
		rate Rate
	}{
		{"host to host", t.Throughput.Underlay}, {"pod to pod by a direct route", t.Throughput.Direct},
		{"pod to pod over the tunnel", t.Throughput.Tunnel}, {"… with no rule of the firewall's", t.Throughput.Unruled},
	} {
		took := of.rate.Took
		w.line("| %s | %.1f (%.1f–%.1f) | %s |", of.name, gigabits(took.Median()), gigabits(took.At(0.75)), gigabits(took.At(0.25)), duration(of.rate.CPU.Median()))
	}
	for _, of := range []struct {
		name     string
		this, to Rate
	}{
		{"tunnel : direct route", t.Throughput.Tunnel, t.Throughput.Direct}, {"… with no rule of the firewall's", t.Throughput.Unruled, t.Throughput.Direct},
		{"tunnel : host to host", t.Throughput.Tunnel, t.Throughput.Underlay},
	} {
		rate, cpu := ratios(of.to.Took, of.this.Took), ratios(of.this.CPU, of.to.CPU)
		w.line("| %s | %.2f (%.2f–%.2f) | %.2f |", of.name, middle(rate), at(rate, 0.25), at(rate, 0.75), middle(cpu))
	}
	w.line("")
	w.line("The guard's set with %s peers takes %s to load with its table into a host that has none, and one more", thousands(guarded), shown(t.Guard.Load))
	w.line("peer %s (p99 %s).", duration(t.Guard.One.Median()), duration(t.Guard.One.At(0.99)))
}

// gigabits is the rate in Gb/s of what takes so long for a gigabyte.
func gigabits(gigabyte time.Duration) float64 { return 8 / gigabyte.Seconds() }

// Text is the part of performance.md that is of traffic, by itself.
func (t Traffic) Text(version string) (string, error) {
	var b strings.Builder
	w := &pageWriter{to: &b}
	t.section(w, version)
	return b.String(), w.err
}

// Write puts the part of traffic in place of what a folder's performance.md has of it.
func (t Traffic) Write(dir, version string) error {
	path := filepath.Join(dir, "performance.md")
	page, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the report: %w", err)
	}
	text, err := t.Text(version)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(page), trafficHead+"\n")
	if !found {
		return fmt.Errorf("%s has no part %q: write the whole of it first", path, trafficHead)
	}
	after := ""
	if i := strings.Index(rest, "\n## "); i >= 0 {
		after = rest[i:]
	}
	if err := renameio.WriteFile(path, []byte(before+text+after), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}
