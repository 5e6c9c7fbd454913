package fleet

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// What issue and documents ask of a fleet.
const (
	goalWhole = 20 * time.Second
	goalKnown = time.Second
)

// load is the machine's load at this moment, which says how far to trust a time.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

// at is the value below which a part of a sample lies; 0.5 gives the median and
// 1 the largest. It is 0 for an empty one.
func at[T cmp.Ordered](sample []T, part float64) (v T) {
	if len(sample) == 0 {
		return v
	}
	sorted := slices.Sorted(slices.Values(sample))
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}

// Write prints the report.
func (r Report) Write(out io.Writer) error {
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(what, format string, args ...any) {
		_, _ = fmt.Fprintf(t, "%s\t%s\n", what, fmt.Sprintf(format, args...)) // Flush tells.
	}
	line("Fleet", "%s nodes, %s; load of the machine before: %s", r.Nodes, r.Mode, r.Load)
	line("Every node knows every other", "%s after the start of the last daemon, %s after that of the first (%s)",
		seconds(r.Whole), seconds(r.Starting+r.Whole), judged(r.Whole, goalWhole))
	line("  processor time until then", "%s all daemons, %s etcd", seconds(r.StartCPU), seconds(r.StartStore.CPU))
	line("  etcd until then", "%.0f requests, %.1f MB sent", r.StartStore.Requests, r.StartStore.Sent/mebibyte)
	line("Daemons that ended", "0")
	mb := func(sample []uint64, part float64) float64 { return float64(at(sample, part)) / mebibyte }
	line("Memory of a daemon", "%.1f MB resident (most %.1f), %.1f MB as its share (most %.1f), %.1f MB its own (most %.1f)",
		mb(r.Resident, 0.5), mb(r.Resident, 1), mb(r.Share, 0.5), mb(r.Share, 1), mb(r.Own, 0.5), mb(r.Own, 1))
	if r.Idle > 0 {
		s := r.Idle.Seconds()
		line("Nothing happens", "for %s", seconds(r.Idle))
		line("  processor of a daemon", "median %.3f %%, most %.3f %%", 100*at(r.IdleCPU, 0.5), 100*at(r.IdleCPU, 1))
		line("  etcd", "%.2f %% of a processor, %.1f MB resident, %.0f watchers, %.1f requests and %.1f renewals a second, %.1f kB/s sent",
			100*r.IdleStore.CPU.Seconds()/s, float64(r.IdleStore.Memory.Resident)/mebibyte, r.IdleStore.Watchers,
			r.IdleStore.Requests/s, r.IdleStore.Renewals/s, r.IdleStore.Sent/s/1000)
	}
	if len(r.Everywhere) > 0 {
		line("Late joiners", "%d, measured from the start of each daemon", len(r.Everywhere))
		line("  known to a node", "p50 %s, p99 %s, most %s", seconds(at(r.Known, 0.5)), seconds(at(r.Known, 0.99)), seconds(at(r.Known, 1)))
		line("  known everywhere", "p50 %s, p99 %s (%s)", seconds(at(r.Everywhere, 0.5)), seconds(at(r.Everywhere, 0.99)), judged(at(r.Everywhere, 0.99), goalKnown))
		line("  knows all others", "p50 %s, most %s", seconds(at(r.Caught, 0.5)), seconds(at(r.Caught, 1)))
	}
	return t.Flush()
}

func judged(took, goal time.Duration) string {
	if took > goal {
		return fmt.Sprintf("the goal of %s is missed", goal)
	}
	return fmt.Sprintf("the goal is %s", goal)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
