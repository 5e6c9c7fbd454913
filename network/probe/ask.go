package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/network/neterror"
	"github.com/ripstop-net/ripstop/subnet"
)

// Question is what an [Asker] asks.
type Question struct {
	// From is the source address, one of this host's, or the zero Addr for the
	// kernel's choice. To is the peer's, at its UDP port.
	From, To netip.Addr
	Port     uint16
	// Layer is that by which To is reached. With Other the answer is to come by the
	// other one, and so from the peer's address there to this node's, as the peer
	// knows it. A filter on the way that keeps states may let it pass only if the
	// same Asker has asked by that layer before: its ports stay the same.
	Layer Layer
	Other bool
	// Size is that of the question and AnswerSize that of its answer, which is not
	// to be larger: of the whole IP packet, in bytes. 0 takes the least.
	Size, AnswerSize int
	// DontFragment forbids everybody to split question and answer.
	DontFragment bool
	// MaySplit lets the question be split all the same, for one that is as large as its
	// answer is to be and whose own way is not in question.
	MaySplit bool
}

// Answer is a peer's.
type Answer struct {
	// RTT is the time from the question to the answer.
	RTT time.Duration
	// Layer is that by which the answer was sent, From where from and To at which of
	// this host's addresses it came.
	Layer Layer
	From  netip.AddrPort
	To    netip.Addr
	// Size is that of the answer. It is less than what was asked for where the peer's
	// own interface does not take that much in one packet. Arrived is what the peer
	// got of the question. Both are those of whole IP packets, in bytes.
	Size, Arrived int
	// Trouble is what is wrong at the peer.
	Trouble Trouble
}

// NetworkError is what the network says in a peer's place.
type NetworkError = neterror.Error

// ErrClosed is wrapped where an Asker was closed before the answer came.
var ErrClosed = errors.New("asker is closed")

// Asker asks peers, any number at once. It has one socket for each family, on all of
// the host's addresses.
type Asker struct {
	sockets subnet.PerFamily[*socket]
	readers sync.WaitGroup
	closed  chan struct{}
	close   sync.Once

	mu      sync.Mutex
	waiting map[uint64]*waiter // By their nonces.

	draining sync.Mutex // Held by who reads the queue of errors; taken before mu.
	local    map[netip.Addr]NetworkError
}

// waiter is a question without an answer yet.
type waiter struct {
	to       netip.AddrPort
	sent     time.Time
	answered chan result // Has room for one.
}

type result struct {
	answer Answer
	err    error
}

// OpenAsker opens an asker for some families. Close ends it.
func OpenAsker(ctx context.Context, families ...subnet.Family) (*Asker, error) {
	a := &Asker{closed: make(chan struct{}), waiting: map[uint64]*waiter{}, local: map[netip.Addr]NetworkError{}}
	for _, f := range families {
		s, err := open(ctx, f, 0, func(fd int) error { return unix.SetsockoptInt(fd, levels[f], optErrors[f], 1) })
		if err != nil {
			return nil, errors.Join(err, a.Close())
		}
		a.sockets[f] = s
		a.readers.Go(func() { a.listen(s) })
	}
	return a, nil
}

// Close ends all questions. It may be called more than once.
func (a *Asker) Close() error {
	var err error
	a.close.Do(func() {
		close(a.closed)
		for _, s := range a.sockets {
			if s != nil {
				err = errors.Join(err, s.close())
			}
		}
	})
	a.readers.Wait()
	return err
}

// Ask sends one question and waits for its answer until ctx ends, whose error it
// returns then. What the network says instead is a [NetworkError].
func (a *Asker) Ask(ctx context.Context, q Question) (Answer, error) {
	got, err := a.ask(ctx, q)
	if err != nil {
		return Answer{}, fmt.Errorf("ask %s over the %s: %w", q.To, q.Layer, err)
	}
	return got, nil
}

func (a *Asker) ask(ctx context.Context, q Question) (Answer, error) {
	f := subnet.FamilyOf(q.To)
	s := a.sockets[f]
	if s == nil {
		return Answer{}, fmt.Errorf("asker has no %s", f)
	}
	size, err := payload(f, q.Size)
	if err != nil {
		return Answer{}, err
	}
	want, err := payload(f, q.AnswerSize)
	if err != nil {
		return Answer{}, err
	}
	if want > size {
		return Answer{}, fmt.Errorf("an answer of %d bytes to a question of %d", q.AnswerSize, q.Size)
	}
	p := packet{kind: request, layer: q.Layer, other: q.Other, whole: q.DontFragment, size: want}
	w := &waiter{to: netip.AddrPortFrom(q.To, q.Port), sent: time.Now(), answered: make(chan result, 1)}
	p.nonce = a.wait(w)
	defer a.forget(p.nonce)
	b := make([]byte, size)
	p.put(b)
	if err := a.send(s, b, q, w.to); err != nil {
		return Answer{}, err
	}
	select {
	case r := <-w.answered:
		return r.answer, r.err
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	case <-a.closed:
		return Answer{}, ErrClosed
	}
}

// sendTries is how often a question is tried before an errno is taken for its own.
const sendTries = 5

// send sends a question. The kernel tells who sends next of an error that came for
// an earlier question (sock_alloc_send_pskb). Only one that comes again and again is
// this one's.
func (a *Asker) send(s *socket, b []byte, q Question, to netip.AddrPort) error {
	for tries := 1; ; tries++ {
		err := s.send(b, q.From, to, q.DontFragment && !q.MaySplit)
		if err == nil {
			return nil
		}
		a.drain(s)
		var errno unix.Errno
		switch {
		case errors.Is(err, net.ErrClosed):
			return ErrClosed
		case !errors.As(err, &errno):
			return err
		case tries == sendTries:
			return a.refused(errno, q.To)
		}
	}
}

// wait makes a waiter known, by a nonce that nobody can guess.
func (a *Asker) wait(w *waiter) (nonce uint64) {
	var b [8]byte
	_, _ = rand.Read(b[:]) // It never returns an error.
	nonce = binary.BigEndian.Uint64(b[:])
	a.mu.Lock()
	defer a.mu.Unlock()
	a.waiting[nonce] = w
	return nonce
}

func (a *Asker) forget(nonce uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.waiting, nonce)
}

func (a *Asker) waiter(nonce uint64) *waiter {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.waiting[nonce]
}

// tell gives a waiter its answer, if it has none yet.
func (w *waiter) tell(r result) {
	select {
	case w.answered <- r:
	default:
	}
}

// listen takes in answers until the socket is closed.
func (a *Asker) listen(s *socket) {
	r := newReader()
	for {
		d, err := s.read(r)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // Somebody's: the queue of errors says whose.
			a.drain(s)
			continue
		}
		p, err := parse(d.b, len(d.b))
		if err != nil || p.kind != answer {
			continue
		}
		if w := a.waiter(p.nonce); w != nil {
			w.tell(result{answer: Answer{
				RTT: time.Since(w.sent), Layer: p.layer, From: d.from, To: d.to,
				Size: len(d.b) + overhead[s.family], Arrived: p.size + overhead[s.family], Trouble: p.trouble,
			}})
		}
	}
}
