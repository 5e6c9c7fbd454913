package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/firewall"
	"github.com/ripstop-net/ripstop/network/lab"
	"github.com/ripstop-net/ripstop/subnet"
)

// Throughput is that of one TCP connection: from pod to pod over the tunnel, over one
// like it that no rule of the firewall's is about, and by a direct route; and from host
// to host. The n-th values of all are of one round.
type Throughput struct{ Tunnel, Unruled, Direct, Underlay Rate }

// Rate is what a gigabyte (10^9 bytes) takes. CPU is the processor time of both ends,
// with what the kernel does on their behalf: on hosts of one machine that is all of
// the way.
type Rate struct{ Took, CPU Sample }

// ratios tell for each round what part the second is of the first, sorted. A machine
// is another from one second to the next, less so within a round.
func ratios(of, to Sample) []float64 {
	var out []float64
	for i := range min(len(of), len(to)) {
		out = append(out, float64(of[i])/float64(to[i]))
	}
	slices.Sort(out)
	return out
}

// directConfig is the network config of the lab whose hosts route directly.
const directConfig = `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": true}}`

const (
	// slice is what is sent over one way before it is the next one's turn, in
	// bytes: some ten milliseconds. Of it the first warmUp are not timed.
	slice  = 16 << 20
	warmUp = slice / 8
	// sliceLimit is when a way is called stuck.
	sliceLimit = 30 * time.Second
	// chunk is what one write or read has at most, in bytes.
	chunk = 256 << 10
)

// measureThroughput has labs of two hosts up at once, alike but for the way between
// their pods, and takes turns among the ways, so that what else the machine
// does meets all of them.
func measureThroughput(ctx context.Context, o Options, dir string) (t Throughput, err error) {
	rounds := 1000
	if o.Short {
		rounds = 3
	}
	var labs [3]*lab.Lab
	for i, config := range []string{lab.UsualConfig(lab.IPv4), directConfig, lab.UsualConfig(lab.IPv4)} {
		labs[i], err = startTalking(ctx, lab.Options{
			Nodes: 2, Mode: lab.IPv4, Dir: filepath.Join(dir, fmt.Sprintf("throughput%d", i)), Daemon: o.Daemon, Config: config,
		})
		if err != nil {
			return t, err
		}
		defer func() { err = errors.Join(err, labs[i].Close()) }()
	}
	if err := unrule(ctx, labs[2]); err != nil {
		return t, err
	}
	hosts := labs[0].Hosts
	var ways []*way
	for _, w := range []*way{
		podsOf(labs[0], &t.Tunnel), podsOf(labs[1], &t.Direct), podsOf(labs[2], &t.Unruled),
		{from: hosts[0].Namespace, to: hosts[1].Namespace, at: hosts[1].Address(subnet.V4), rate: &t.Underlay},
	} {
		if err := w.connect(ctx); err != nil {
			return t, err
		}
		defer func() { err = errors.Join(err, w.close()) }()
		ways = append(ways, w)
	}
	for range rounds {
		for _, w := range ways {
			if err := w.turn(ctx); err != nil {
				return t, err
			}
		}
		slices.Reverse(ways) // So that none always comes after the same other.
	}
	return t, nil
}

