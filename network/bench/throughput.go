package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// Throughput is what TCP takes for a gigabyte (10^9 bytes), over one connection: from
// pod to pod over the tunnel and by a direct route, and from host to host.
type Throughput struct{ Tunnel, Direct, Underlay Sample }

// directConfig is the network config of the lab whose hosts route directly.
const directConfig = `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}`

// measureThroughput has two labs of two hosts up at once, alike but for the way
// between their pods, and takes turns among the ways, so that what else the machine
// does meets all of them.
func measureThroughput(ctx context.Context, o Options, dir string) (t Throughput, err error) {
	rounds, each := 9, 2*time.Second
	if o.Short {
		rounds, each = 1, 200*time.Millisecond
	}
	var labs [2]*lab.Lab
	for i, config := range []string{lab.UsualConfig(lab.IPv4), directConfig} {
		l, err := lab.Start(ctx, lab.Options{
			Nodes: 2, Mode: lab.IPv4, Dir: filepath.Join(dir, fmt.Sprintf("throughput%d", i)), Daemon: o.Daemon, Config: config,
		})
		if err != nil {
			return t, err
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		labs[i] = l
	}
	for range rounds {
		for _, way := range []way{
			pods(labs[0], &t.Tunnel), pods(labs[1], &t.Direct),
			{labs[0].Hosts[0].Namespace, labs[0].Hosts[1].Namespace, labs[0].Hosts[1].Address(subnet.V4), &t.Underlay},
		} {
			took, err := gigabyte(ctx, way.from, way.to, way.at, each)
			if err != nil {
				return t, err
			}
			*way.took = append(*way.took, took)
		}
	}
	return t, nil
}

// way is from one namespace to an address in another.
type way struct {
	from, to *lab.Namespace
	at       netip.Addr
	took     *Sample
}

// pods is the way between the pods of a lab's two hosts.
func pods(l *lab.Lab, took *Sample) way {
	from, to := l.Hosts[0].Pods[0], l.Hosts[1].Pods[0]
	return way{from.Namespace, to.Namespace, to.Addresses[subnet.V4], took}
}

// chunk is what one write or read has at most, in bytes.
const chunk = 256 << 10

// gigabyte sends over one TCP connection for some time and returns what a gigabyte
// takes at that rate. The time is the receiver's, from its first bytes on.
func gigabyte(ctx context.Context, from, to *lab.Namespace, at netip.Addr, during time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, during+10*time.Second)
	defer cancel()
	var listener net.Listener
	err := to.Do(func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		listener, err = c.Listen(ctx, "tcp", netip.AddrPortFrom(at, 0).String())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("listen at %s: %w", at, err)
	}
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	defer func() { _ = listener.Close() }()
	var took time.Duration
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		took, err = receive(ctx, listener)
		return err
	})
	g.Go(func() error {
		var conn net.Conn
		err := from.Do(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", listener.Addr().String())
			return err
		})
		if err != nil {
			return err
		}
		return errors.Join(send(ctx, conn, during), conn.Close())
	})
	if err := g.Wait(); err != nil {
		return 0, fmt.Errorf("send to %s: %w", at, err)
	}
	return took, nil
}

func send(ctx context.Context, conn net.Conn, during time.Duration) error {
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	buffer := make([]byte, chunk)
	for began := time.Now(); time.Since(began) < during; {
		if _, err := conn.Write(buffer); err != nil {
			return err
		}
	}
	return nil
}

func receive(ctx context.Context, listener net.Listener) (time.Duration, error) {
	conn, err := listener.Accept()
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	buffer := make([]byte, chunk)
	if _, err := conn.Read(buffer); err != nil {
		return 0, err
	}
	began, got := time.Now(), 0
	for {
		n, err := conn.Read(buffer)
		got += n
		switch {
		case errors.Is(err, io.EOF) && got > 0:
			return time.Duration(1e9 / float64(got) * float64(time.Since(began))), nil
		case err != nil:
			return 0, err
		}
	}
}
