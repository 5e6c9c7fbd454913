package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/ping"
	"github.com/ripstop-net/ripstop/subnet"
)

// trafficLimit bounds one exchange between two pods.
const trafficLimit = 10 * time.Second

// serveTCP answers on one connection with all that it read, and returns who called.
func serveTCP(t *testing.T, p *Pod, f subnet.Family) (at netip.AddrPort, caller <-chan netip.AddrPort) {
	t.Helper()
	var listener *net.TCPListener
	err := p.Namespace.Do(func() (err error) {
		listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.Addresses[f], 0)))
		return err
	})
	if err != nil {
		t.Fatalf("listen in %s: %v", p.Name, err)
	}
	who := make(chan netip.AddrPort, 1)
	go func() {
		defer close(who)
		defer listener.Close()
		_ = listener.SetDeadline(time.Now().Add(trafficLimit))
		c, err := listener.AcceptTCP()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(trafficLimit))
		if _, err := io.Copy(c, c); err == nil {
			who <- c.RemoteAddr().(*net.TCPAddr).AddrPort()
		}
	}()
	return listener.Addr().(*net.TCPAddr).AddrPort(), who
}

// exchangeTCP sends a megabyte from one pod to another and back.
func exchangeTCP(t *testing.T, from, to *Pod, f subnet.Family) {
	t.Helper()
	at, caller := serveTCP(t, to, f)
	var conn *net.TCPConn
	err := from.Namespace.Do(func() error {
		d := net.Dialer{Timeout: trafficLimit}
		c, err := d.Dial("tcp", at.String())
		if err == nil {
			conn = c.(*net.TCPConn)
		}
		return err
	})
	if err != nil {
		t.Fatalf("TCP from %s to %s: %v", from.Name, to.Name, err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(trafficLimit))
	sent := bytes.Repeat([]byte("ripstop!"), 1<<17)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- errors.Join(err, conn.CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	if err := errors.Join(err, <-wrote); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%s TCP from %s to %s: %d of %d bytes came back: %v", f, from.Name, to.Name, len(got), len(sent), err)
	}
	if who := <-caller; who.Addr() != from.Addresses[f] {
		t.Errorf("%s saw a TCP connection of %s from %s, which is not its own address %s", to.Name, from.Name, who, from.Addresses[f])
	}
}

// openUDP opens a UDP socket in a pod that never splits datagrams.
func openUDP(t *testing.T, p *Pod, f subnet.Family) *net.UDPConn {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return ping.DontFragment(c, f == subnet.V4, true) }}
	var conn *net.UDPConn
	err := p.Namespace.Do(func() error {
		c, err := config.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(p.Addresses[f], 0).String())
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		t.Fatalf("open a UDP socket in %s: %v", p.Name, err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(trafficLimit))
	return conn
}

// udpOverhead is what IP and UDP headers take of a packet, in bytes.
var udpOverhead = subnet.PerFamily[int]{subnet.V4: 20 + 8, subnet.V6: 40 + 8}

// exchangeUDP sends datagrams that must not be split from one pod to another
// and back: 1400 bytes as a whole packet, and as many as the MTU takes. One
// byte more must fail where it is sent.
func exchangeUDP(t *testing.T, from, to *Pod, f subnet.Family) {
	t.Helper()
	near, far := openUDP(t, from, f), openUDP(t, to, f)
	farAddr := far.LocalAddr().(*net.UDPAddr).AddrPort()
	buffer := make([]byte, 1<<16)
	for _, size := range []int{1400 - udpOverhead[f], from.MTU - udpOverhead[f]} {
		what := fmt.Sprintf("%s UDP of %d bytes with DF from %s to %s", f, size, from.Name, to.Name)
		sent := bytes.Repeat([]byte{byte(size)}, size)
		if _, err := near.WriteToUDPAddrPort(sent, farAddr); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		n, caller, err := far.ReadFromUDPAddrPort(buffer)
		if err != nil || !bytes.Equal(buffer[:n], sent) {
			t.Fatalf("%s: %d bytes arrived: %v", what, n, err)
		}
		if caller.Addr().Unmap() != from.Addresses[f] {
			t.Errorf("%s: arrived from %s, which is not the sender's address %s", what, caller, from.Addresses[f])
		}
		if _, err := far.WriteToUDPAddrPort(sent, caller); err != nil {
			t.Fatalf("%s: way back: %v", what, err)
		}
		if n, _, err = near.ReadFromUDPAddrPort(buffer); err != nil || n != size {
			t.Fatalf("%s: way back: %d bytes arrived: %v", what, n, err)
		}
	}
	_, err := near.WriteToUDPAddrPort(make([]byte, from.MTU-udpOverhead[f]+1), farAddr)
	if !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("%s UDP of one byte more than the MTU of %d: %v, want %v", f, from.MTU, err, unix.EMSGSIZE)
	}
}
