package subnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// The record is flannel's, then our extra keys. Field order is what goes on
// the wire. PublicIPv6 is always there, null for none.
type recordJSON struct {
	PublicIP      string          `json:"PublicIP"`
	PublicIPv6    *string         `json:"PublicIPv6"`
	BackendType   string          `json:"BackendType,omitempty"`
	BackendData   json.RawMessage `json:"BackendData,omitempty"`
	BackendV6Data json.RawMessage `json:"BackendV6Data,omitempty"`
	Node          string          `json:"Node,omitempty"`
	MTU           int             `json:"MTU,omitempty"`
	Translated    bool            `json:"Translated,omitempty"`
	TranslatedV6  bool            `json:"TranslatedV6,omitempty"`
	EchoPort      uint16          `json:"EchoPort,omitempty"`
}

type vtepJSON struct {
	VNI     uint32
	VtepMAC string
}

// vxlan is the type of backend whose data is read here.
const vxlan = "vxlan"

// noIPv4 fills PublicIP in a record without IPv4, as flannel writes it.
const noIPv4 = "0.0.0.0"

// noSubnet4 stands in a key for the IPv4 subnet of an IPv6-only lease.
var noSubnet4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// Key returns the last part of the record's key: "10.5.87.0-24", or
// "10.5.5.0-24&fd00:10:5:1f::-64" with both families. IPv6 alone has
// "0.0.0.0-0" for the missing IPv4 subnet.
func (s Subnets) Key() string {
	var room [maxKey]byte
	return string(s.appendKey(room[:0]))
}

// maxKey is room for any key: two addresses with their lengths.
const maxKey = 80

func (s Subnets) appendKey(b []byte) []byte {
	four := s[V4]
	if !four.IsValid() {
		four = noSubnet4
	}
	b = appendDashed(b, four)
	if s[V6].IsValid() {
		b = appendDashed(append(b, '&'), s[V6])
	}
	return b
}

func appendDashed(b []byte, p netip.Prefix) []byte {
	return strconv.AppendInt(append(p.Addr().AppendTo(b), '-'), int64(p.Bits()), 10)
}

// ParseKey reads the last part of a record's key. It takes exactly what
// [Subnets.Key] writes: a key with host bits set, leading zeros or another
// spelling of the same subnet could hold a subnet twice.
func ParseKey(key string) (Subnets, error) {
	var s Subnets
	four, six, dual := strings.Cut(key, "&")
	var err error
	if s[V4], err = parseDashed(four, V4); err != nil {
		return Subnets{}, err
	}
	if dual {
		if s[V6], err = parseDashed(six, V6); err != nil {
			return Subnets{}, err
		}
		if s[V4] == noSubnet4 {
			s[V4] = netip.Prefix{}
		}
	}
	for _, p := range s {
		if p.IsValid() && p.Masked() != p {
			return Subnets{}, fmt.Errorf("key contradicts itself: %s is not the base address of a /%d", p.Addr(), p.Bits())
		}
	}
	var room [maxKey]byte
	if string(s.appendKey(room[:0])) != key {
		return Subnets{}, fmt.Errorf("key is not in its plain form, which is %q", s.Key())
	}
	return s, nil
}

func parseDashed(text string, f Family) (netip.Prefix, error) {
	addr, length, ok := strings.Cut(text, "-")
	a, err := netip.ParseAddr(addr)
	if !ok || err != nil || FamilyOf(a) != f || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("key is no subnet: %q is not of the form ADDRESS-LENGTH in %s", text, f)
	}
	bits, err := strconv.Atoi(length)
	p := netip.PrefixFrom(a, bits)
	if err != nil || !p.IsValid() {
		return netip.Prefix{}, fmt.Errorf("key contradicts itself: %q is no prefix length of %s", length, f)
	}
	return p, nil
}

