package subnet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"net/netip"
	"slices"
	"strings"
)

// ErrMalformedConfig is wrapped by every error of [ParseConfig]: the text will
// not become right by waiting.
var ErrMalformedConfig = errors.New("malformed network config")

// Config is the network's configuration as every node reads it from the store.
// Two configs compare equal exactly if they mean the same.
type Config struct {
	// Ranges holds, per family in use, where its subnets come from.
	Ranges PerFamily[Range]
	// Backend says how packets travel between nodes.
	Backend Backend
}

// Range is the part of the address space from which nodes lease subnets of
// one family. The zero Range means that the family is off.
type Range struct {
	// Network is the cluster's whole address space.
	Network netip.Prefix
	// SubnetLen is the prefix length of one node's subnet, in bits.
	SubnetLen int
	// Min and Max are the base addresses of the first and the last subnet
	// that may be chosen freely.
	Min, Max netip.Addr
}

// Backend is the backend's type and its options as they stand in the config.
type Backend struct {
	// Type names the backend: "vxlan" where the config has none.
	Type string
	// Options is the Backend object as compact JSON; its planner reads it.
	Options string
}

// The JSON form, with flannel's key names. Keys match without regard to case
// and unknown ones are ignored, as flannel does.
type configJSON struct {
	EnableIPv4     *bool
	EnableIPv6     bool
	EnableNFTables bool
	Network        string
	IPv6Network    string
	SubnetLen      int
	SubnetMin      string
	SubnetMax      string
	IPv6SubnetLen  int
	IPv6SubnetMin  string
	IPv6SubnetMax  string
	Backend        json.RawMessage
}

// ParseConfig reads a network config in flannel's JSON form, fills in the
// defaults and checks it. Every error wraps [ErrMalformedConfig] and names the
// key to mend.
func ParseConfig(data []byte) (Config, error) {
	c, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrMalformedConfig, err)
	}
	return c, nil
}

func parseConfig(data []byte) (Config, error) {
	var raw configJSON
	if err := decodeOne(data, &raw); err != nil {
		return Config{}, err
	}
	var c Config
	var err error
	if raw.EnableIPv4 == nil || *raw.EnableIPv4 {
		keys := rangeKeys{"Network", "SubnetLen", "SubnetMin", "SubnetMax"}
		c.Ranges[V4], err = parseRange(V4, keys, raw.Network, raw.SubnetLen, raw.SubnetMin, raw.SubnetMax)
		if err != nil {
			return Config{}, err
		}
	}
	if raw.EnableIPv6 {
		keys := rangeKeys{"IPv6Network", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"}
		c.Ranges[V6], err = parseRange(V6, keys, raw.IPv6Network, raw.IPv6SubnetLen, raw.IPv6SubnetMin, raw.IPv6SubnetMax)
		if err != nil {
			return Config{}, err
		}
	}
	if len(c.Families()) == 0 {
		return Config{}, errors.New("EnableIPv4 and EnableIPv6 are both false: enable one")
	}
	c.Backend, err = parseBackend(raw.Backend)
	return c, err
}

func parseBackend(raw json.RawMessage) (Backend, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return Backend{Type: "vxlan", Options: "{}"}, nil
	}
	var head struct{ Type string }
	if err := decodeOne(raw, &head); err != nil {
		return Backend{}, fmt.Errorf("Backend: %w", err)
	}
	if head.Type == "" {
		return Backend{}, errors.New(`Backend: Type is missing: give one, such as "vxlan"`)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		return Backend{}, fmt.Errorf("Backend: %w", err)
	}
	return Backend{Type: head.Type, Options: compact.String()}, nil
}

// rangeKeys are the names under which one family's range stands in the config.
type rangeKeys struct{ network, length, lowest, highest string }

// Limits on a family's range, flannel's: a network must hold four subnets and
// a subnet must hold at least four addresses.
var (
	longestNetwork = PerFamily[int]{28, 124}
	longestSubnet  = PerFamily[int]{30, 126}
	usualSubnet    = PerFamily[int]{24, 64}
)

func parseRange(f Family, keys rangeKeys, network string, length int, lowest, highest string) (Range, error) {
	if network == "" {
		return Range{}, fmt.Errorf("%s is missing: %s is enabled and needs one", keys.network, f)
	}
	p, err := netip.ParsePrefix(network)
	if err != nil || FamilyOf(p.Addr()) != f {
		return Range{}, fmt.Errorf("%s: %q is not an %s prefix in CIDR form", keys.network, network, f)
	}
	r := Range{Network: p.Masked(), SubnetLen: length}
	if p.Bits() > longestNetwork[f] {
		return Range{}, fmt.Errorf("%s: %s is too small: at most /%d", keys.network, p, longestNetwork[f])
	}
	if p.Bits() == 0 || !Unicast(r.Network.Addr()) {
		return Range{}, fmt.Errorf("%s: %s is not a range of unicast addresses", keys.network, p)
	}
	if r.SubnetLen == 0 {
		r.SubnetLen = max(usualSubnet[f], p.Bits()+2)
	}
	if r.SubnetLen > longestSubnet[f] || r.SubnetLen < p.Bits()+2 {
		return Range{}, fmt.Errorf("%s: %d is outside %d to %d for %s", keys.length, length, p.Bits()+2, longestSubnet[f], p)
	}
	// The first subnet is left out unless asked for: its base address is the network's own.
	size := new(big.Int).Lsh(big.NewInt(1), uint(f.Bits()-r.SubnetLen))
	if r.Min, err = r.parseBound(keys.lowest, lowest, addToAddr(r.Network.Addr(), size)); err != nil {
		return Range{}, err
	}
	if r.Max, err = r.parseBound(keys.highest, highest, lastSubnet(r.Network, r.SubnetLen)); err != nil {
		return Range{}, err
	}
	if r.Max.Less(r.Min) {
		return Range{}, fmt.Errorf("%s %s is above %s %s", keys.lowest, r.Min, keys.highest, r.Max)
	}
	return r, nil
}

