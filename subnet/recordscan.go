package subnet

import (
	"bytes"
	"math"
	"strconv"
)

// Tens of thousands of records are read at a start, nearly all of them in the
// one form that flannel and [Lease.Record] write. That form is read without
// encoding/json, which takes ten times as long; whatever differs by one byte is
// left to it.

// scanner reads a text from its beginning. Once something was not as expected
// failed is set, and what it returns means nothing.
type scanner struct {
	rest   []byte
	failed bool
}

// next tells whether the text goes on so, and passes over it.
func (s *scanner) next(text string) bool {
	if len(s.rest) < len(text) || string(s.rest[:len(text)]) != text {
		return false
	}
	s.rest = s.rest[len(text):]
	return true
}

func (s *scanner) must(text string) { s.failed = s.failed || !s.next(text) }

// text reads a string to its closing quote. One with an escape or a character
// outside of printable ASCII is not as expected.
func (s *scanner) text() []byte {
	end := bytes.IndexByte(s.rest, '"')
	if end < 0 {
		s.failed = true
		return nil
	}
	out := s.rest[:end]
	for _, c := range out {
		if c < ' ' || c > '~' || c == '\\' {
			s.failed = true
		}
	}
	s.rest = s.rest[end+1:]
	return out
}

// number reads a number of at most 32 bits.
func (s *scanner) number() uint32 {
	end := 0
	for end < len(s.rest) && '0' <= s.rest[end] && s.rest[end] <= '9' {
		end++
	}
	n, err := strconv.ParseUint(string(s.rest[:end]), 10, 32)
	s.failed = s.failed || err != nil || end > 1 && s.rest[0] == '0'
	s.rest = s.rest[end:]
	return uint32(n)
}

// scanRecord reads a value in the usual form. Its raw parts are parts of the value.
func scanRecord(value []byte) (rec recordJSON, ok bool) {
	s := scanner{rest: value}
	s.must(`{"PublicIP":"`)
	rec.PublicIP = string(s.text())
	s.must(`,"PublicIPv6":`)
	if !s.next("null") {
		s.must(`"`)
		text := string(s.text())
		rec.PublicIPv6 = &text
	}
	if s.next(`,"BackendType":"`) {
		if text := s.text(); string(text) == vxlan {
			rec.BackendType = vxlan // Else each lease would have a copy of its own.
		} else {
			rec.BackendType = string(text)
		}
	}
	if s.next(`,"BackendData":`) {
		rec.BackendData = s.vtep()
	}
	if s.next(`,"BackendV6Data":`) {
		rec.BackendV6Data = s.vtep()
	}
	if s.next(`,"Node":"`) {
		rec.Node = string(s.text())
	}
	if s.next(`,"MTU":`) {
		rec.MTU = int(s.number())
	}
	rec.Translated = s.next(`,"Translated":true`)
	rec.TranslatedV6 = s.next(`,"TranslatedV6":true`)
	if s.next(`,"EchoPort":`) {
		port := s.number()
		rec.EchoPort, s.failed = uint16(port), s.failed || port > math.MaxUint16
	}
	s.must("}")
	return rec, !s.failed && len(s.rest) == 0 && len(value) <= maxValue
}

// vtep passes over a VXLAN endpoint's data and returns it.
func (s *scanner) vtep() []byte {
	all := s.rest
	s.endpoint()
	return all[:len(all)-len(s.rest)]
}

func (s *scanner) endpoint() (vni uint32, mac []byte) {
	s.must(`{"VNI":`)
	vni = s.number()
	s.must(`,"VtepMAC":"`)
	mac = s.text()
	s.must("}")
	return vni, mac
}

// scanVTEP reads a VXLAN endpoint's data in the usual form.
func scanVTEP(data []byte) (v vtepJSON, ok bool) {
	s := scanner{rest: data}
	vni, mac := s.endpoint()
	return vtepJSON{VNI: vni, VtepMAC: string(mac)}, !s.failed && len(s.rest) == 0
}

// scanMAC reads a MAC of the form 02:00:5e:10:00:01.
func scanMAC(s string) (m MAC, ok bool) {
	if len(s) != 3*len(m)-1 {
		return MAC{}, false
	}
	for i := range m {
		high, low := hexDigit(s[3*i]), hexDigit(s[3*i+1])
		if high > 15 || low > 15 || i > 0 && s[3*i-1] != ':' {
			return MAC{}, false
		}
		m[i] = high<<4 | low
	}
	return m, true
}

// hexDigit is the value of a digit, more than 15 for what is none.
func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 16
}
