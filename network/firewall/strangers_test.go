package firewall

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// sendVXLAN sends packets of our VNI over the loopback from an address of it.
func sendVXLAN(t *testing.T, ns *os.File, from netip.Addr, packets int) {
	t.Helper()
	to := subnet.PerFamily[string]{"127.0.0.1", "::1"}[subnet.FamilyOf(from)]
	err := inNamespace(ns, func() error {
		conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), 8472)))
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		for range packets {
			packet := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, 1<<8)
			if _, err := conn.Write(append(packet, make([]byte, 60)...)); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestStrangersAreNamed: who sends what the guard drops is known by address, the
// busiest first, also after so many that there is no room for more; and nothing of
// it is announced.
func TestStrangersAreNamed(t *testing.T) {
	f, ns := opened(t, everything, networks["dual"])
	f.Update(nil, []netip.Addr{netip.MustParseAddr("127.0.0.2")})
	running(t, f)
	eventually(t, "the events of the start are over", func() bool {
		before := f.events.Load()
		time.Sleep(50 * time.Millisecond)
		return f.events.Load() == before
	})
	before := f.events.Load()
	sendVXLAN(t, ns, netip.MustParseAddr("127.0.0.2"), 5) // A peer.
	sendVXLAN(t, ns, netip.MustParseAddr("127.0.0.3"), 4)
	sendVXLAN(t, ns, netip.MustParseAddr("127.0.0.4"), 9)
	sendVXLAN(t, ns, netip.MustParseAddr("::1"), 2)
	s := f.Status(t.Context())
	if want := []Stranger{{netip.MustParseAddr("127.0.0.4"), 9}, {netip.MustParseAddr("127.0.0.3"), 4}, {netip.MustParseAddr("::1"), 2}}; len(s.Strangers) != 3 || s.Strangers[0] != want[0] || s.Strangers[1] != want[1] || s.Strangers[2] != want[2] {
		t.Errorf("strangers %v, want %v", s.Strangers, want)
	}
	for i := range 2 * mostStrangers {
		sendVXLAN(t, ns, netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), 1)
	}
	s = f.Status(t.Context())
	if s.Dropped != 15+2*mostStrangers {
		t.Errorf("%d packets dropped, want %d: those for whom there is no room are dropped too", s.Dropped, 15+2*mostStrangers)
	}
	if len(s.Strangers) != mostNamed || s.Strangers[0].Packets != 9 {
		t.Errorf("strangers %v", s.Strangers)
	}
	if n := f.events.Load() - before; n != 0 {
		t.Errorf("%d announcements", n)
	}
	if r := f.Report(t.Context()); len(r.Strangers) != mostNamed || r.Strangers[0].Address != netip.MustParseAddr("127.0.0.4") {
		t.Errorf("report %v", r.Strangers)
	}
	if f.Status(t.Context()).Heals != 0 {
		t.Error("our own table was taken for changed")
	}
}

// TestGuardWithoutStrangers: a kernel that cannot note who sends has the guard all
// the same. Here the refusal is played; the table without is of the real kernel.
func TestGuardWithoutStrangers(t *testing.T) {
	f, ns := opened(t, everything, networks["dual"])
	refused := 0
	f.write = func(c *conn, r Ruleset, peers []netip.Addr, dropped nftables.CounterObj) error {
		for _, s := range r.Sets {
			if s.Lasts != 0 {
				refused++
				return unix.ENOENT // As nf_tables_newrule says where dynset is missing.
			}
		}
		return c.writeOwn(r, peers, dropped)
	}
	f.Update(nil, addrs(0, 3))
	running(t, f)
	if s := f.Status(t.Context()); s.Err != nil || s.Writes != 1 || refused != 1 {
		t.Errorf("after %d refusals: %+v", refused, s)
	}
	sendVXLAN(t, ns, netip.MustParseAddr("127.0.0.3"), 4)
	if s := f.Status(t.Context()); s.Dropped != 4 || len(s.Strangers) != 0 {
		t.Errorf("%+v", s)
	}
	outside(t, ns).nft.FlushTable(ownTable())
	f.heard.all()
	f.passNow(t)
	if refused != 1 {
		t.Errorf("it was tried again: %d refusals", refused)
	}
}