func (r Range) parseBound(key, text string, otherwise netip.Addr) (netip.Addr, error) {
	if text == "" {
		return otherwise, nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || !r.Network.Contains(a) {
		return netip.Addr{}, fmt.Errorf("%s: %q is not an address in %s", key, text, r.Network)
	}
	if netip.PrefixFrom(a, r.SubnetLen).Masked().Addr() != a {
		return netip.Addr{}, fmt.Errorf("%s: %s is not the first address of a /%d", key, a, r.SubnetLen)
	}
	return a, nil
}

// UnknownConfigKeys names the keys of a config that mean nothing, sorted: most
// often a spelling mistake, which reading alone would pass over in silence.
func UnknownConfigKeys(data []byte) []string {
	return UnknownKeys(data,
		"EnableIPv4", "EnableIPv6", "EnableNFTables", "Network", "IPv6Network", "SubnetLen", "SubnetMin",
		"SubnetMax", "IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax", "Backend")
}

// UnusedConfigKeys says of a sound config which keys have no effect because
// their family is off.
func UnusedConfigKeys(data []byte) []string {
	var raw configJSON
	if decodeOne(data, &raw) != nil {
		return nil
	}
	var out []string
	if raw.IPv6Network != "" && !raw.EnableIPv6 {
		out = append(out, "IPv6Network has no effect: EnableIPv6 is not true")
	}
	if raw.Network != "" && raw.EnableIPv4 != nil && !*raw.EnableIPv4 {
		out = append(out, "Network has no effect: EnableIPv4 is false")
	}
	return out
}

// UnknownKeys names the keys of a JSON object that are none of those known,
// whatever their case, sorted.
func UnknownKeys(data []byte, known ...string) []string {
	var raw map[string]json.RawMessage
	if json.Unmarshal(data, &raw) != nil {
		return nil
	}
	var unknown []string
	for key := range raw {
		if !slices.ContainsFunc(known, func(k string) bool { return strings.EqualFold(k, key) }) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	return unknown
}

// Families lists the families in use, IPv4 first.
func (c Config) Families() []Family {
	var in []Family
	for _, f := range Families {
		if c.Ranges[f].Enabled() {
			in = append(in, f)
		}
	}
	return in
}

// Enabled tells whether the family is in use.
func (r Range) Enabled() bool { return r.Network.IsValid() }

// Size is the number of subnets between Min and Max, both counted. A number
// beyond 2^62 is given as 2^62: no store holds as many.
func (r Range) Size() uint64 {
	n := new(big.Int).Sub(addrToInt(r.Max), addrToInt(r.Min))
	n.Rsh(n, uint(r.Max.BitLen()-r.SubnetLen))
	n.Add(n, big.NewInt(1))
	if n.BitLen() > 62 {
		return 1 << 62
	}
	return n.Uint64()
}

// At returns the i-th subnet counted from Min. It panics on nothing: an i of
// Size or more gives a subnet outside the range.
func (r Range) At(i uint64) netip.Prefix {
	step := new(big.Int).SetUint64(i)
	step.Lsh(step, uint(r.Min.BitLen()-r.SubnetLen))
	return netip.PrefixFrom(addToAddr(r.Min, step), r.SubnetLen)
}

// Check tells why p cannot be a node's subnet under this range, nil if it can.
// A subnet outside Min and Max is fine: it may be reserved by hand.
func (r Range) Check(p netip.Prefix) error {
	switch {
	case !r.Network.Contains(p.Addr()) || p.Bits() < r.Network.Bits():
		return fmt.Errorf("%s is outside the network %s", p, r.Network)
	case p.Bits() != r.SubnetLen:
		return fmt.Errorf("%s is not a /%d as the network's subnets are", p, r.SubnetLen)
	case p.Masked() != p:
		return fmt.Errorf("%s is not the base address of a subnet", p)
	}
	return nil
}

func lastSubnet(network netip.Prefix, length int) netip.Addr {
	bits := network.Addr().BitLen()
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-network.Bits()))
	n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(bits-length)))
	return addToAddr(network.Addr(), n)
}

func addrToInt(a netip.Addr) *big.Int { return new(big.Int).SetBytes(a.AsSlice()) }

// addToAddr returns a+n in the family of a, wrapping around at its end.
func addToAddr(a netip.Addr, n *big.Int) netip.Addr {
	sum := new(big.Int).Add(addrToInt(a), n)
	sum.And(sum, new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(a.BitLen())), big.NewInt(1)))
	out, _ := netip.AddrFromSlice(sum.FillBytes(make([]byte, a.BitLen()/8)))
	return out
}

// maxValue bounds a record or a config, in bytes.
const maxValue = math.MaxUint16

// decodeOne reads exactly one JSON object. A byte after it is an error: a
// record or config that was written twice over must not be read by half.
func decodeOne(data []byte, into any) error {
	if len(data) > maxValue {
		return fmt.Errorf("%d bytes are more than the %d that are read", len(data), maxValue)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if t := bytes.TrimLeft(data, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return errors.New("not a JSON object")
	}
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("not valid JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more text after the JSON object")
	}
	return nil
}

// Unicast tells whether a can be one host's or one network's address: not
// zero, not multicast, not loopback, not IPv4's class E, not link-local. A
// peer with a link-local address cannot be named without an interface.
func Unicast(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return false
	}
	if a.Is4() {
		b := a.As4()
		return b[0] != 0 && b[0] < 240
	}
	return true
}