// startTalking starts a lab and waits until its pods talk: a daemon that is ended before
// it has heard of its peer leaves no way to it.
func startTalking(ctx context.Context, o lab.Options) (*lab.Lab, error) {
	l, err := lab.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	m, err := l.Matrix(ctx, sliceLimit)
	if err = errors.Join(err, m.Err()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// unrule ends a lab's daemons, and takes away what their firewalls have written.
func unrule(ctx context.Context, l *lab.Lab) error {
	for _, h := range l.Hosts {
		if _, _, err := h.StopDaemon(ctx, unix.SIGTERM); err != nil {
			return err
		}
		f, err := openFirewall(h.Namespace, firewall.Options{})
		if err != nil {
			return err
		}
		if err := errors.Join(f.Remove(ctx), f.Close()); err != nil {
			return fmt.Errorf("%s: take the firewall's rules away: %w", h.Name, err)
		}
	}
	return nil
}

// openFirewall opens the firewall of a namespace.
func openFirewall(ns *lab.Namespace, o firewall.Options) (*firewall.Firewall, error) {
	file, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", ns.FD()))
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", ns.Name(), err)
	}
	f, err := firewall.OpenAt(file, o, zap.NewNop())
	return f, errors.Join(err, file.Close())
}

// way is from one namespace to an address in another, and a connection.
type way struct {
	from, to *lab.Namespace
	at       netip.Addr
	rate     *Rate

	sender, receiver net.Conn
}

// podsOf is the way between the pods of a lab's two hosts.
func podsOf(l *lab.Lab, rate *Rate) *way {
	from, to := l.Hosts[0].Pods[0], l.Hosts[1].Pods[0]
	return &way{from: from.Namespace, to: to.Namespace, at: to.Addresses[subnet.V4], rate: rate}
}

// connect opens the connection.
func (w *way) connect(ctx context.Context) error {
	var listener net.Listener
	err := w.to.Do(func() (err error) {
		var c net.ListenConfig
		c.SetMultipathTCP(false)
		listener, err = c.Listen(ctx, "tcp", netip.AddrPortFrom(w.at, 0).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("listen at %s: %w", w.at, err)
	}
	defer func() { _ = listener.Close() }()
	err = w.from.Do(func() (err error) {
		w.sender, err = (&net.Dialer{Timeout: sliceLimit}).DialContext(ctx, "tcp", listener.Addr().String())
		return err
	})
	if err != nil {
		return err
	}
	if w.receiver, err = listener.Accept(); err != nil { // It is there already.
		return errors.Join(fmt.Errorf("accept at %s: %w", w.at, err), w.sender.Close())
	}
	return nil
}

func (w *way) close() error { return errors.Join(w.sender.Close(), w.receiver.Close()) }

// turn sends a slice and notes what a gigabyte takes at that rate: the time is the
// receiver's.
func (w *way) turn(ctx context.Context) error {
	end := time.Now().Add(sliceLimit)
	for _, c := range []net.Conn{w.sender, w.receiver} {
		if err := c.SetDeadline(end); err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	}
	before, err := processorTime()
	if err != nil {
		return err
	}
	var g errgroup.Group
	g.Go(func() error {
		buffer := make([]byte, chunk)
		for range slice / chunk {
			if _, err := w.sender.Write(buffer); err != nil {
				return err
			}
		}
		return nil
	})
	var took time.Duration
	g.Go(func() error {
		buffer := make([]byte, chunk)
		read := func(n int) error {
			for got := 0; got < n; {
				m, err := w.receiver.Read(buffer[:min(chunk, n-got)])
				if err != nil && !(errors.Is(err, io.EOF) && got+m == n) {
					return err
				}
				got += m
			}
			return nil
		}
		if err := read(warmUp); err != nil {
			return err
		}
		began := time.Now()
		err := read(slice - warmUp)
		took = time.Since(began)
		return err
	})
	if err := g.Wait(); err != nil {
		return errors.Join(context.Cause(ctx), fmt.Errorf("send to %s: %w", w.at, err))
	}
	after, err := processorTime()
	if err != nil {
		return err
	}
	gigabyte := func(d time.Duration, bytes float64) time.Duration { return time.Duration(float64(d) * 1e9 / bytes) }
	w.rate.Took = append(w.rate.Took, gigabyte(took, slice-warmUp))
	w.rate.CPU = append(w.rate.CPU, gigabyte(after-before, slice))
	return nil
}

// processorTime is what this process has had.
func processorTime() (time.Duration, error) {
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		return 0, fmt.Errorf("read the processor time: %w", err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()), nil
}
