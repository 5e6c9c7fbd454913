package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ripstop-net/ripstop/network/status"
)

func newStatus() *cobra.Command {
	var a ask
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how this node is",
		Long: `Show on one screen how the node of this host is: whether it is ready and what is
missing, its lease, underlay, devices and peers, the store, and what the loop that
keeps the kernel right has met. It asks the daemon at its socket in --run-dir.`,
		Example: `  ripstop status
  ripstop status --watch
  ripstop status -o json | jq '.conditions[] | select(.ok | not)'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.run(cmd, func(ctx context.Context, c *status.Client, s screen) error {
				now, err := c.Status(ctx)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.writeJSON(s.to, now)
				}
				showStatus(s, now, time.Now(), a.output == "wide")
				return nil
			})
		},
	}
	a.register(cmd)
	return cmd
}

// showStatus writes a status for people.
func showStatus(s screen, st status.Status, now time.Time, wide bool) {
	word, c := "ready", green
	if !st.Ready {
		word, c = "not ready", red
	}
	s.field("Node", bold, st.Node)
	s.field("Status", c, word)
	for _, cond := range st.Conditions {
		switch {
		case !cond.OK:
			why := cond.Reason
			if cond.Name == status.EntriesRight && len(st.Loop.Problems) > 0 {
				why = "see Problems"
			}
			s.field("", red, fmt.Sprintf("%s, for %s: %s", cond.Name, ago(cond.Since, now), why))
		case cond.Reason != "":
			s.field("", yellow, cond.Reason)
		}
	}
	s.field("Subnets", plain, orNone(list(st.Lease.Subnets)))
	s.field("Lease", badIf(!st.Lease.Held || ranOut(st.Lease, now)), leaseText(st.Lease, now))
	for i, u := range st.Underlay {
		text := fmt.Sprintf("%s %s, MTU %d", u.Interface, u.Address, u.MTU)
		if u.Public != u.Address {
			text += fmt.Sprintf(", public address %s", u.Public)
		}
		if u.Problem != "" {
			text += ": does not serve, see above"
		}
		if u.Next != "" {
			text += ", next " + u.Next
		}
		s.field(onlyFirst(i, "Underlay"), badIf(u.Problem != ""), text+" ("+u.Reason+")")
	}
	for i, d := range st.Devices {
		text := fmt.Sprintf("%s VNI %d, UDP port %d, MTU %d, %s, %s", d.Name, d.VNI, d.Port, d.MTU, d.MAC, orNone(list(d.Addresses)))
		if !d.Right {
			text += ": not right, see above"
		}
		s.field(onlyFirst(i, "Device"), badIf(!d.Right), text)
	}
	showPeers(s, st.Peers, st.Backend)
	s.field("Store", badIf(st.Store.State == status.Unread || st.Store.State == status.Silent), storeText(st.Store, now))
	showLoop(s, st.Loop, now, wide)
	showHost(s, st.Host, now)
	showFirewall(s, st.Firewall, now, wide)
	showProbing(s, st.Probing, now)
	file := st.SubnetFile.Path
	if n := st.SubnetFile.Restored; n > 0 {
		file += fmt.Sprintf(", put back %s after another hand", status.Count(int(n), "time", "times"))
	}
	s.field("Subnet file", plain, file)
	if d := st.Daemon; d.ListenProblem != "" {
		s.field("Listen", red, d.Listen+" is not answered at, and tried again: "+d.ListenProblem)
	} else if d.Listen != "" {
		s.field("Listen", plain, d.Listen)
	}
	s.field("Daemon", plain, fmt.Sprintf("%s, process %d, up %s, log level %s", st.Daemon.Version, st.Daemon.PID, ago(st.Daemon.Started, now), st.Daemon.LogLevel))
}

func showPeers(s screen, p status.Peers, backend string) {
	text := fmt.Sprint(p.Count)
	c := plain
	if backend == leasesOnly {
		text += ", to whom this node makes no way: backend alloc leases subnets only"
	}
	if p.Held > 0 {
		c = yellow
		text += fmt.Sprintf(", %d of them held: their records went with a store that is not the one it was, or most at once; each for %s", p.Held,
			(time.Duration(p.GraceSeconds * float64(time.Second))).String())
	}
	s.field("Peers", c, text)
	if p.PassedOver == 0 {
		return
	}
	s.field("", yellow, status.Count(p.PassedOver, "record in the store is", "records in the store are")+" passed over:")
	for _, r := range p.Records {
		s.field("", yellow, "  "+r.Key+": "+r.Reason)
	}
}

func showLoop(s screen, l status.Loop, now time.Time, wide bool) {
	text := status.Count(l.Wanted, "entry", "entries") + " wanted"
	if !l.LastPass.IsZero() {
		text += fmt.Sprintf(", last pass %s ago took %s", ago(l.LastPass, now), seconds(l.LastSeconds))
	}
	s.field("Kernel", badIf(l.Unread != ""), text)
	if l.Unread != "" {
		s.field("", red, l.Unread)
	}
	s.field("Drift", plain, status.Count(int(l.Drift), "entry", "entries")+" mended that an outside hand had changed")
	if l.Failing+l.Fought > 0 {
		s.field("Problems", red, fmt.Sprintf("%s cannot be had, %s by an outside hand again and again",
			status.Count(l.Failing, "entry", "entries"), status.Count(l.Fought, "is undone", "are undone")))
	}
	foreign := false
	for _, p := range l.Problems {
		s.field("", red, p.Entry+": "+p.Reason)
		foreign = foreign || p.Foreign
	}
	if foreign {
		s.field("", plain, "What is in the way is somebody else's and is left alone: remove it, and the entry follows by itself.")
	}
	if wide {
		s.field("Passes", plain, fmt.Sprintf("%d, %d changes made, %d not taken", l.Passes, l.Ops, l.Failures))
		s.field("Readings", plain, fmt.Sprintf("%d at the start, %d after doubt, %d after surprise, %d audits (%d findings), %d failed",
			l.Dumps.Start, l.Dumps.Doubt, l.Dumps.Surprise, l.Dumps.Audit, l.Findings, l.Dumps.Failed))
	}
}

func showHost(s screen, h status.Host, now time.Time) {
	if !h.Kept {
		return
	}
	var parts []string
	for _, set := range h.Settings {
		text := set.String()
		switch {
		case !set.Right:
			text += " (not right)"
		case set.PerInterface:
			text += " (read-only: each interface forwards by its own)"
		}
		parts = append(parts, text)
	}
	text := strings.Join(parts, ", ")
	if h.Restored > 0 {
		text += fmt.Sprintf("; put back %s after another hand, last %s ago", status.Count(int(h.Restored), "time", "times"), ago(h.LastRestored, now))
	}
	if h.Problem != "" {
		text += "; " + h.Problem
	}
	s.field("Settings", badIf(h.Problem != "" || h.Wrong() > 0), text)
}

func showFirewall(s screen, f status.Firewall, now time.Time, wide bool) {
	if !f.Kept {
		s.field("Firewall", plain, "no rules are kept")
		return
	}
	text := "rules are right"
	switch {
	case f.Problem != "":
		text = "rules are not as wanted: " + f.Problem
	case f.Heals > 0:
		text += fmt.Sprintf(", put back %s after another hand, last %s ago", status.Count(int(f.Heals), "time", "times"), ago(f.LastHeal, now))
	}
	s.field("Firewall", badIf(f.Problem != ""), text)
	guard, c := "off: the tunnel's packets are let in from anywhere", plain
	if f.Guard {
		guard = fmt.Sprintf("lets in %s of peers", status.Count(f.Peers, "address", "addresses"))
		if f.Dropped > 0 {
			c = yellow
			guard += fmt.Sprintf("; dropped %s of others", status.Count(int(f.Dropped), "packet", "packets"))
			if len(f.Strangers) > 0 {
				guard += ", lately from " + strangers(f.Strangers)
			}
		}
	}
	s.field("Guard", c, guard)
	for i, r := range f.Findings {
		drops, c := "drops", red
		if !r.Certain {
			drops, c = "may drop", yellow
		}
		s.field(onlyFirst(i, "In the way"), c, fmt.Sprintf("table %s, chain %s: %q %s what goes %s", r.Table, r.Chain, r.Rule, drops, r.Traffic))
		s.field("", plain, "mend it with: "+r.Mend)
	}
	if wide {
		s.field("Rules", plain, status.Count(int(f.Writes), "change", "changes")+" made")
	}
}

// mostStrangers is how many a line names.
const mostStrangers = 3

func strangers(all []status.Stranger) string {
	var named []string
	for _, s := range all[:min(len(all), mostStrangers)] {
		named = append(named, fmt.Sprintf("%s (%d)", s.Address, s.Packets))
	}
	if more := len(all) - len(named); more > 0 {
		named = append(named, fmt.Sprintf("%d more", more))
	}
	return strings.Join(named, ", ")
}

// showProbing tells who of the peers answers, and names those that do not.
func showProbing(s screen, p status.Probing, now time.Time) {
	text, c := "no peer is asked whether it can be reached", plain
	if p.EverySeconds > 0 {
		var layers []string
		for _, l := range p.Layers {
			layers = append(layers, fmt.Sprintf("%s %d asked, %d lost", l.Layer, l.Asked, l.Lost))
		}
		text = strings.Join(layers, "; ")
	}
	if p.Problem != "" {
		c = yellow
		text += "; peers that ask get no answer: " + p.Problem
	}
	s.field("Probing", c, text)
	if !p.CutOff.IsZero() {
		s.field("", red, fmt.Sprintf("for %s nearly no peer has answered on any layer: 'ripstop doctor' looks why", ago(p.CutOff, now)))
	}
	for _, q := range p.Silent {
		s.field("", red, fmt.Sprintf("%s (%s) does not answer on the %s for %s, asked %s: %s", q.Node, list(q.Subnets), q.Layer, ago(q.Since, now), status.Count(q.Asked, "time", "times"), q.Reason))
	}
	if p.Unnamed > 0 {
		s.field("", yellow, fmt.Sprintf("others did not answer %s", status.Count(int(p.Unnamed), "time", "times")))
	}
}

func leaseText(l status.Lease, now time.Time) string {
	switch {
	case !l.Held && l.Problem != "":
		return "not held, see above"
	case !l.Held:
		return "none"
	case l.Reservation:
		return "reserved: it never expires"
	case l.Expires.IsZero():
		return "held"
	case ranOut(l, now):
		text := fmt.Sprintf("not renewed: it may have run out at %s, %s ago", clock(l.Expires), ago(l.Expires, now))
		if !l.Renewed.IsZero() {
			text += fmt.Sprintf("; renewed last %s ago", ago(l.Renewed, now))
		}
		return text
	case l.Renewed.IsZero():
		return fmt.Sprintf("held, as far as is known until %s (%s from now)", clock(l.Expires), ago(now, l.Expires))
	}
	return fmt.Sprintf("held until %s (%s from now), renewed %s ago", clock(l.Expires), ago(now, l.Expires), ago(l.Renewed, now))
}

// ranOut tells that the store may have forgotten the lease.
func ranOut(l status.Lease, now time.Time) bool {
	return l.Held && !l.Reservation && !l.Expires.IsZero() && !now.Before(l.Expires)
}

func storeText(s status.Store, now time.Time) string {
	switch s.State {
	case status.Unread:
		return "not read yet"
	case status.Current:
		return fmt.Sprintf("current, revision %d, heard %s ago", s.Revision, ago(s.Heard, now))
	case status.Silent:
		return fmt.Sprintf("silent: last heard %s ago", ago(s.Heard, now))
	}
	text := "away"
	if s.Outage != nil {
		text = fmt.Sprintf("away for %s (%d tries)", ago(s.Outage.Since, now), s.Outage.Failures)
	}
	if s.Saved {
		return fmt.Sprintf("%s; going by what was saved, of revision %d", text, s.Revision)
	}
	return fmt.Sprintf("%s; going by revision %d, heard %s ago", text, s.Revision, ago(s.Heard, now))
}

// ago is the time from one to the other, in two units at most.
func ago(from, to time.Time) string {
	d := to.Sub(from)
	if from.IsZero() || d < time.Second {
		return "0s"
	}
	unit := time.Second
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d >= time.Hour:
		unit = time.Minute
	}
	text := d.Truncate(unit).String()
	if d >= time.Minute && strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	return text
}

func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Millisecond {
		return d.Round(time.Microsecond).String()
	}
	return d.Round(time.Millisecond / 10).String()
}

func clock(t time.Time) string { return t.Format("2006-01-02 15:04:05") }

func list[T fmt.Stringer](all []T) string {
	var texts []string
	for _, v := range all {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, ", ")
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

func onlyFirst(i int, name string) string {
	if i > 0 {
		return ""
	}
	return name
}

func badIf(bad bool) colour {
	if bad {
		return red
	}
	return plain
}
