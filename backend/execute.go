package backend

import (
	"context"
	"errors"
	"fmt"
)

// Execute carries out ops in the order of [Diff] on k and, as they succeed, on
// have. It sends phase after phase and goes on past failures, but leaves out
// what depends on a failed op, so that no route ever stands without what it
// needs. That holds for any part of the ops, too: what needs what is judged by
// have. It returns the ops that failed or were left out.
func Execute(ctx context.Context, k Kernel, have *State, ops []Op) []Failure {
	x := executor{have: have, needed: map[Entry]error{}, kept: map[Nexthop]error{}, unmade: map[string]bool{}}
	for len(ops) > 0 {
		n := 1
		for n < len(ops) && samePhase(ops[0], ops[n]) {
			n++
		}
		x.phase(ctx, k, ops[:n])
		ops = ops[n:]
	}
	return x.failures
}

// errStands comes up where what a route needs should go and the route stands,
// because its own op failed in an earlier pass or is held back.
var errStands = errors.New("a route stands on it")

// errLastAddress comes up where the address that should take its place failed.
var errLastAddress = errors.New("neighbours go with a device's last address")

type executor struct {
	have     *State
	failures []Failure
	// kept and needed are the nexthops and FDB entries that must stay because
	// something that should have gone before them, or moved off them, did not.
	kept   map[Nexthop]error
	needed map[Entry]error
	// unmade are devices that could not be made: what has their name, if
	// anything, is not what entries are meant for.
	unmade map[string]bool
}

func (x *executor) phase(ctx context.Context, k Kernel, ops []Op) {
	send := make([]Op, 0, len(ops))
	for _, op := range ops {
		if err := x.blocked(op); err != nil {
			x.fail(op, err)
			continue
		}
		send = append(send, op)
	}
	if len(send) == 0 {
		return
	}
	errs := k.Apply(ctx, send)
	for i, op := range send {
		if errs[i] != nil {
			x.fail(op, errs[i])
			continue
		}
		x.have.Apply(op)
	}
}

// blocked tells why an op must be left out.
func (x *executor) blocked(op Op) error {
	if op.Verb == Delete {
		return x.stillNeeded(op.Entry)
	}
	switch e := op.Entry.(type) {
	case Device:
		return x.deviceBlocked(op.Verb, e)
	case Neighbour:
		// A neighbour must not move to a MAC that leads nowhere.
		if !x.have.leads(e) {
			return fmt.Errorf("%w: no FDB entry for %s", ErrBlocked, e.MAC)
		}
	case Route:
		if e.Plain {
			return nil // The host's own devices are not among the entries.
		}
		if !x.have.Forwards(e) || x.unmade[e.On()] {
			return fmt.Errorf("%w: what %s needs is not there", ErrBlocked, e.Via)
		}
	}
	if _, ok := x.have.devices[op.Entry.On()]; !ok || x.unmade[op.Entry.On()] {
		return fmt.Errorf("%w: device %s is not there", ErrBlocked, op.Entry.On())
	}
	return nil
}

// deviceBlocked tells whether the device that was to make way is still there,
// or routes still stand on the neighbours that go with a device's old MAC.
func (x *executor) deviceBlocked(v Verb, d Device) error {
	old, there := x.have.devices[d.Name]
	switch {
	case v == Add && there:
		return fmt.Errorf("%w: the device in its place is still there", ErrBlocked)
	case there && old.MAC != d.MAC:
		return x.stillNeeded(d)
	}
	return nil
}

func (x *executor) stillNeeded(e Entry) error {
	var cause error
	switch e := e.(type) {
	case Address:
		// The last IPv4 address would take the neighbours along (State.Apply).
		if x.have.lastIPv4(e) && x.have.neighboursOf(e) {
			cause = errLastAddress
		}
	case Nexthop:
		if cause = x.kept[e]; cause == nil && x.have.usersOf(e) > 0 {
			cause = errStands
		}
	case Neighbour:
		via := Nexthop{Dev: e.Dev, Gateway: e.IP}
		if cause = x.kept[via]; cause == nil && x.have.usersOf(via) > 0 {
			cause = errStands
		}
	case FDB:
		if cause = x.needed[Identity(e)]; cause == nil && x.have.carries(e) {
			cause = errStands
		}
	case Device:
		for n, err := range x.kept {
			if n.Dev == e.Name {
				cause = err
			}
		}
		if cause == nil && x.have.forwardsOn(e.Name) {
			cause = errStands
		}
	}
	if cause != nil {
		return fmt.Errorf("%w: still in use: %w", ErrBlocked, cause)
	}
	return nil
}

// fail records a failure and what must stay because of it.
func (x *executor) fail(op Op, err error) {
	x.failures = append(x.failures, Failure{op, err})
	if op.Entry.Kind() == KindDevice && op.Verb == Add {
		x.unmade[op.Entry.On()] = true
	}
	at, ok := x.have.At(op.Entry)
	if !ok {
		return
	}
	switch e := at.(type) {
	case Route:
		if e.leans() {
			x.keep(e.Via, err)
		}
	case Nexthop:
		x.keep(e, err)
	case Neighbour:
		x.needed[e.station()] = err
	}
}

func (x *executor) keep(via Nexthop, err error) {
	x.kept[via] = err
	// The neighbour that a nexthop needs does not know of strays.
	x.kept[via.plain()] = err
	if n, ok := x.have.neighbourAt(via.Dev, via.Gateway); ok {
		x.needed[n.station()] = err
	}
}
