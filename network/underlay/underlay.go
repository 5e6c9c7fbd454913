// Package underlay chooses the interface and the address by which a node is
// reached by its peers, and says what becomes of the choice as the host changes.
// It is pure; what there is to choose from comes from the kernel.
package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// ErrNone is wrapped where no interface serves; waiting may mend it, as when
// a host has not got its address yet.
var ErrNone = errors.New("no underlay")

// Wish is what the operator asked for. Of what it has, the first that an
// interface answers to decides, in the order of the fields. The zero Wish takes
// the interface by which the store is reached, or else that of the default route.
type Wish struct {
	// Ifaces are names of interfaces, or addresses of theirs.
	Ifaces []string
	// Regexes match an interface's name or one of its addresses.
	Regexes []*regexp.Regexp
	// CanReach is an address that is reached by the interface.
	CanReach netip.Addr
	// PublicIP is published in place of the interface's own address. One that
	// an interface has also chooses the interface.
	PublicIP subnet.PerFamily[netip.Addr]
}

// named tells whether nothing but what was asked for serves.
func (w Wish) named() bool { return len(w.Ifaces)+len(w.Regexes) > 0 || w.CanReach.IsValid() }

// ByStore tells whether it may depend on the way to the store.
func (w Wish) ByStore() bool { return !w.named() }

// Targets are the addresses to which the ways count, with the given ones of the
// store.
func (w Wish) Targets(store []netip.Addr) []netip.Addr {
	switch {
	case w.CanReach.IsValid():
		return []netip.Addr{w.CanReach}
	case w.named():
		return nil
	}
	return store
}

// Host is what there is to choose from.
type Host struct {
	Interfaces []backend.Interface
	// Store are the store's addresses in the order in which they are asked for.
	Store []netip.Addr
	// Ways are how the host sends to [Wish.Targets].
	Ways map[netip.Addr]backend.Way
	// StoreAway tells that the store does not answer: the way to it says nothing then.
	StoreAway bool
}

// Choice is the underlay of a node for one family.
type Choice struct {
	Interface string
	// Local is an address of the host, to which the tunnel is bound, and
	// Public the one at which peers send to it.
	Local, Public netip.Addr
	// Translated tells that no interface has Public, as behind a 1:1 NAT.
	Translated bool
	// MTU is the interface's, in bytes.
	MTU int
	// OnLink are the family's prefixes whose addresses are on its link.
	OnLink []netip.Prefix
	// Broadcasts are its IPv4 broadcast addresses, where that is the family.
	Broadcasts []netip.Addr
	// Reason says why it was chosen, for the log.
	Reason string
	// Trouble says why it does not serve at present, "" if it does.
	Trouble string
}

// Same tells whether two choices lead to the same, for whatever reason and
// whether they serve or not.
func (c Choice) Same(o Choice) bool {
	return c.Interface == o.Interface && c.Local == o.Local && c.Public == o.Public && c.Translated == o.Translated && c.MTU == o.MTU &&
		slices.Equal(c.OnLink, o.OnLink) && slices.Equal(c.Broadcasts, o.Broadcasts)
}

// Choose picks the underlay for each of the given families. Every error says what was
// looked for, and not what there was: that is another with every pod that comes and goes.
func Choose(wish Wish, families []subnet.Family, host Host) (subnet.PerFamily[Choice], error) {
	var out subnet.PerFamily[Choice]
	for _, f := range families {
		var err error
		if out[f], err = choose(wish, f, host, Choice{}); err != nil {
			return out, err
		}
	}
	return out, nil
}

// Follow says what a choice made before is to become. While its interface and
// its address are as the wish has it, they are kept beside any other. Where
// nothing serves, or nothing that is up, the choice stays, in trouble: what comes
// back is then what it was.
func Follow(wish Wish, f subnet.Family, host Host, before Choice) Choice {
	c, err := choose(wish, f, host, before)
	switch {
	case err != nil:
		before.Trouble = err.Error()
		return before
	case c.Trouble != "":
		// The kernel has dropped the routes to what is on its link, and IPv6
		// addresses; which those are to be is not known until it is up again.
		before.Trouble = c.Trouble
		return before
	}
	return c
}

func choose(wish Wish, f subnet.Family, host Host, before Choice) (Choice, error) {
	l := look{wish: wish, family: f, host: host, before: before, public: wish.PublicIP[f]}
	c, err := l.choose()
	if err != nil {
		return Choice{}, fmt.Errorf("choose the %s underlay: %w", f, err)
	}
	return c, nil
}

// look is one choice in the making.
type look struct {
	wish   Wish
	family subnet.Family
	host   Host
	before Choice
	public netip.Addr
}

// candidate is an interface that answers to a wish.
type candidate struct {
	backend.Interface
	local  netip.Addr
	reason string
}

