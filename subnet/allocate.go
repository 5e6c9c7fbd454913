package subnet

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// ExhaustedError says that every subnet of a range is held.
type ExhaustedError struct {
	Range Range
	// Leases are those that hold them, in the order of their subnets.
	Leases []Lease
}

// Error says how many subnets there are and who holds them; of many it names
// the first few.
func (e *ExhaustedError) Error() string {
	const named = 8
	var who []string
	f := FamilyOf(e.Range.Network.Addr())
	for _, l := range e.Leases {
		if len(who) == named {
			who = append(who, fmt.Sprintf("and %d more", len(e.Leases)-named))
			break
		}
		who = append(who, fmt.Sprintf("%s by %s", l.Subnets[f], l.Holder()))
	}
	return fmt.Sprintf("no free %s subnet: all %d of length /%d from %s to %s in %s are held: %s",
		f, e.Range.Size(), e.Range.SubnetLen, e.Range.Min, e.Range.Max, e.Range.Network, strings.Join(who, ", "))
}

// seededOrder visits each number below n once, in an order of the seed's own:
// a node that comes back looks first where it was before, and nodes that start
// together look in different places.
func seededOrder(seed string, n uint64) iter.Seq[uint64] {
	sum := sha256.Sum256([]byte("ripstop subnet order\x00" + seed))
	start := binary.BigEndian.Uint64(sum[:8]) % n
	step := binary.BigEndian.Uint64(sum[8:16])%n | 1
	for gcd(step, n) != 1 { // A step that shares a factor with n would not come by every number.
		step++
	}
	return func(yield func(uint64) bool) {
		at := start
		for range n {
			if !yield(at) {
				return
			}
			at = addMod(at, step%n, n)
		}
	}
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func addMod(a, b, n uint64) uint64 {
	sum, carry := bits.Add64(a, b, 0)
	_, rem := bits.Div64(carry, sum, n) // a, b < n, so carry < n.
	return rem
}

// occupied answers which of a range's subnets are taken.
type occupied struct {
	r     Range
	bases map[netip.Addr]struct{}
	// wide are held prefixes larger than one subnet: there should be none.
	wide []netip.Prefix
}

func occupy(r Range, held iter.Seq[netip.Prefix]) occupied {
	o := occupied{r: r, bases: map[netip.Addr]struct{}{}}
	for p := range held {
		switch {
		case !p.IsValid() || !p.Overlaps(r.Network):
		case p.Bits() < r.SubnetLen:
			o.wide = append(o.wide, p)
		default:
			o.bases[netip.PrefixFrom(p.Addr(), r.SubnetLen).Masked().Addr()] = struct{}{}
		}
	}
	return o
}

func (o occupied) taken(p netip.Prefix) bool {
	if _, ok := o.bases[p.Addr()]; ok {
		return true
	}
	return slices.ContainsFunc(o.wide, p.Overlaps)
}

// free returns the first free subnet in the order of the seed.
func (o occupied) free(seed string) (netip.Prefix, bool) {
	for i := range seededOrder(seed, o.r.Size()) {
		if p := o.r.At(i); !o.taken(p) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
