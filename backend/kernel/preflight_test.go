package kernel

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/backendtest"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

func TestProbesAreExplained(t *testing.T) {
	odd := errors.New("odd")
	for _, c := range []struct {
		name    string
		explain func(error) error
		answer  error
		want    error
		text    string
	}{
		{"vxlan known", explainProbe, fmt.Errorf("%w: Required attributes not provided", unix.EINVAL), nil, ""},
		{"vxlan unknown", explainProbe, fmt.Errorf("%w: Unknown device type", unix.EOPNOTSUPP), backend.ErrUnsupported, "modprobe vxlan"},
		{"no privilege", explainProbe, kernelError(unix.EPERM, ""), backend.ErrNotPermitted, "CAP_NET_ADMIN"},
		{"odd", explainProbe, odd, odd, "probe for VXLAN"},
		{"nexthops known", explainNexthopProbe, unix.ENOENT, nil, ""},
		{"nexthops unknown", explainNexthopProbe, unix.EOPNOTSUPP, backend.ErrUnsupported, "Linux 5.3"},
		{"nexthops odd", explainNexthopProbe, odd, odd, "probe for nexthop objects"},
		{"strict dumps unknown", explainFeature, unix.ENOPROTOOPT, backend.ErrUnsupported, "Linux 5.3"},
		{"option odd", explainFeature, odd, odd, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := c.explain(c.answer)
			if !errors.Is(got, c.want) {
				t.Fatalf("error is %v, want %v", got, c.want)
			}
			if c.text != "" && (!strings.Contains(got.Error(), c.text) || strings.Contains(got.Error(), "\n")) {
				t.Fatalf("error %q does not say in one line: %s", got, c.text)
			}
		})
	}
}

func TestPreflightChangesNothing(t *testing.T) {
	ns := kerneltest.Namespace(t)
	k := openAt(t, ns)
	heard := listen(t, k)
	if err := errors.Join(k.Preflight(t.Context()), k.CanTunnel(t.Context())); err != nil {
		t.Fatalf("preflight: %v", err)
	}
	if n := heard().all; n != 0 {
		t.Fatalf("preflight made %d events", n)
	}
}

// TestWithoutPrivilege runs on a thread that gave its capabilities away.
func TestWithoutPrivilege(t *testing.T) {
	ns := kerneltest.Namespace(t)
	var preflight, tunnel error
	var apply []error
	kerneltest.Do(t, ns, func() error {
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		none := make([]unix.CapUserData, 2)
		if err := unix.Capset(&header, &none[0]); err != nil {
			return err
		}
		k, err := Open(backendtest.Owns)
		if err != nil {
			return err
		}
		// The kernel asks of what the sender is capable, and the socket's opener.
		preflight, tunnel = k.Preflight(context.Background()), k.CanTunnel(context.Background())
		apply = k.Apply(context.Background(), []backend.Op{{Entry: backend.Device{Name: "ripstop.1", VNI: 1, MTU: 1400}}})
		return k.Close()
	})
	for _, err := range append(apply, preflight, tunnel) {
		if !errors.Is(err, backend.ErrNotPermitted) || !errors.Is(err, unix.EPERM) {
			t.Fatalf("error is %v, want %v", err, backend.ErrNotPermitted)
		}
	}
}
