package subnet

import (
	"fmt"
	"testing"
)

func TestUnreadIsWhatNothingWasReadOf(t *testing.T) {
	m := newTestMirror(t, "dual")
	want := func(want string) {
		t.Helper()
		if got := fmt.Sprint(m.Unread()); got != want {
			t.Errorf("unread %s, want %s", got, want)
		}
	}
	junk := func(keys ...string) (out []BadRecord) {
		for _, key := range keys {
			out = append(out, BadRecord{key, "junk"})
		}
		return out
	}
	want("[]")
	c := whole(peerLease(2))
	c.Bad = junk("10.5.4.0-24", "10.5.3.0-24&fd00:10:5:3::-64", "10.5.3.1-24", "10.6.3.0-24", "junk")
	m.Apply(noon, c)
	want("[10.5.3.0/24,fd00:10:5:3::/64 10.5.4.0/24]")
	m.Apply(noon, Change{Revision: 11, Bad: junk("10.5.2.0-24")}) // Its lease is known.
	want("[10.5.3.0/24,fd00:10:5:3::/64 10.5.4.0/24]")
	m.Apply(noon, Change{Revision: 12, Leases: []Lease{peerLease(4)}})
	want("[10.5.3.0/24,fd00:10:5:3::/64]")
	m.Apply(noon, Change{Revision: 13, Gone: []string{"10.5.3.0-24&fd00:10:5:3::-64", "10.5.2.0-24"}})
	want("[]")
	m.Apply(noon, Change{Revision: 14, Bad: junk("10.5.2.0-24")})
	want("[10.5.2.0/24]")
}
