package subnet

import "slices"

// Unread lists the network's subnets of which a record cannot be read and nothing
// was read before, in their order: their holders may be peers of a time of which
// nothing is remembered. It costs as much as there are records that cannot be
// read.
func (m *Mirror) Unread() []Subnets {
	var out []Subnets
	for key := range m.bad {
		s, err := ParseKey(key)
		if _, known := m.leases.id(s); err == nil && !known && m.cfg.CheckSubnets(s) == nil {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Subnets) int { return a.pack().compare(b.pack()) })
	return out
}
