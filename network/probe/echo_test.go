package probe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/subnet"
)

// question is one of a host's to its peer.
func (h *host) question(l Layer, f subnet.Family) Question {
	return Question{From: h.Own(l, f), To: l.Address(f, h.peers[0]), Port: testPort, Layer: l}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestPeersAreAnswered(t *testing.T) {
	a, b := startHosts(t)
	asker := a.asker()
	b.trouble.Store(uint32(Condition(2) | InTheWay))
	for _, f := range subnet.Families {
		for _, l := range Layers {
			for _, other := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s over the %s, other way %t", f, l, other), func(t *testing.T) {
					q := a.question(l, f)
					q.Other, q.Size, q.AnswerSize = other, 1200, 700
					got, err := asker.Ask(within(t, 10*time.Second), q)
					if err != nil {
						t.Fatal(err)
					}
					by := l
					if other {
						by = l.Other()
					}
					if got.RTT <= 0 || got.RTT > 10*time.Second {
						t.Errorf("round trip took %s", got.RTT)
					}
					got.RTT = 0
					want := Answer{
						Layer: by, From: netip.AddrPortFrom(b.Own(by, f), testPort), To: a.Own(by, f), Size: 700, Arrived: 1200, Trouble: Condition(2) | InTheWay,
					}
					if got != want {
						t.Errorf("answer is\n%+v, want\n%+v", got, want)
					}
				})
			}
		}
	}
}

// TestNobodyElseIsAnswered asks from addresses that are no peer's on the layer, at
// addresses that are none of the node's on it.
func TestNobodyElseIsAnswered(t *testing.T) {
	a, b := startHosts(t)
	strangers := subnet.PerFamily[netip.Addr]{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77")}
	pods := subnet.PerFamily[netip.Addr]{netip.MustParseAddr("10.5.1.9"), netip.MustParseAddr("fd00:10:5:1::9")}
	a.netlink(func(n *netlink.Handle) error {
		eth, err := n.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, f := range subnet.Families {
			for _, p := range []netip.Prefix{netip.PrefixFrom(strangers[f], f.Bits()-8), netip.PrefixFrom(pods[f], f.Bits())} {
				if err := n.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NODAD}); err != nil {
					return err
				}
			}
		}
		return nil
	})
	kerneltest.Addressed(t, a.ns)
	from, self := a.asker(), b.asker()
	var all sync.WaitGroup
	ask := func(what string, asker *Asker, q Question) {
		all.Go(func() {
			if got, err := asker.Ask(within(t, 300*time.Millisecond), q); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%s: %+v, %v", what, got, err)
			}
		})
	}
	for _, f := range subnet.Families {
		for _, other := range []bool{false, true} {
			public, base := b.Own(Underlay, f), b.Own(Overlay, f)
			ask("a stranger on the underlay", from, Question{From: strangers[f], To: public, Port: testPort, Layer: Underlay, Other: other})
			ask("a stranger on the overlay", from, Question{From: strangers[f], To: base, Port: testPort, Layer: Overlay, Other: other})
			ask("a peer's pod", from, Question{From: pods[f], To: base, Port: testPort, Layer: Overlay, Other: other})
			ask("a peer's pod on the underlay", from, Question{From: pods[f], To: public, Port: testPort, Layer: Underlay, Other: other})
			ask("a peer by the wrong layer's address", from, Question{From: a.Own(Underlay, f), To: base, Port: testPort, Layer: Overlay, Other: other})
			ask("a peer who says the wrong layer", from, Question{From: a.Own(Underlay, f), To: public, Port: testPort, Layer: Overlay, Other: other})
			ask("the node itself", self, Question{From: public, To: public, Port: testPort, Layer: Underlay, Other: other})
			ask("the node itself by loopback", self, Question{To: subnet.PerFamily[netip.Addr]{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}[f], Port: testPort, Layer: Underlay, Other: other})
		}
	}
	all.Wait()
	b.alone.Store(true) // Nor is who was a peer.
	for _, f := range subnet.Families {
		ask("who was a peer", from, a.question(Underlay, f))
	}
	all.Wait()
}

// TestAnswersAreNoLongerThanQuestions asks with random sizes.
func TestAnswersAreNoLongerThanQuestions(t *testing.T) {
	a, _ := startHosts(t)
	asker := a.asker()
	random := rand.New(rand.NewPCG(5, 6))
	for _, f := range subnet.Families {
		for range 50 {
			least := overhead[f] + MinPayload
			q := a.question(Layer(random.IntN(2)), f)
			q.Size = least + random.IntN(9000)
			q.AnswerSize = least + random.IntN(q.Size-least+1)
			got, err := asker.Ask(within(t, 10*time.Second), q)
			if err != nil || got.Size != q.AnswerSize || got.Arrived != q.Size || got.Size > q.Size {
				t.Fatalf("%+v is answered by %+v, %v", q, got, err)
			}
		}
		q := a.question(Underlay, f)
		q.Size, q.AnswerSize = 200, 201
		if _, err := asker.Ask(within(t, time.Second), q); err == nil {
			t.Error("an answer longer than its question is asked for")
		}
	}
}

