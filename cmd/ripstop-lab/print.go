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
	pods, host := l.Pods(), l.Hosts[0]
	last := pods[len(pods)-1]
	tool, runDir := filepath.Join(filepath.Dir(self), "ripstop"), filepath.Join(host.Dir, "run")
	say(out, "\nStep in from another terminal:\n")
	for _, hint := range []struct{ what, command string }{
		{"one pod calls another", fmt.Sprintf("%s ping%s %s %s", self, flags, pods[0].Name, last.Name)},
		{"a shell in a pod's network", fmt.Sprintf("%s exec%s %s -- sh", self, flags, pods[0].Name)},
		{"what a node's kernel has", fmt.Sprintf("%s exec%s %s -- ip route", self, flags, host.Name)},
		{"how a node is, and whom it reaches", fmt.Sprintf("%s status --run-dir %s\n  %[1]s peers --run-dir %[2]s", tool, runDir)},
		{"what is wrong with a node and its paths", fmt.Sprintf("%s exec%s %s -- %s doctor --run-dir %s", self, flags, host.Name, tool, runDir)},
		{"nodes and pods", fmt.Sprintf("%s list%s", self, flags)},
	} {
		say(out, "  # %s\n  %s\n", hint.what, hint.command)
	}
	say(out, "Logs: %s and so on\nCtrl-C takes it all away.\n", host.LogFile())
}
