package host

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// record is what a report is made of beside the settings as they are then.
type record struct {
	mu sync.Mutex
	// began tells that the settings are seen to.
	began    bool
	families []subnet.Family
	// heard are links that hear routers though the host forwards, sorted.
	heard []string
	// each tells that links are made to forward IPv4 one by one.
	each bool
	// trouble says why the last look could not make all right.
	trouble string
	undone  map[string]*undone
}

// undone is what an outside hand did to a setting.
type undone struct {
	times uint64
	// row is how often it was since it last left the setting alone for a while.
	row  int
	last time.Time
}

// looked notes what became of a look at the settings.
func (r *record) looked(needs Needs, heard map[string]bool, each bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.began, r.families, r.heard, r.each, r.trouble = true, needs.Families, sortedKeys(heard), each, ""
	if err != nil {
		r.trouble = err.Error()
	}
	maps.DeleteFunc(r.undone, func(key string, _ *undone) bool { // Of links that are forgotten.
		return key != forwardingKey[subnet.V4] && key != forwardingKey[subnet.V6] && !slices.ContainsFunc(r.heard, func(link string) bool { return acceptRA(link) == key })
	})
}

// restored notes that a setting was put back, and tells which time in a row that was.
func (r *record) restored(key string, calm time.Duration) (row int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.undone == nil {
		r.undone = map[string]*undone{}
	}
	u := r.undone[key]
	if u == nil {
		u = &undone{}
		r.undone[key] = u
	}
	now := time.Now()
	if now.Sub(u.last) > calm {
		u.row = 0
	}
	u.times++
	u.row++
	u.last = now
	return u.row
}

// Report tells what is kept and how it stands now. It reads a small file for each
// setting and waits for nothing. It is safe for concurrent use.
func (k *Keeper) Report() status.Host {
	r := &k.record
	r.mu.Lock()
	defer r.mu.Unlock()
	out := status.Host{Kept: r.began, Problem: r.trouble}
	if !r.began {
		return out
	}
	add := func(key string, want int, forwards string) {
		have, err := k.settings.Get(key)
		if forwards == "" && errors.Is(err, fs.ErrNotExist) {
			return // A link that has gone.
		}
		s := status.Setting{Name: name(key), Want: want, Have: have, Right: err == nil && have == want, Forwards: forwards}
		if err != nil && out.Problem == "" {
			out.Problem = "host setting cannot be read: " + err.Error()
		}
		if r.each && key == forwardingKey[subnet.V4] {
			s.PerInterface = !s.Right
			s.Right = s.Right || r.trouble == ""
		}
		if u := r.undone[key]; u != nil {
			s.Restored, s.Fought = u.times, u.row > mostSaid && time.Since(u.last) <= k.calm
			out.Restored += u.times
			if u.last.After(out.LastRestored) {
				out.LastRestored = u.last
			}
		}
		out.Settings = append(out.Settings, s)
	}
	for _, f := range r.families {
		add(forwardingKey[f], 1, f.String())
	}
	if slices.Contains(r.families, subnet.V6) {
		for _, link := range r.heard {
			add(acceptRA(link), heedsAlways, "")
		}
	}
	return out
}
