package bench

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// picture is the file's name beside performance.md.
const picture = "performance.svg"

// Write puts performance.md and its picture into a folder. Version says what
// was measured; parts, which may be empty, is the text about the parts' own
// benchmarks.
func (r Result) Write(dir, version, parts string) error {
	var page, drawn strings.Builder
	if err := r.Page(&page, version, parts); err != nil {
		return err
	}
	if err := r.Plot(&drawn); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the report's folder: %w", err)
	}
	for name, text := range map[string]string{"performance.md": page.String(), picture: drawn.String()} {
		if err := renameio.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}

// Page writes the whole of performance.md.
func (r Result) Page(out io.Writer, version, parts string) error {
	w := &pageWriter{to: out}
	w.line("# Performance")
	w.line("")
	w.line("Made by `make bench`, which writes this page anew. One node among many peers: a real")
	w.line("`ripstopd` on a host in a network namespace, a real etcd that holds the peers' records, and the")
	w.line("real kernel. Machines differ and are never quite quiet: what counts is a number beside another")
	w.line("of the same run.")
	w.line("")
	w.line("- %s", machine())
	w.line("- %s, %s", version, r.Began.UTC().Format("2006-01-02 15:04 MST"))
	if v := toolVersion(); v != "" {
		w.line("- %s", v)
	}
	w.line("- the run took %s; when it began, %.1f processes of others ran or waited for a processor", r.Took.Round(time.Second), r.Load)
	w.line("")
	w.line("![Time against the number of peers](%s)", picture)
	w.line("")
	w.line("## What must hold")
	w.line("")
	goalTable(w, r.goals())
	w.line("")
	w.line("## What was measured")
	w.line("")
	r.table(w)
	w.line("")
	w.line("- Times are medians; ± is half of the distance between the best and the worst of the runs, if there were several.")
	w.line("- *The kernel alone* is the same four entries for each peer (FDB, neighbour, nexthop, route) put into a")
	w.line("  namespace of its own in batches that were written before the clock ran: by `ip -batch` and `bridge -batch`,")
	w.line("  and by a sender that does nothing else (%d messages to a send, one answer each). The first named is the floor.", bareBatch)
	w.line("- *Cold start* is from the start of the process until it says that it is ready, on a host that holds nothing, for")
	w.line("  a node of which etcd has no record; afterwards the kernel is read and holds the entries of all peers. *Warm")
	w.line("  restart* is the same where the kernel holds them already; *announcements* are the kernel's, of any change on the device.")
	w.line("- *One change* is from the moment at which another client of etcd sees it, or has the answer to its write, until the")
	w.line("  kernel announces the last entry, over %d changes 0 to %d ms apart; *from the write* begins before the record is sent", len(r.Sizes[len(r.Sizes)-1].Join.Kernel), between.Milliseconds())
	w.line("  to etcd.")
	w.line("- A *burst* is from the first write to etcd, each record a revision of its own and %d under way at once, until the", writers)
	w.line("  last entry; the writing alone is in brackets.")
	w.line("- *Wanting all* and *wanting nothing* are the daemon's own code without etcd: the difference from nothing to all")
	w.line("  entries and its execution, and back.")
	w.line("- IPv4 alone: with both families a peer has twice the entries.")
	w.line("- Memory is resident memory (VmRSS) with the program's own pages, 1 MB = 1,000,000 bytes.")
	w.line("")
	r.Traffic.section(w, version)
	if parts != "" {
		w.line("")
		w.line("## Parts")
		w.line("")
		w.line("Go benchmarks, by benchstat.")
		w.line("")
		w.line("```")
		w.line("%s", strings.TrimRight(parts, "\n"))
		w.line("```")
	}
	return w.err
}

func goalTable(w *pageWriter, goals []goal) {
	w.line("| | limit | measured | |")
	w.line("|---|---|---|---|")
	for _, g := range goals {
		w.line("| %s | %s | %s | %s |", g.what, g.limit, g.measured, map[bool]string{true: "holds", false: "**does not hold**"}[g.holds])
	}
}

// row is one line of the table. Its value may be empty.
type row struct {
	name  string
	value func(Size) string
}

