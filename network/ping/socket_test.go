package ping

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/network/neterror"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestOnceTellsWhy: an answer, none, no way there and an end of the ctx are
// told apart.
func TestOnceTellsWhy(t *testing.T) {
	ns := kerneltest.Namespace(t)
	ask := func(ctx context.Context, to string, opts Options) (err error) {
		opts.HearErrors = true
		kerneltest.Do(t, ns, func() error {
			_, err = Once(ctx, netip.Addr{}, netip.MustParseAddr(to), opts)
			return nil
		})
		return err
	}
	for _, here := range []string{"127.0.0.1", "::1"} {
		if err := ask(t.Context(), here, Options{Timeout: time.Minute}); err != nil {
			t.Errorf("%s: %v", here, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := ask(ctx, here, Options{}); err == nil {
			t.Errorf("%s: no error after the end of ctx", here)
		}
	}
	for _, nowhere := range []string{"192.0.2.1", "2001:db8::1"} {
		if err := ask(t.Context(), nowhere, Options{}); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s: %v", nowhere, err)
		}
	}
	// /proc/sys/net is that of the reader's namespace.
	kerneltest.Do(t, ns, func() error { return os.WriteFile("/proc/sys/net/ipv4/icmp_echo_ignore_all", []byte("1"), 0) })
	if err := ask(t.Context(), "127.0.0.1", Options{Timeout: 50 * time.Millisecond}); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("no answer: %v", err)
	}
}

// TestOnceTellsWhoSaysSo: where nobody answers ARP or neighbour discovery this host's own
// kernel says so, of whom it is about: who pings another address from the same one hears
// nothing of it.
func TestOnceTellsWhoSaysSo(t *testing.T) {
	for _, c := range []struct{ name, own, absent, mute string }{
		{"IPv4", "192.0.2.1/24", "192.0.2.8", "192.0.2.9"}, {"IPv6", "2001:db8::1/64", "2001:db8::8", "2001:db8::9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ns, own := kerneltest.Namespace(t), netip.MustParsePrefix(c.own)
			kerneltest.Link(t, ns, own)
			mute := netip.MustParseAddr(c.mute)
			kerneltest.Neighbour(t, ns, mute)
			begin := func(to string, within time.Duration) <-chan error {
				var s *Socket
				kerneltest.Do(t, ns, func() (err error) {
					s, err = Open(t.Context(), own.Addr(), netip.MustParseAddr(to), Options{HearErrors: true, Timeout: within})
					return err
				})
				done := make(chan error, 1)
				go func() {
					_, err := s.Once(t.Context(), netip.MustParseAddr(to))
					done <- err
				}()
				return done
			}
			silent := begin(c.mute, 3*time.Second)
			for range 3 { // The mute one hears of each.
				err := <-begin(c.absent, 30*time.Second)
				var said *neterror.Error
				if !errors.As(err, &said) || said.Errno != unix.EHOSTUNREACH || said.By != own.Addr() || !said.Unresolved {
					t.Errorf("of an address that nobody has: %v", err)
				}
			}
			if err := <-silent; !errors.Is(err, ErrNoAnswer) {
				t.Errorf("of one that does not answer, beside it: %v", err)
			}
		})
	}
}
