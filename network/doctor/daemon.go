package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ripstop-net/ripstop/network/rundir"
	"github.com/ripstop-net/ripstop/network/status"
)

// longestBeat is how long the loop may be silent.
const longestBeat = 30 * time.Second

// A daemon that was started so often, each time so soon after the time before, does not stay
// up. Kubernetes puts a start off for five minutes at most
// (https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy).
const (
	manyStarts = 4
	startsGap  = 6 * time.Minute
)

func checkDaemon(_ context.Context, c *Scene, _ Sources) ([]Verdict, error) {
	return judgeDaemon(c), nil
}

// judgeDaemon goes by what the daemon says of itself, and by what it left.
func judgeDaemon(c *Scene) []Verdict {
	s, now := c.Status, c.At
	out := judgeStarts(c)
	if s == nil && len(out) > 0 {
		return out
	}
	if since := now.Sub(c.Ended); s == nil && since >= 0 && since < comingUp {
		return []Verdict{{
			Severity: Note, Summary: fmt.Sprintf("ripstopd was stopped %s ago, and may be about to be started again", since.Truncate(time.Second)), Evidence: []string{c.StatusErr.Error()},
			Remedy: []string{"Nothing is lost meanwhile. If it stays away:", Command("systemctl start ripstopd")},
		}}
	}
	if s == nil {
		return []Verdict{{
			Severity: Failure, Summary: "ripstopd does not answer: nothing is mended, no peer's change is followed, and the lease runs out",
			Evidence: []string{c.StatusErr.Error()}, Remedy: c.startDaemon(),
		}}
	}
	if beat := s.Daemon.Beat; !beat.IsZero() && now.Sub(beat) > longestBeat {
		out = append(out, Verdict{
			Severity: Failure, Summary: fmt.Sprintf("ripstopd is stuck: its loop last answered %s ago", now.Sub(beat).Truncate(time.Second)),
			Remedy: []string{Command("systemctl restart ripstopd"), "Nothing is lost by it. A profile from before helps to mend the cause: /debug/pprof/goroutine at its socket."},
		})
	}
	young := !s.Daemon.Started.IsZero() && now.Sub(s.Daemon.Started) < comingUp
	for _, cond := range s.Conditions {
		if cond.OK {
			continue
		}
		v := Verdict{Severity: Failure, Summary: fmt.Sprintf("ripstopd is not ready, for the condition %q does not hold", cond.Name), Evidence: []string{cond.Reason}, Remedy: []string{conditionRemedy(cond.Name)}}
		if young && !s.Up {
			v.Severity, v.Summary, v.Remedy = Note, fmt.Sprintf("ripstopd was started %s ago and is coming up: the condition %q does not hold yet", now.Sub(s.Daemon.Started).Truncate(time.Second), cond.Name), nil
		}
		out = append(out, v)
	}
	for _, p := range s.Loop.Problems {
		v := Verdict{Severity: Failure, Summary: "an entry cannot be had", Evidence: []string{p.Entry + ": " + p.Reason}, Remedy: []string{"The reason says what is in the way; once it is gone, the entry follows by itself."}}
		switch {
		case p.Fought:
			v.Summary = "another program undoes what ripstopd does, again and again"
			v.Remedy = []string{"Tell that program to leave devices called ripstop… and routes of protocol 82 alone; for NetworkManager and systemd-networkd the packages have the settings."}
		case p.Foreign:
			v.Summary = "something of somebody else's is where an entry of ours should be"
			v.Remedy = []string{"Remove it, and the entry follows by itself."}
		}
		out = append(out, v)
	}
	if why := s.Probing.Problem; why != "" {
		out = append(out, Verdict{
			Severity: Warning, Summary: fmt.Sprintf("peers that ask whether this node can be reached are not answered: UDP port %d cannot be had", s.Probing.Port), Evidence: []string{why},
			Remedy: []string{"Find out which program has the port, and stop it, or choose another with --echo-port:", Command("ss -ulpn sport = :%d", s.Probing.Port), "Pods' traffic is not touched; peers name this node as silent."},
		})
	}
	if out = append(out, judgeSilent(s.Probing, now)...); len(out) > 0 {
		return out
	}
	return well("ripstopd %s is ready, up for %s", s.Daemon.Version, now.Sub(s.Daemon.Started).Truncate(time.Second))
}

