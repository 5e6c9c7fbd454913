package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// wideMatrix is the number of pods beyond which a matrix fits no screen.
const wideMatrix = 12

// say prints. Where nobody reads any more there is nobody to tell.
func say(out io.Writer, format string, args ...any) { _, _ = fmt.Fprintf(out, format, args...) }

func table(out io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(out, 0, 0, 2, ' ', 0) }

// printNodes shows each node with what it leased and the pods behind it.
func printNodes(out io.Writer, l *lab.Lab) error {
	t := table(out)
	say(t, "NODE\tUNDERLAY\tDEVICE\tSUBNET\tPODS\n")
	for _, h := range l.Hosts {
		env, err := h.Env()
		if err != nil {
			return err
		}
		devices, err := h.Devices()
		if err != nil {
			return err
		}
		for i, f := range l.Families() {
			var pods []string
			for _, p := range h.Pods {
				pods = append(pods, fmt.Sprintf("%s %s", p.Name, p.Addresses[f]))
			}
			name := h.Name
			if i > 0 {
				name = ""
			}
			say(t, "%s\t%s\t%s\t%s\t%s\n", name, h.Address(f), cmp.Or(devices[f], "none"), env.Subnets[f], strings.Join(pods, ", "))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	say(out, "\n")
	return nil
}

// printMatrix shows who reaches whom, a row for each caller.
func printMatrix(out io.Writer, l *lab.Lab, m lab.Matrix) {
	if len(m.Pairs) == 0 {
		return
	}
	for _, f := range l.Families() {
		if pods := l.Pods(); len(pods) <= wideMatrix {
			printSquare(out, pods, f, m)
		} else {
			printSummary(out, f, m)
		}
		say(out, "\n")
	}
}

func printSquare(out io.Writer, pods []*lab.Pod, f subnet.Family, m lab.Matrix) {
	type call struct{ from, to *lab.Pod }
	cells := map[call]string{}
	for _, p := range m.Pairs {
		if p.Family == f {
			cells[call{p.From, p.To}] = cell(p)
		}
	}
	say(out, "Who reaches whom by %s: from the row to the column, round trip in milliseconds\n", f)
	t := table(out)
	for _, to := range pods {
		say(t, "\t%s", to.Name)
	}
	say(t, "\n")
	for _, from := range pods {
		say(t, "%s", from.Name)
		for _, to := range pods {
			text := "·"
			if from != to {
				text = cells[call{from, to}]
			}
			say(t, "\t%s", text)
		}
		say(t, "\n")
	}
	_ = t.Flush()
}

func cell(p lab.Pair) string {
	if p.Err != nil {
		return "silent"
	}
	return milliseconds(p.RTT)
}

func printSummary(out io.Writer, f subnet.Family, m lab.Matrix) {
	var times []time.Duration
	asked := 0
	for _, p := range m.Pairs {
		if p.Family != f {
			continue
		}
		asked++
		if p.Err == nil {
			times = append(times, p.RTT)
		}
	}
	say(out, "Who reaches whom by %s: %d of %d pairs talk", f, len(times), asked)
	if slices.Sort(times); len(times) > 0 {
		say(out, "; round trip in milliseconds: median %s, longest %s", milliseconds(times[len(times)/2]), milliseconds(times[len(times)-1]))
	}
	say(out, "\n")
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()*1000) }

// printHints says how to step in.
func printHints(out io.Writer, at *place, l *lab.Lab) {
	self, flags := os.Args[0], at.flags()
	pods := l.Pods()
	last := pods[len(pods)-1]
	say(out, "\nStep in from another terminal:\n")
	t := table(out)
	say(t, "  %s ping%s %s %s\tone pod calls another\n", self, flags, pods[0].Name, last.Name)
	say(t, "  %s exec%s %s -- sh\ta shell in a pod's network\n", self, flags, pods[0].Name)
	say(t, "  %s exec%s %s -- ip route\twhat a node's kernel has\n", self, flags, l.Hosts[0].Name)
	tool, runDir := filepath.Join(filepath.Dir(self), "ripstop"), filepath.Join(l.Hosts[0].Dir, "run")
	say(t, "  %s status --run-dir %s\thow a node is; peers shows whom it reaches\n", tool, runDir)
	say(t, "  %s exec%s %s -- %s doctor --run-dir %s\twhat is wrong with a node and its paths\n", self, flags, l.Hosts[0].Name, tool, runDir)
	say(t, "  %s list%s\tnodes and pods\n", self, flags)
	_ = t.Flush()
	say(out, "Logs: %s and so on\nCtrl-C takes it all away.\n", l.Hosts[0].LogFile())
}
