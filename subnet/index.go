package subnet

// index finds numbers by a key that is not kept in it but where the numbers
// lead: a hash table of four bytes for each, with linear probing. A map of the
// keys would be many times as large. Numbers of one key are gone through one by one, so
// they must be few, as two leases of one public address are, of which only one can be
// right. The zero index is empty; hash must be set
// before it is used.
type index struct {
	// slots have a number and one more, or 0 for none. Their count is a power of
	// two.
	slots []uint32
	used  int
	// hash is the hash of the key to which a number leads.
	hash func(n uint32) uint64
}

// leastSlots is the size at first.
const leastSlots = 16

// find returns the number of that hash which is the one.
func (x *index) find(hash uint64, is func(n uint32) bool) (n uint32, ok bool) {
	at, ok := x.slot(hash, is)
	if !ok {
		return 0, false
	}
	return x.slots[at] - 1, true
}

func (x *index) slot(hash uint64, is func(n uint32) bool) (at uint64, ok bool) {
	if x.used == 0 {
		return 0, false
	}
	mask := uint64(len(x.slots) - 1)
	for at = hash & mask; x.slots[at] != 0; at = (at + 1) & mask {
		if is(x.slots[at] - 1) {
			return at, true
		}
	}
	return 0, false
}

// add adds a number that is not there.
func (x *index) add(hash uint64, n uint32) {
	if 4*(x.used+1) > 3*len(x.slots) {
		x.grow()
	}
	x.place(hash, n+1)
	x.used++
}

func (x *index) place(hash uint64, value uint32) {
	mask := uint64(len(x.slots) - 1)
	at := hash & mask
	for x.slots[at] != 0 {
		at = (at + 1) & mask
	}
	x.slots[at] = value
}

func (x *index) grow() {
	old := x.slots
	x.slots = make([]uint32, max(leastSlots, 2*len(old)))
	for _, value := range old {
		if value != 0 {
			x.place(x.hash(value-1), value)
		}
	}
}

// replace puts another number with the same key in the place of one.
func (x *index) replace(hash uint64, is func(n uint32) bool, by uint32) {
	if at, ok := x.slot(hash, is); ok {
		x.slots[at] = by + 1
	}
}

// remove takes a number away, and moves up those behind it that it kept from
// their place.
func (x *index) remove(hash uint64, is func(n uint32) bool) {
	gap, ok := x.slot(hash, is)
	if !ok {
		return
	}
	mask := uint64(len(x.slots) - 1)
	for at := (gap + 1) & mask; x.slots[at] != 0; at = (at + 1) & mask {
		home := x.hash(x.slots[at]-1) & mask
		if (at-home)&mask >= (at-gap)&mask { // Its place is not behind the gap.
			x.slots[gap] = x.slots[at]
			gap = at
		}
	}
	x.slots[gap] = 0
	if x.used--; x.used == 0 {
		x.slots = nil
	}
}