func TestPacketsThatMayNotBeSplit(t *testing.T) {
	a, b := startHosts(t)
	asker := a.asker()
	for _, f := range subnet.Families {
		q := a.question(Overlay, f)
		q.Size, q.AnswerSize, q.DontFragment = testLinkMTU, testLinkMTU, true
		if got, err := asker.Ask(within(t, 10*time.Second), q); err != nil || got.Size != testLinkMTU || got.Arrived != testLinkMTU {
			t.Errorf("%s: a packet of the link's MTU is answered by %+v, %v", f, got, err)
		}
		q.Size++
		var e *NetworkError
		if _, err := asker.Ask(within(t, 10*time.Second), q); !errors.As(err, &e) || e.Errno != unix.EMSGSIZE || e.MTU != testLinkMTU || e.By.IsValid() {
			t.Errorf("%s: a packet larger than the link's MTU: %v", f, err)
		}
		q.DontFragment = false
		if got, err := asker.Ask(within(t, 10*time.Second), q); err != nil || got.Arrived != testLinkMTU+1 {
			t.Errorf("%s: a packet that may be split is answered by %+v, %v", f, got, err)
		}
	}
	// The peer's own interface takes less: its answer is short, and says so. A veth
	// takes in what is four bytes larger than it sends (is_skb_forwardable).
	b.netlink(func(n *netlink.Handle) error {
		eth, err := n.LinkByName("eth0")
		if err != nil {
			return err
		}
		return n.LinkSetMTU(eth, testLinkMTU-4)
	})
	for _, f := range subnet.Families {
		q := a.question(Underlay, f)
		q.Size, q.AnswerSize, q.DontFragment = testLinkMTU, testLinkMTU, true
		if got, err := asker.Ask(within(t, 10*time.Second), q); err != nil || got.Size != overhead[f]+MinPayload || got.Arrived != testLinkMTU {
			t.Errorf("%s: with an answer that the peer cannot send: %+v, %v", f, got, err)
		}
	}
}

// TestTheNetworkAnswersInstead tells apart what the network says.
func TestTheNetworkAnswersInstead(t *testing.T) {
	a, _ := startHosts(t)
	asker := a.asker()
	nowhere := subnet.PerFamily[netip.Addr]{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:1::1")}
	absent := subnet.PerFamily[netip.Addr]{netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("2001:db8::c8")}
	for _, f := range subnet.Families {
		t.Run(f.String(), func(t *testing.T) {
			closed, far, gone := a.question(Overlay, f), a.question(Underlay, f), a.question(Underlay, f)
			closed.Port++
			far.To, gone.To = nowhere[f], absent[f]
			var all sync.WaitGroup
			for range 20 { // Each gets its own answer, and none another's.
				for _, c := range []struct {
					q     Question
					errno unix.Errno
					by    netip.Addr
				}{
					{closed, unix.ECONNREFUSED, closed.To}, {far, unix.ENETUNREACH, netip.Addr{}}, {gone, unix.EHOSTUNREACH, a.Own(Underlay, f)},
				} {
					all.Go(func() {
						var e *NetworkError
						_, err := asker.Ask(within(t, 20*time.Second), c.q)
						if !errors.As(err, &e) || e.Errno != c.errno || e.By != c.by || !errors.Is(err, c.errno) {
							t.Errorf("ask %s port %d: %v, want %v by %s", c.q.To, c.q.Port, err, c.errno, c.by)
						}
					})
				}
				all.Go(func() {
					if _, err := asker.Ask(within(t, 20*time.Second), a.question(Underlay, f)); err != nil {
						t.Errorf("a question among others that fail: %v", err)
					}
				})
			}
			all.Wait()
		})
	}
}

func TestAskEnds(t *testing.T) {
	a, _ := startHosts(t)
	var asker *Asker
	a.do(func() (err error) { asker, err = OpenAsker(t.Context(), subnet.V4); return err })
	if _, err := asker.Ask(t.Context(), a.question(Underlay, subnet.V6)); err == nil {
		t.Error("a family without a socket is asked")
	}
	q := a.question(Underlay, subnet.V4)
	q.From = netip.MustParseAddr("192.0.2.99")
	if _, err := asker.Ask(t.Context(), q); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("from an address that is not the host's: %v", err)
	}
	q = a.question(Underlay, subnet.V4)
	q.Layer = Overlay // Which is not answered.
	done := make(chan error)
	go func() {
		_, err := asker.Ask(t.Context(), q)
		done <- err
	}()
	for len(asker.pending()) == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := asker.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("a question whose asker is closed: %v", err)
	}
	if _, err := asker.Ask(t.Context(), q); !errors.Is(err, ErrClosed) {
		t.Errorf("a closed asker is asked: %v", err)
	}
	if n := len(asker.pending()); n != 0 {
		t.Errorf("%d questions are left", n)
	}
}

func (a *Asker) pending() []uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []uint64
	for nonce := range a.waiting {
		out = append(out, nonce)
	}
	return out
}