func (l look) choose() (Choice, error) {
	if l.public.IsValid() && l.before.Local == l.public && l.holder(l.public) == nil {
		return Choice{}, fmt.Errorf("%w: no interface has the public address %s any more", ErrNone, l.public)
	}
	found, why := l.candidates()
	if len(found) == 0 {
		return Choice{}, why
	}
	// One that is down serves only where there is no other.
	best := found[max(0, slices.IndexFunc(found, func(c candidate) bool { return c.Up }))]
	out := Choice{
		Interface: best.Name, Local: best.local, Public: l.public, MTU: best.MTU, OnLink: onLink(best.Interface, l.family), Reason: best.reason,
	}
	if l.family == subnet.V4 {
		out.Broadcasts = best.Broadcasts
	}
	if !out.Public.IsValid() {
		out.Public = out.Local
	}
	out.Translated = l.holder(out.Public) == nil
	if !best.Up {
		out.Trouble = fmt.Sprintf("interface %s is down or has no carrier", best.Name)
	}
	return out, nil
}

// candidates lists what answers to the wish, best first, or says why there is
// nothing. A wish that says less is asked only where one that says more has no
// answer at all; among interfaces that the operator names, one by one, those that
// are up go first.
func (l look) candidates() ([]candidate, error) {
	if l.wish.named() {
		var out []candidate
		var missing []string
		for _, rule := range []func() ([]candidate, []string){l.byName, l.byRegex, l.byReach} {
			found, lacks := rule()
			out, missing = append(out, found...), append(missing, lacks...)
		}
		return out, fmt.Errorf("%w: %s", ErrNone, strings.Join(missing, "; "))
	}
	if i := l.holder(l.public); i != nil {
		return []candidate{{*i, l.public, "has the public address given"}}, nil
	}
	if i := l.holder(l.before.Local); l.host.StoreAway && i != nil && i.Up && i.Name == l.before.Interface {
		return []candidate{{*i, l.before.Local, l.before.Reason}}, nil
	}
	if found := l.byStore(); len(found) > 0 {
		return found, nil
	}
	return l.byDefault()
}

func (l look) byName() (out []candidate, missing []string) {
	for _, name := range l.wish.Ifaces {
		found, lack := l.named(name)
		if found == nil {
			missing = append(missing, lack)
		} else {
			out = append(out, *found)
		}
	}
	return out, missing
}

// named finds the interface that is called so or has that address. The address
// counts for its own family; the other's is then the interface's first.
func (l look) named(iface string) (*candidate, string) {
	want, err := netip.ParseAddr(iface)
	isAddr := err == nil
	for _, i := range l.host.Interfaces {
		if i.Name != iface && !(isAddr && has(i, want)) {
			continue
		}
		if isAddr && subnet.FamilyOf(want) == l.family {
			return &candidate{i, want, "named by --iface"}, ""
		}
		local, ok := l.local(i)
		if !ok {
			return nil, fmt.Sprintf("interface %s has no global %s address: add one, or turn %s off in the network config", i.Name, l.family, l.family)
		}
		return &candidate{i, local, "named by --iface"}, ""
	}
	what := "called"
	if isAddr {
		what = "with the address"
	}
	return nil, fmt.Sprintf("no interface %s %s (--iface)", what, iface)
}

// byRegex finds interfaces by their names first, then by their addresses. Of
// several that one expression matches, that which was chosen before goes first.
func (l look) byRegex() (out []candidate, missing []string) {
	for _, re := range l.wish.Regexes {
		var found []candidate
		for _, i := range l.host.Interfaces {
			if local, ok := l.local(i); ok && re.MatchString(i.Name) {
				found = append(found, candidate{i, local, "matches --iface-regex " + re.String()})
			}
		}
		if len(found) == 0 {
			for _, i := range l.host.Interfaces {
				if a, ok := l.matching(i, re); ok {
					found = append(found, candidate{i, a, "has an address that matches --iface-regex " + re.String()})
				}
			}
		}
		if len(found) == 0 {
			missing = append(missing, fmt.Sprintf("no interface with a global %s address, and none of these, matches %s (--iface-regex)", l.family, re))
		}
		out = append(out, l.stick(found)...)
	}
	return out, missing
}

// matching is the interface's address that an expression matches; of another
// family it chooses the interface alone.
func (l look) matching(i backend.Interface, re *regexp.Regexp) (netip.Addr, bool) {
	var own []netip.Addr
	other := false
	for _, a := range i.Addresses {
		switch {
		case !re.MatchString(a.String()):
		case subnet.FamilyOf(a) == l.family:
			own = append(own, a)
		default:
			other = true
		}
	}
	switch {
	case i.Name == l.before.Interface && slices.Contains(own, l.before.Local):
		return l.before.Local, true
	case len(own) > 0:
		return own[0], true
	case other:
		return l.local(i)
	}
	return netip.Addr{}, false
}

func (l look) byReach() (out []candidate, missing []string) {
	to := l.wish.CanReach
	if !to.IsValid() {
		return nil, nil
	}
	if c, ok := l.byWay(to, "reaches "+to.String()+" (--iface-can-reach)"); ok {
		return []candidate{c}, nil
	}
	return nil, []string{fmt.Sprintf("%s (--iface-can-reach) is not reached by an interface with a global %s address", to, l.family)}
}