func (r Result) table(w *pageWriter) {
	head, rule := "| peers |", "|---|"
	for _, s := range r.Sizes {
		head += " " + thousands(s.Peers) + " |"
		rule += "--:|"
	}
	w.line("%s", head)
	w.line("%s", rule)
	rows := []row{
		{"**cold start**", func(s Size) string { return shown(s.Cold) }},
		{"… processor time of the daemon", func(s Size) string { return shown(s.ColdCPU) }},
		{"reading the list from etcd, alone", func(s Size) string { return shown(s.List) }},
	}
	for i, f := range r.Sizes[0].Floors {
		rows = append(rows, row{"the kernel alone: " + f.Tool, func(s Size) string { return shown(s.Floors[i].Add) }})
	}
	for i, f := range r.Sizes[0].Floors {
		rows = append(rows, row{"cold start : " + f.Tool + " and the list", func(s Size) string {
			return times(s.Cold.Median(), s.Floors[i].Add.Median()+s.List.Median())
		}})
	}
	rows = append(rows,
		row{"cold start, per peer", func(s Size) string { return duration(s.Cold.Median() / time.Duration(s.Peers)) }},
		row{"**warm restart**", func(s Size) string { return shown(s.Warm) }},
		row{"… processor time of the daemon", func(s Size) string { return shown(s.WarmCPU) }},
		row{"… announcements", func(s Size) string { return fmt.Sprint(s.WarmEvents) }},
	)
	for _, c := range []struct {
		name string
		of   func(Size) Changes
	}{
		{"join", func(s Size) Changes { return s.Join }}, {"leave", func(s Size) Changes { return s.Leave }},
		{"move to another host", func(s Size) Changes { return s.Move }},
	} {
		rows = append(rows,
			row{"**one change: " + c.name + "**, p50 / p99", func(s Size) string {
				k := c.of(s).Kernel
				return duration(k.At(0.5)) + " / " + duration(k.At(0.99))
			}},
			row{"… from the write, p50 / p99", func(s Size) string {
				k := c.of(s).Whole
				return duration(k.At(0.5)) + " / " + duration(k.At(0.99))
			}})
	}
	last := len(r.Sizes[0].Floors) - 1
	rows = append(rows, row{"… one peer's entries, the kernel alone: " + r.Sizes[0].Floors[last].Tool, func(s Size) string { return shown(s.Floors[last].One) }})
	for _, b := range []struct {
		name          string
		whole, writes func(Size) Sample
		floor         func(Floor) Sample
	}{
		{"joins", func(s Size) Sample { return s.Joins }, func(s Size) Sample { return s.JoinWrites }, func(f Floor) Sample { return f.Join }},
		{"leaves", func(s Size) Sample { return s.Leaves }, func(s Size) Sample { return s.LeaveWrites }, func(f Floor) Sample { return f.Leave }},
	} {
		rows = append(rows, row{fmt.Sprintf("**burst of %s %s**", thousands(r.burst()), b.name), func(s Size) string {
			if s.Burst == 0 {
				return ""
			}
			return shown(b.whole(s)) + " (" + duration(b.writes(s).Median()) + ")"
		}})
		for i, f := range r.Sizes[0].Floors {
			rows = append(rows, row{"… the kernel alone: " + f.Tool, func(s Size) string {
				if s.Burst == 0 {
					return ""
				}
				return shown(b.floor(s.Floors[i])) + ", " + times(b.whole(s).Median(), b.floor(s.Floors[i]).Median()+b.writes(s).Median())
			}})
		}
	}
	rows = append(rows,
		row{"wanting all", func(s Size) string { return shown(s.Add) }},
		row{"wanting nothing", func(s Size) string { return shown(s.Remove) }},
		row{"**memory** once ready", func(s Size) string { return megabytes(s.Started.Now) }},
		row{"… after the single changes", func(s Size) string { return megabytes(s.Settled.Now) }},
		row{"… after the bursts", func(s Size) string { return megabytes(s.Burdened.Now) }},
		row{"… after a warm restart", func(s Size) string { return megabytes(s.Restarted.Now) }},
		row{"… at most", func(s Size) string {
			return megabytes(max(s.Started.Most, s.Settled.Most, s.Burdened.Most, s.Restarted.Most))
		}},
		row{"**idle**, of one processor", func(s Size) string {
			if s.IdleTime == 0 {
				return ""
			}
			return fmt.Sprintf("%.3f %% in %s", 100*s.Idle, s.IdleTime.Round(time.Second))
		}},
	)
	for _, row := range rows {
		text := "| " + row.name + " |"
		for _, s := range r.Sizes {
			text += " " + row.value(s) + " |"
		}
		w.line("%s", text)
	}
}

// burst is the number of peers in the bursts.
func (r Result) burst() (n int) {
	for _, s := range r.Sizes {
		n = max(n, s.Burst)
	}
	return n
}

// pageWriter writes lines until the first error.
type pageWriter struct {
	to  io.Writer
	err error
}

func (w *pageWriter) line(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.to, format+"\n", args...)
	}
}

// shown gives a sample's median and spread.
func shown(s Sample) string {
	if len(s) == 0 {
		return ""
	}
	text := duration(s.Median())
	if len(s) > 1 {
		text += fmt.Sprintf(" ±%.0f %%", 50*s.Spread())
	}
	return text
}

// duration gives three digits.
func duration(d time.Duration) string {
	switch {
	case d < time.Microsecond:
		return fmt.Sprintf("%d ns", d.Nanoseconds())
	case d < time.Millisecond:
		return digits(float64(d)/1e3) + " µs"
	case d < time.Second:
		return digits(float64(d)/1e6) + " ms"
	default:
		return digits(d.Seconds()) + " s"
	}
}

func digits(v float64) string {
	switch {
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

func times(a, b time.Duration) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f ×", float64(a)/float64(b))
}

func megabytes(b uint64) string {
	if b == 0 {
		return ""
	}
	return digits(float64(b)/1e6) + " MB"
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}
