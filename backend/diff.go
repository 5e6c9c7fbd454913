package backend

import (
	"cmp"
	"maps"
	"slices"
)

// Verb says what an op does.
type Verb uint8

// The verbs. Add of a nexthop or a route fails where one is there already, for
// it can only be another's; Replace overwrites what the mirror shows as ours.
const (
	Add Verb = iota
	Replace
	Delete
)

// String returns the verb as ip has it.
func (v Verb) String() string { return [...]string{"add", "replace", "delete"}[v] }

// Op is one change to the kernel's state.
type Op struct {
	Verb  Verb
	Entry Entry
}

// String gives verb and entry.
func (o Op) String() string { return o.Verb.String() + " " + o.Entry.String() }

// samePhase tells whether two ops may go to the kernel in one batch: they do
// not need one another.
func samePhase(a, b Op) bool {
	return a.Entry.Kind() == b.Entry.Kind() && (a.Verb == Delete) == (b.Verb == Delete)
}

// Diff returns the ops that turn have into want, in an order of which every
// prefix keeps the routes that stand supplied: what a route needs comes before
// it and goes after it. The order is the same whenever the input is.
//
// A device is changed in place where the kernel can, else removed and made
// anew with all that hangs on it.
func Diff(have, want *State) []Op {
	d := differ{have: have, want: want}
	d.remakeDevices()
	for k := range kinds {
		d.bring(k)
	}
	for k := range kinds {
		d.clear(kinds - 1 - k)
	}
	return d.ops
}

// differ works on a copy of have, made on the first need, that shows what the
// ops so far have left.
type differ struct {
	have, want *State
	ops        []Op
	copied     bool
}

func (d *differ) emit(ops ...Op) {
	slices.SortFunc(ops, func(a, b Op) int {
		return cmp.Or(cmp.Compare(a.Verb, b.Verb), compareEntries(a.Entry, b.Entry))
	})
	d.ops = append(d.ops, ops...)
}

// remakeDevices makes way for what cannot be done in place: a device that does
// not fit goes, with its routes and nexthops ahead of it (a bare delete of a
// device with many is slow: fib_flush); and before a device gets another MAC,
// at which the kernel drops its neighbours (neigh_changeaddr), the routes that
// need those go.
func (d *differ) remakeDevices() {
	for _, name := range slices.Sorted(maps.Keys(d.want.devices)) {
		want := d.want.devices[name]
		have, ok := d.have.devices[want.Name]
		switch {
		case !ok || have.meets(want):
		case !changeable(have, want):
			d.remove(KindRoute, func(e Entry) bool { return e.On() == want.Name })
			d.remove(KindNexthop, func(e Entry) bool { return e.On() == want.Name })
			d.remove(KindDevice, func(e Entry) bool { return e.On() == want.Name })
		case have.MAC != want.MAC:
			d.remove(KindRoute, func(e Entry) bool { return e.On() == want.Name && d.have.Forwards(e.(Route)) })
			d.own().Apply(Op{Replace, want})
			d.have.Put(have) // Its neighbours are gone, the change itself is still to come.
		}
	}
}

func (d *differ) own() *State {
	if !d.copied {
		d.have, d.copied = d.have.Clone(), true
	}
	return d.have
}

// remove emits the deletes of what matches and takes it from the copy of have.
func (d *differ) remove(k Kind, match func(Entry) bool) {
	var ops []Op
	for e := range d.have.OfKind(k) {
		if match(e) {
			ops = append(ops, Op{Delete, e})
		}
	}
	d.emit(ops...)
	for _, op := range ops {
		d.own().Apply(op)
	}
}

// bring emits what want has and have lacks or has otherwise.
func (d *differ) bring(k Kind) {
	var ops []Op
	for want := range d.want.OfKind(k) {
		switch have, ok := d.have.At(want); {
		case !ok:
			ops = append(ops, Op{Add, want})
		case !asWanted(have, want):
			ops = append(ops, Op{Replace, want})
		}
	}
	d.emit(ops...)
}

// asWanted tells whether an entry is as the one of its identity that is wanted.
func asWanted(have, want Entry) bool {
	if have, ok := have.(Device); ok {
		return have.meets(want.(Device))
	}
	return have == want
}

// clear emits the deletes of what only have has. What hangs on a device that
// goes itself is left to go with it, but for routes and nexthops.
func (d *differ) clear(k Kind) {
	var ops []Op
	for have := range d.have.OfKind(k) {
		if _, ok := d.want.At(have); ok {
			continue
		}
		if k > KindDevice && k < KindNexthop {
			if _, stays := d.want.devices[have.On()]; !stays && d.deviceGoes(have.On()) {
				continue
			}
		}
		ops = append(ops, Op{Delete, have})
	}
	d.emit(ops...)
}

func (d *differ) deviceGoes(name string) bool {
	_, there := d.have.devices[name]
	return there
}

// changeable tells whether the kernel can turn one device into the other in
// place (vxlan_changelink refuses another VNI, port or family).
func changeable(have, want Device) bool {
	return have.Misfit == "" && (have.Lower == "" || have.Lower == want.Lower) && have.VNI == want.VNI && have.Port == want.Port && have.Local.Is4() == want.Local.Is4()
}