// byStore finds the interface by which the store is reached: by its addresses of
// the family, or else by those of the other.
func (l look) byStore() []candidate {
	for _, own := range []bool{true, false} {
		for _, to := range l.host.Store {
			if own != (subnet.FamilyOf(to) == l.family) {
				continue
			}
			if c, ok := l.byWay(to, "is the way to the store at "+to.String()); ok {
				return []candidate{c}
			}
		}
	}
	return nil
}

// byWay finds the interface by which an address is reached. The kernel's source
// counts if it is of the family and not one that changes for privacy's sake. The
// host's own address is reached by no link; it is at home on some interface.
func (l look) byWay(to netip.Addr, reason string) (candidate, bool) {
	way := l.host.Ways[to]
	at := slices.IndexFunc(l.host.Interfaces, func(i backend.Interface) bool { return i.Name == way.Interface })
	source := l.holder(way.Source)
	switch {
	case at < 0:
		return candidate{}, false
	case way.Source == to && source == nil: // A loopback address.
		return candidate{}, false
	case way.Source == to:
		local, ok := l.local(*source)
		if subnet.FamilyOf(to) == l.family {
			local, ok = to, true
		}
		return candidate{*source, local, reason}, ok
	}
	i := l.host.Interfaces[at]
	switch {
	case i.Name == l.before.Interface && l.holder(l.before.Local) != nil:
		return candidate{i, l.before.Local, reason}, true
	case source != nil && subnet.FamilyOf(way.Source) == l.family:
		return candidate{i, way.Source, reason}, true
	}
	local, ok := l.local(i)
	return candidate{i, local, reason}, ok
}

func (l look) byDefault() ([]candidate, error) {
	var found []candidate
	bare := ""
	for _, i := range l.host.Interfaces {
		if !leadsOut(i, l.family) {
			continue
		}
		if local, ok := l.local(i); ok {
			found = append(found, candidate{i, local, "has the default route"})
		} else if bare == "" {
			bare = i.Name
		}
	}
	if bare != "" {
		return l.stick(found), fmt.Errorf("%w: %s has the default route and no global %s address: add one, or name another with --iface", ErrNone, bare, l.family)
	}
	return l.stick(found), fmt.Errorf("%w: there is no %s default route: name an interface with --iface", ErrNone, l.family)
}

// stick puts the interface that was chosen before in front.
func (l look) stick(found []candidate) []candidate {
	slices.SortStableFunc(found, func(a, b candidate) int {
		switch l.before.Interface {
		case b.Name:
			return 1
		case a.Name:
			return -1
		}
		return 0
	})
	return found
}

// local is the interface's address to bind to: a public one that it has, then
// that of before, then its first.
func (l look) local(i backend.Interface) (netip.Addr, bool) {
	switch {
	case has(i, l.public):
		return l.public, true
	case i.Name == l.before.Interface && has(i, l.before.Local):
		return l.before.Local, true
	}
	for _, a := range i.Addresses {
		if subnet.FamilyOf(a) == l.family {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// holder is the interface that has an address, nil for none.
func (l look) holder(a netip.Addr) *backend.Interface {
	for n := range l.host.Interfaces {
		if has(l.host.Interfaces[n], a) {
			return &l.host.Interfaces[n]
		}
	}
	return nil
}

func has(i backend.Interface, a netip.Addr) bool {
	return a.IsValid() && slices.Contains(i.Addresses, a)
}

func onLink(i backend.Interface, f subnet.Family) (out []netip.Prefix) {
	for _, p := range i.OnLink {
		if subnet.FamilyOf(p.Addr()) == f {
			out = append(out, p)
		}
	}
	return out
}

func leadsOut(i backend.Interface, f subnet.Family) bool {
	if f == subnet.V4 {
		return i.DefaultV4
	}
	return i.DefaultV6
}

// mostListed bounds the interfaces that a text names: a host may have thousands.
const mostListed = 20

// List names interfaces and their addresses, for people: those with addresses
// first, and no more than a line takes.
func List(host []backend.Interface) string {
	sorted := slices.Clone(host)
	slices.SortStableFunc(sorted, func(a, b backend.Interface) int {
		return min(len(b.Addresses), 1) - min(len(a.Addresses), 1)
	})
	var out []string
	for n, i := range sorted {
		if n == mostListed {
			out = append(out, fmt.Sprintf("and %d more", len(sorted)-n))
			break
		}
		addrs := make([]string, 0, len(i.Addresses))
		for _, a := range i.Addresses[:min(len(i.Addresses), mostListed)] {
			addrs = append(addrs, a.String())
		}
		if len(addrs) == 0 {
			addrs = []string{"no address"}
		}
		if !i.Up {
			addrs = append(addrs, "down")
		}
		out = append(out, fmt.Sprintf("%s (%s)", i.Name, strings.Join(addrs, ", ")))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
