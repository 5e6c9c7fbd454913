package subnet

import "net/netip"

// Family is an address family. It indexes a [PerFamily], so that what holds for
// IPv4 and IPv6 alike is written once.
type Family uint8

// The two families, in the order in which records and files name them.
const (
	V4 Family = iota
	V6
)

// Families lists both families in order.
var Families = [2]Family{V4, V6}

// PerFamily holds one value for each family; the zero value of T stands for
// "this family is not in use".
type PerFamily[T any] [2]T

// FamilyOf returns the family of a valid address. An IPv4-mapped IPv6 address
// is IPv6 here; records never carry one.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return V4
	}
	return V6
}

// MinMTU is what a link must carry at least, in bytes: RFC 791 for IPv4, RFC 8200
// section 5 for IPv6.
var MinMTU = PerFamily[int]{576, 1280}

// MaxMTU is the length in bytes that an IP packet can have at most.
const MaxMTU = 65535

// Bits is the length of an address of the family: 32 or 128.
func (f Family) Bits() int {
	if f == V4 {
		return 32
	}
	return 128
}

// String returns "IPv4" or "IPv6".
func (f Family) String() string {
	if f == V4 {
		return "IPv4"
	}
	return "IPv6"
}
