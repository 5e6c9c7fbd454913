package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// tunnel is one end of a tunnel of which the other is a bare UDP socket.
type tunnel struct {
	k *Kernel
	// locals are two addresses of the host's; all is what the kernel has for the
	// first of them.
	locals [2]netip.Addr
	all    *backend.State
	in     net.Conn       // Sends to a pod of the peer's.
	out    net.PacketConn // Takes what the tunnel makes of that.
	sent   uint64
}

func newTunnel(t *testing.T, v6 bool) *tunnel {
	t.Helper()
	ends := [2]*os.File{kerneltest.Namespace(t), kerneltest.Namespace(t)}
	addrs := [2][]string{{"192.0.2.1/24", "192.0.2.11/24"}, {"192.0.2.2/24"}}
	if v6 {
		addrs = [2][]string{{"2001:db8::1/64", "2001:db8::11/64"}, {"2001:db8::2/64"}}
	}
	kerneltest.Do(t, ends[0], func() error {
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: "under", MTU: 1500})
		veth.PeerName, veth.PeerNamespace = "under", netlink.NsFd(ends[1].Fd())
		return netlink.LinkAdd(veth)
	})
	for i, ns := range ends {
		kerneltest.Do(t, ns, func() error {
			l, err := netlink.LinkByName("under")
			if err != nil {
				return err
			}
			errs := []error{netlink.LinkSetUp(l)}
			for _, text := range addrs[i] {
				a, err := netlink.ParseAddr(text)
				if err != nil {
					return err
				}
				if v6 {
					a.Flags = unix.IFA_F_NODAD
				}
				errs = append(errs, netlink.AddrAdd(l, a))
			}
			return errors.Join(errs...)
		})
	}
	u := &tunnel{k: openAt(t, ends[0])}
	for i, text := range addrs[0] {
		u.locals[i] = netip.MustParsePrefix(text).Addr()
	}
	u.all = peers(10, v6)
	u.all.Put(backend.FDB{Dev: device(v6).Name, MAC: backend.MAC{2, 1}, Remote: netip.MustParsePrefix(addrs[1][0]).Addr()})
	reach(t, u.k, u.all)
	kerneltest.Do(t, ends[1], func() (err error) {
		u.out, err = net.ListenUDP("udp", &net.UDPAddr{Port: int(device(v6).Port)})
		return err
	})
	t.Cleanup(func() { _ = u.out.Close() })
	kerneltest.Do(t, ends[0], func() (err error) {
		u.in, err = net.Dial("udp", netip.AddrPortFrom(gatewayOf(peers(1, v6)).Next(), 9).String())
		return err
	})
	t.Cleanup(func() { _ = u.in.Close() })
	return u
}

// sentFrom sends packets until one comes out, and gives its outer source.
func (u *tunnel) sentFrom(t *testing.T) netip.Addr {
	t.Helper()
	for range 100 {
		if from, err := u.send(50 * time.Millisecond); err == nil {
			return from
		}
	}
	t.Fatal("nothing comes out of the tunnel")
	return netip.Addr{}
}

// send sends one packet and gives the outer source that it comes out with. Those
// before it are passed over, some of which wait for the peer's MAC.
func (u *tunnel) send(within time.Duration) (netip.Addr, error) {
	u.sent++
	payload := binary.BigEndian.AppendUint64(nil, u.sent)
	if _, err := u.in.Write(payload); err != nil {
		return netip.Addr{}, err
	}
	if err := u.out.SetReadDeadline(time.Now().Add(within)); err != nil {
		return netip.Addr{}, err
	}
	b := make([]byte, 2000)
	for {
		n, from, err := u.out.ReadFrom(b)
		if err != nil {
			return netip.Addr{}, err
		}
		if !bytes.HasSuffix(b[:n], payload) {
			continue
		}
		if vni := binary.BigEndian.Uint32(b[4:]) >> 8; vni != 1 { // RFC 7348, section 5.
			return netip.Addr{}, fmt.Errorf("packet of VNI %d", vni)
		}
		return from.(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
	}
}

// as is all with another local address.
func (u *tunnel) as(local netip.Addr) *backend.State {
	s := u.all.Clone()
	for e := range s.OfKind(backend.KindDevice) {
		d := e.(backend.Device)
		d.Local = local
		s.Put(d)
		break
	}
	return s
}

// TestChangedLocalIsSentFromAtOnce: an FDB entry would go on with the source address
// that packets by it had before.
func TestChangedLocalIsSentFromAtOnce(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		u := newTunnel(t, v6)
		for i := range 4 {
			local := u.locals[i%2]
			reach(t, u.k, u.as(local))
			if from := u.sentFrom(t); from != local {
				t.Errorf("packets have the source %s, the device has %s", from, local)
			}
		}
	}
}

// TestChangedLocalLosesNothing sends packets while the address changes to and fro,
// among more FDB entries than go into one batch.
func TestChangedLocalLosesNothing(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		u := newTunnel(t, v6)
		u.k.batchOps = 2
		u.sentFrom(t) // The peer's MAC is known from here on.
		stop, sources := make(chan struct{}), make(chan map[netip.Addr]int)
		go func() {
			n := map[netip.Addr]int{}
			defer func() { sources <- n }()
			for {
				select {
				case <-stop:
					return
				default:
				}
				from, _ := u.send(patience) // No address for a packet that was lost.
				n[from]++
			}
		}()
		for i := range 40 {
			reach(t, u.k, u.as(u.locals[i%2]))
		}
		close(stop)
		if n := <-sources; len(n) != 2 || n[netip.Addr{}] != 0 {
			t.Errorf("packets came from %v", n)
		}
	}
}

// TestRenewalCutShort: what a daemon that crashed amid a change of the address left
// behind is seen, and mended.
func TestRenewalCutShort(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		u := newTunnel(t, v6)
		if from := u.sentFrom(t); from != u.locals[0] {
			t.Fatalf("packets have the source %s", from)
		}
		l, err := u.k.ourLink(t.Context(), device(v6).Name)
		if err != nil {
			t.Fatal(err)
		}
		crash := errors.New("crash")
		want := u.as(u.locals[1])
		err = u.k.renewAround(t.Context(), l, func() error {
			u.sentFrom(t)
			d, _ := want.Device(l.name)
			return errors.Join(u.k.changeVXLAN(t.Context(), d, l.index), crash)
		})
		if !errors.Is(err, crash) {
			t.Fatal(err)
		}
		again := openAt(t, u.k.ns)
		if have, err := again.Dump(t.Context()); err != nil || have.Equal(want) {
			t.Fatalf("dump does not show it: %v", err)
		}
		reach(t, again, want)
		if from := u.sentFrom(t); from != u.locals[1] {
			t.Errorf("packets have the source %s", from)
		}
	}
}
