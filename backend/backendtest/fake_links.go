package backendtest

import (
	"fmt"
	"slices"
	"syscall"

	"github.com/ripstop-net/ripstop/backend"
)

// Link implements Links: it makes or changes a link of the host's, with what
// that does to plain routes of ours over it.
func (f *Fake) Link(name string, do Deed) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	renamed := name + "x"
	if do == NameBack {
		name, renamed = renamed, name
	}
	if _, there := f.links[name]; there == (do == Make) {
		return fmt.Errorf("%s %s: %w", do, name, syscall.ENODEV)
	}
	carries := f.carriers[name]
	for e := range f.state.OfKind(backend.KindRoute) {
		carries = carries || e.(backend.Route).Plain && e.On() == name
	}
	switch do {
	case Make, SetUp:
		f.links[name] = true
	case SetDown:
		f.links[name] = false
		f.dropPlain(name, func(backend.Route) bool { return true })
	case Destroy:
		delete(f.links, name)
		f.dropPlain(name, func(backend.Route) bool { return true })
	case FlushAddresses:
		f.dropPlain(name, func(r backend.Route) bool { return r.Dst.Addr().Is4() })
	case Rename, NameBack:
		f.links[renamed] = f.links[name]
		delete(f.links, name)
		for _, r := range f.dropPlain(name, func(backend.Route) bool { return true }) {
			r.Via.Dev = renamed
			f.state.Put(r)
		}
	}
	if carries || f.carriers[renamed] {
		f.lose()
		f.kick()
	}
	return nil
}

// dropPlain drops the plain routes over a link that match, and returns them.
func (f *Fake) dropPlain(link string, match func(backend.Route) bool) (dropped []backend.Route) {
	for _, e := range slices.Collect(f.state.OfKind(backend.KindRoute)) {
		if r := e.(backend.Route); r.Plain && r.Via.Dev == link && match(r) {
			f.state.Drop(r)
			dropped = append(dropped, r)
		}
	}
	return dropped
}