// Record returns the lease's value in the store: flannel's keys in flannel's
// order and form, then our own.
func (l Lease) Record() []byte {
	rec := recordJSON{PublicIP: noIPv4, BackendType: l.Backend, Node: l.Node, MTU: l.MTU, EchoPort: l.EchoPort}
	if a := l.Endpoints[V4].PublicIP; a.IsValid() {
		rec.PublicIP = a.String()
		rec.BackendData, rec.Translated = vtepData(l.Endpoints[V4]), l.Endpoints[V4].Translated
	}
	if a := l.Endpoints[V6].PublicIP; a.IsValid() {
		text := a.String()
		rec.PublicIPv6 = &text
		rec.BackendV6Data, rec.TranslatedV6 = vtepData(l.Endpoints[V6]), l.Endpoints[V6].Translated
	}
	out, err := json.Marshal(rec)
	if err != nil { // Strings and numbers alone: it cannot fail.
		return nil
	}
	return out
}

// checkMTU tells why no node with these subnets can have an MTU. 0 is none.
func checkMTU(s Subnets, mtu int) error {
	for _, f := range Families {
		if mtu != 0 && s[f].IsValid() && (mtu < MinMTU[f] || mtu > MaxMTU) {
			return fmt.Errorf("MTU: %d is outside %s's %d to %d", mtu, f, MinMTU[f], MaxMTU)
		}
	}
	return nil
}

func vtepData(e Endpoint) json.RawMessage {
	if e.MAC == (MAC{}) {
		return nil
	}
	out, err := json.Marshal(vtepJSON{VNI: e.VNI, VtepMAC: e.MAC.String()})
	if err != nil {
		return nil
	}
	return out
}

// ParseRecord reads a lease from its key (the last part) and value. What it
// returns is well formed; whether it can be used is for [Config.CheckLease].
// A record that only reserves may lack all but the key.
func ParseRecord(key string, value []byte) (Lease, error) {
	s, err := ParseKey(key)
	if err != nil {
		return Lease{}, err
	}
	rec, ok := scanRecord(value)
	if !ok {
		rec = recordJSON{}
		if err := decodeOne(value, &rec); err != nil {
			return Lease{}, fmt.Errorf("value: %w", err)
		}
	}
	l := Lease{Subnets: s, Node: rec.Node, Backend: rec.BackendType, MTU: rec.MTU, EchoPort: rec.EchoPort}
	if l.Node != "" {
		if err := CheckNodeName(l.Node); err != nil {
			return Lease{}, err
		}
	}
	if err := checkMTU(s, l.MTU); err != nil {
		return Lease{}, err
	}
	texts := PerFamily[string]{V4: rec.PublicIP}
	if rec.PublicIPv6 != nil {
		texts[V6] = *rec.PublicIPv6
	}
	keys := PerFamily[string]{"PublicIP", "PublicIPv6"}
	data := PerFamily[json.RawMessage]{rec.BackendData, rec.BackendV6Data}
	translated := PerFamily[bool]{rec.Translated, rec.TranslatedV6}
	for _, f := range Families {
		if texts[f] == "" || texts[f] == noIPv4 {
			continue
		}
		e := &l.Endpoints[f]
		e.Translated = translated[f]
		if e.PublicIP, err = netip.ParseAddr(texts[f]); err != nil || FamilyOf(e.PublicIP) != f || e.PublicIP.Zone() != "" || e.PublicIP.Is4In6() {
			return Lease{}, fmt.Errorf("%s: %q is no plain %s address", keys[f], texts[f], f)
		}
		if e.VNI, e.MAC, err = parseVTEP(l.Backend, data[f]); err != nil {
			return Lease{}, fmt.Errorf("%s: %w", PerFamily[string]{"BackendData", "BackendV6Data"}[f], err)
		}
	}
	return l, nil
}

// parseVTEP reads a VXLAN endpoint's data; other backends' is not ours to read.
func parseVTEP(backend string, data json.RawMessage) (uint32, MAC, error) {
	if backend != vxlan || len(data) == 0 || string(data) == "null" {
		return 0, MAC{}, nil
	}
	v, ok := scanVTEP(data)
	if !ok {
		v = vtepJSON{}
		if err := decodeOne(data, &v); err != nil {
			return 0, MAC{}, err
		}
	}
	if v.VtepMAC == "" {
		return 0, MAC{}, errors.New("VtepMAC is missing")
	}
	mac, err := ParseMAC(v.VtepMAC)
	if err != nil {
		return 0, MAC{}, fmt.Errorf("VtepMAC: %w", err)
	}
	return v.VNI, mac, nil
}