// judgeStarts tells of a daemon that does not stay up, again and again.
func judgeStarts(c *Scene) []Verdict {
	lately, unready := startsLately(c.Starts, c.At)
	if len(lately) < manyStarts {
		return nil
	}
	last, first := lately[0], lately[len(lately)-1]
	minutes := int(c.At.Sub(first)/time.Minute) + 1
	v := Verdict{
		Severity: Failure, Summary: fmt.Sprintf("ripstopd does not stay up: it was started %d times within %s", len(lately), status.Count(minutes, "minute", "minutes")),
		Evidence: []string{fmt.Sprintf("the last start was %s ago", c.At.Sub(last).Truncate(time.Second))},
		Remedy:   []string{"Its log says why it ended, before each start:", Command("journalctl -u ripstopd -n 100")},
	}
	if unready > 0 {
		v.Evidence = append(v.Evidence, fmt.Sprintf("it was told to end %s before it was ready, by hand or by who found it so", status.Count(unready, "time", "times")))
	}
	if c.StatusErr != nil {
		v.Evidence = append(v.Evidence, c.StatusErr.Error())
	}
	if c.Status != nil && c.Status.Up {
		v.Severity = Warning
	}
	return []Verdict{v}
}

// startsLately are the last starts, the latest first, none of them longer before the next, or
// ago, than tells of a daemon that stays up. One that was told to end when it was ready is
// neither counted nor an end to the others. unready counts those told to end before.
func startsLately(all []rundir.Start, now time.Time) (lately []time.Time, unready int) {
	next := now
	for _, s := range slices.Backward(all) {
		if gap := next.Sub(s.At); gap < 0 || gap > startsGap { // A clock that was set back tells nothing.
			break
		}
		next = s.At
		switch s.End {
		case rundir.ToldReady:
			continue
		case rundir.ToldUnready:
			unready++
		}
		lately = append(lately, s.At)
	}
	return lately, unready
}

// judgeSilent names the peers that do not answer the daemon's probing. They are asked
// ever more seldom, so that one may be back by now: the paths to them are looked at.
func judgeSilent(p status.Probing, now time.Time) (out []Verdict) {
	if !p.CutOff.IsZero() {
		out = append(out, Verdict{
			Severity: Warning, Summary: fmt.Sprintf("nearly no peer has answered this node for %s: it is cut off, or UDP is blocked", now.Sub(p.CutOff).Truncate(time.Second)),
			Remedy: []string{"The check 'path' says which part of the way is broken:", Command("ripstop doctor --check underlay,path")},
		})
	}
	var names, lines []string
	for _, q := range p.Silent {
		name := q.Node
		if name == "" && len(q.Subnets) > 0 {
			name = q.Subnets[0].String()
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
		lines = append(lines, fmt.Sprintf("%s does not answer by the %s for %s, asked %s: %s", name, q.Layer, now.Sub(q.Since).Truncate(time.Second), status.Count(q.Asked, "time", "times"), q.Reason))
	}
	if len(names) > 0 {
		out = append(out, Verdict{
			Severity: Note, Summary: fmt.Sprintf("%s not answered this node's probing when last asked: %s", status.Count(len(names), "peer has", "peers have"), strings.Join(first(names), ", ")), Evidence: first(lines),
			Remedy: []string{fmt.Sprintf("The check 'path' looks at these before others; at %s:", names[0]), Command("ripstop doctor --check path --peer %s", names[0])},
		})
	}
	return out
}

// conditionRemedy says where to go on.
func conditionRemedy(name string) string {
	switch name {
	case status.Started:
		return "The reason says what it waits for; once that is there, it goes on by itself."
	case status.LeaseHeld, status.StoreKnown:
		return "See what the check \"store\" has to say."
	case status.Undisputed:
		return "Give each node a name and an address of its own."
	case status.UnderlayThere:
		return "See what the check \"underlay\" has to say."
	case status.Forwarding:
		return "See what the check \"forwarding\" has to say."
	case status.DeviceRight, status.EntriesRight:
		return "See what the checks \"device\" and \"entries\" have to say."
	case status.SubnetFile:
		return "See what the check \"subnet-file\" has to say."
	}
	return "The reason says what is missing."
}
