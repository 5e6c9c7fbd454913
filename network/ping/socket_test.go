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
		if err := ask(t.Context(), here, Options{}); err != nil {
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
