package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/bpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/sockfilter"
	"github.com/ripstop-net/ripstop/subnet"
)

// DefaultPort is the UDP port of the echo unless another is chosen: the one after
// the tunnel's.
const DefaultPort = 8473

// Here is what an echo goes by. It is asked for each request, by any goroutine.
type Here interface {
	// Own is the address of this node's own on a layer, as it is bound; the zero
	// Addr where there is none.
	Own(Layer, subnet.Family) netip.Addr
	// Peer finds the peer that has an address on a layer.
	Peer(Layer, netip.Addr) (subnet.Lease, bool)
	// Trouble is what is wrong here.
	Trouble() Trouble
}

// Echo answers peers, and nobody else: who asks from a peer's address of the layer
// on which this node was asked. The answer goes back the same way, or by the other
// layer to that same peer, so that nobody can turn it on a third, and it never has
// more bytes than arrived.
type Echo struct {
	port     uint16
	families []subnet.Family
	here     Here
	log      *zap.Logger
	open     func(context.Context, subnet.Family) (*socket, error)

	answered, ignored atomic.Uint64
	mu                sync.Mutex
	problem           subnet.PerFamily[string]
}

// NewEcho makes an echo for a port. Nothing is open before Run.
func NewEcho(port uint16, families []subnet.Family, here Here, log *zap.Logger) *Echo {
	return &Echo{port: port, families: families, here: here, log: log, open: func(ctx context.Context, f subnet.Family) (*socket, error) {
		return openEcho(ctx, f, port)
	}}
}

// EchoReport is what an echo tells of itself.
type EchoReport struct {
	Port uint16
	// Answered and Ignored count what was read since the start: requests that were
	// answered, and others.
	Answered, Ignored uint64
	// Problem says why the port cannot be had in a family.
	Problem subnet.PerFamily[string]
}

// Report tells how the echo is.
func (e *Echo) Report() EchoReport {
	e.mu.Lock()
	defer e.mu.Unlock()
	return EchoReport{Port: e.port, Answered: e.answered.Load(), Ignored: e.ignored.Load(), Problem: e.problem}
}

// openAgain is the pause after the port could not be had.
const openAgain = 10 * time.Second

// Run answers until ctx ends, which returns nil. A port that is somebody else's is
// said once and tried on.
func (e *Echo) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, f := range e.families {
		group.Go(func() error {
			for ctx.Err() == nil {
				e.note(f, e.serve(ctx, f))
				wait(ctx, openAgain)
			}
			return nil
		})
	}
	return group.Wait()
}

// note keeps and says what is wrong with the port, nil for nothing.
func (e *Echo) note(f subnet.Family, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	e.mu.Lock()
	was := e.problem[f]
	e.problem[f] = text
	e.mu.Unlock()
	switch {
	case was == text:
	case text == "":
		e.log.Info("peers are answered", zap.Stringer("family", f), zap.Uint16("port", e.port))
	default:
		e.log.Warn("peers that ask whether this node can be reached are not answered, trying on: find out what has the port with 'ss -ulpn', or choose another with --echo-port",
			zap.Stringer("family", f), zap.Error(err))
	}
}

// receiveBuffer is what the kernel keeps of requests that were not read yet, in
// bytes: dozens of the smallest, which it counts as some 800 each.
const receiveBuffer = 128 << 10

func openEcho(ctx context.Context, f subnet.Family, port uint16) (*socket, error) {
	return open(ctx, f, port, func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer/2), onlyRequests(fd)) // The kernel doubles it.
	})
}

// serve answers in one family until ctx ends or the socket fails.
func (e *Echo) serve(ctx context.Context, f subnet.Family) error {
	s, err := e.open(ctx, f)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = s.close() })()
	defer func() { _ = s.close() }()
	e.note(f, nil)
	var budget budget
	answers := make([]byte, largest)
	for r := newReader(); ; {
		if pause := budget.take(time.Now()); pause > 0 {
			wait(ctx, pause)
		}
		d, err := s.read(r)
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		case err != nil: // Of an answer that went before: none is waited for.
			continue
		}
		to, a, ok := e.answer(f, d)
		if !ok {
			e.ignored.Add(1)
			continue
		}
		a.packet.put(answers)
		b := answers[:a.size]
		if err := s.send(b, a.from, to, a.packet.whole); errors.Is(err, unix.EMSGSIZE) {
			_ = s.send(b[:MinPayload], a.from, to, a.packet.whole) // That tells the peer why.
		}
		clear(answers[:header])
		e.answered.Add(1)
	}
}

// reply is an answer and whence it goes; size is its payload in bytes.
type reply struct {
	packet packet
	from   netip.Addr
	size   int
}

// answer decides on a datagram.
func (e *Echo) answer(f subnet.Family, d datagram) (to netip.AddrPort, out reply, ok bool) {
	p, err := parse(d.b, len(d.b))
	if err != nil || p.kind != request || d.to != e.here.Own(p.layer, f) || d.from.Port() == 0 || d.from.Port() == e.port {
		return to, out, false // Two echoes that answer each other would go on for ever.
	}
	peer, ok := e.here.Peer(p.layer, d.from.Addr())
	if !ok {
		return to, out, false
	}
	out.packet, out.size = p.reply(len(d.b), e.here.Trouble())
	out.from, to = d.to, d.from
	if p.other {
		out.from = e.here.Own(out.packet.layer, f)
		to = netip.AddrPortFrom(out.packet.layer.Address(f, peer), d.from.Port())
	}
	return to, out, out.from.IsValid() && to.Addr().IsValid()
}

// onlyRequests lets the kernel drop what is no request of this version before it
// takes room in the socket's buffer.
func onlyRequests(fd int) error {
	return sockfilter.Attach(fd, requestFilter())
}

// requestFilter sees a datagram from UDP's header on (udp_queue_rcv_one_skb).
func requestFilter() []bpf.Instruction {
	const udp = 8
	return []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: udp + MinPayload, SkipTrue: 5},
		bpf.LoadAbsolute{Off: udp, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: magic, SkipTrue: 3},
		bpf.LoadAbsolute{Off: udp + offVersion, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: version<<8 | uint32(request), SkipTrue: 1},
		bpf.RetConstant{Val: 0xffffffff},
		bpf.RetConstant{Val: 0},
	}
}

// wait waits, for ctx at most.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
