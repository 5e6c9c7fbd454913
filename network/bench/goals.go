package bench

import (
	"fmt"
	"slices"
	"time"
)

// goal is something that a run must show.
type goal struct {
	what, limit, measured string
	holds                 bool
}

// Limits that must hold. They are ratios within one run wherever that says more
// than a number would.
const (
	// coldRatio is how many times the floor a cold start may take, to which the
	// reading of the list is added.
	coldRatio = 1.5
	// growth is how much more a peer may cost among the most peers than among
	// each number of growthFrom.
	growth = 1.5
	// removeRatio is how many times the adding the removing may take.
	removeRatio = 2
	// warmLimit is for warmPeers.
	warmLimit = 2 * time.Second
	warmPeers = 40_000
	// changeRatio is how many times its cost among changeFrom peers a change may
	// cost among the most, and changeLimitMost what it may take at all.
	changeRatio     = 2
	changeFrom      = 100
	changeLimitMost = 5 * time.Millisecond
	// idleLimit is a part of a processor.
	idleLimit = 0.0005
)

var growthFrom = []int{1_000, 10_000}

// memoryLimit is in bytes, up to that number of peers.
type memoryLimit struct {
	peers int
	bytes uint64
}

var memoryLimits = []memoryLimit{{3, 25e6}, {10_000, 40e6}, {60_000, 90e6}}

// goals are those that the numbers of peers of a run can show.
func (r Result) goals() []goal {
	var out []goal
	add := func(holds bool, what, limit, measured string) {
		out = append(out, goal{what, limit, measured, holds})
	}
	at := map[int]Size{}
	for _, s := range r.Sizes {
		at[s.Peers] = s
	}
	most := r.Sizes[len(r.Sizes)-1]
	for _, s := range r.Sizes {
		if s.Peers < 10_000 {
			continue
		}
		limit := time.Duration(coldRatio*float64(s.Floors[0].Add.Median())) + s.List.Median()
		add(s.Cold.Median() <= limit, "cold start, "+thousands(s.Peers)+" peers",
			fmt.Sprintf("%.1f × %s + list = %s", coldRatio, s.Floors[0].Tool, duration(limit)), duration(s.Cold.Median()))
	}
	// At the least of them the start of the process is a part of it.
	for _, n := range growthFrom {
		if from, ok := at[n]; ok && most.Peers > n {
			per, before := most.Cold.Median()/time.Duration(most.Peers), from.Cold.Median()/time.Duration(n)
			add(float64(per) <= growth*float64(before), "cold start per peer, "+thousands(most.Peers)+" : "+thousands(n),
				fmt.Sprintf("%.1f × %s", growth, duration(before)), duration(per)+", "+times(per, before))
		}
	}
	for _, s := range r.Sizes {
		if s.Peers < 1000 {
			continue
		}
		add(s.Remove.Median() <= removeRatio*s.Add.Median(), "wanting nothing : wanting all, "+thousands(s.Peers)+" peers",
			fmt.Sprintf("%d ×", removeRatio), times(s.Remove.Median(), s.Add.Median()))
		if s.Burst > 0 {
			add(s.Leaves.Median() <= removeRatio*s.Joins.Median(), fmt.Sprintf("burst of %s leaves : joins, %s peers", thousands(s.Burst), thousands(s.Peers)),
				fmt.Sprintf("%d ×", removeRatio), times(s.Leaves.Median(), s.Joins.Median()))
		}
	}
	if s, ok := at[warmPeers]; ok {
		add(s.Warm.Median() <= warmLimit, "warm restart, "+thousands(warmPeers)+" peers", duration(warmLimit), duration(s.Warm.Median()))
	}
	for _, s := range r.Sizes {
		add(s.WarmEvents == 0, "changes of the kernel at a warm restart, "+thousands(s.Peers)+" peers", "none", fmt.Sprint(s.WarmEvents))
	}
	for _, c := range []struct {
		name       string
		most, from Changes
	}{
		{"join", most.Join, at[changeFrom].Join}, {"leave", most.Leave, at[changeFrom].Leave}, {"move", most.Move, at[changeFrom].Move},
	} {
		p50, p99 := c.most.Kernel.At(0.5), c.most.Kernel.At(0.99)
		if before := c.from.Kernel.At(0.5); before > 0 {
			add(float64(p50) <= changeRatio*float64(before), fmt.Sprintf("one %s, %s : %d peers (p50)", c.name, thousands(most.Peers), changeFrom),
				fmt.Sprintf("%d × %s", changeRatio, duration(before)), duration(p50)+", "+times(p50, before))
		}
		add(p99 <= changeLimitMost, fmt.Sprintf("one %s, %s peers (p99)", c.name, thousands(most.Peers)), duration(changeLimitMost), duration(p99))
	}
	for _, s := range r.Sizes {
		i := slices.IndexFunc(memoryLimits, func(l memoryLimit) bool { return s.Peers <= l.peers })
		if i < 0 {
			continue
		}
		now, limit := max(s.Settled.Now, s.Burdened.Now, s.Restarted.Now), memoryLimits[i].bytes
		add(now <= limit, "resident memory, "+thousands(s.Peers)+" peers", megabytes(limit), megabytes(now))
	}
	for _, s := range r.Sizes {
		if s.IdleTime > 0 {
			add(s.Idle <= idleLimit, "idle, "+thousands(s.Peers)+" peers", fmt.Sprintf("%.2f %% of a processor", 100*idleLimit), fmt.Sprintf("%.3f %%", 100*s.Idle))
		}
	}
	return out
}
