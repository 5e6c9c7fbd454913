package cleanup

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
	"github.com/ripstop-net/ripstop/backend/plan"
	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// ours are the entries of a node with so many peers, in both families.
func ours(t testing.TB, peers int) *backend.State {
	t.Helper()
	self := vxlan.Self{
		Options: vxlan.Options{VNI: 1, Port: 8472},
		Self: plan.Self{
			Node:     "self",
			Subnets:  subnet.Subnets{netip.MustParsePrefix("10.5.0.0/24"), netip.MustParsePrefix("fd00:5::/64")},
			Underlay: subnet.PerFamily[plan.Underlay]{{Addr: netip.MustParseAddr("10.99.0.1"), MTU: 1500}, {Addr: netip.MustParseAddr("fd99::1"), MTU: 1500}},
		},
	}
	own, err := self.Own()
	if err != nil {
		t.Fatal(err)
	}
	s := backend.NewState(own...)
	for n := 1; n <= peers; n++ {
		for _, e := range self.Peer(subnet.Lease{
			Subnets: subnet.Subnets{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 64 + byte(n>>8), byte(n), 0}), 24),
				netip.PrefixFrom(netip.MustParseAddr(fmt.Sprintf("fd00:5:%x::", n)), 64),
			},
			Endpoints: subnet.PerFamily[subnet.Endpoint]{
				{PublicIP: netip.AddrFrom4([4]byte{10, 99, 2 + byte(n>>8), byte(n)}), MAC: subnet.MAC{2, 0, 0, 4, byte(n >> 8), byte(n)}},
				{PublicIP: netip.MustParseAddr(fmt.Sprintf("fd99::%x", 0x1000+n)), MAC: subnet.MAC{2, 0, 0, 6, byte(n >> 8), byte(n)}},
			},
		}) {
			s.Put(e)
		}
	}
	return s
}

func openAt(t testing.TB, ns *os.File) *kernel.Kernel {
	t.Helper()
	k, err := kernel.OpenAt(ns, vxlan.OwnsDevice)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// TestForeignThingsStayAsTheyAre, to the byte, on a host that is full of them;
// all that is ours goes, also what is not of the form that we make.
func TestForeignThingsStayAsTheyAre(t *testing.T) {
	ns := kerneltest.Namespace(t)
	kerneltest.FillWithForeign(t, ns)
	before := kerneltest.Settled(t, ns)
	k := openAt(t, ns)
	have := &backend.State{}
	if failures := backend.Execute(t.Context(), k, have, backend.Diff(have, ours(t, 50))); len(failures) > 0 {
		t.Fatal(failures[0])
	}
	kerneltest.Do(t, ns, func() error {
		eth, err := netlink.LinkByName(kerneltest.ForeignLink)
		if err != nil {
			return err
		}
		if err := kerneltest.AddNexthop(5000, kernel.Protocol, eth.Attrs().Index, net.IPv4(10, 97, 0, 77)); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{
			LinkIndex: eth.Attrs().Index, Gw: net.IPv4(10, 97, 0, 78), Protocol: kernel.Protocol, Table: 100,
			Dst: &net.IPNet{IP: net.IPv4(10, 66, 6, 0), Mask: net.CIDRMask(24, 32)},
		})
	})
	full := kerneltest.Settled(t, ns)
	if len(full) < len(before)+2*(1+50*4) {
		t.Fatalf("ours are not there: %d lines, %d before", len(full), len(before))
	}

	r := &Forwarding{Kernel: k}
	found, err := Find(t.Context(), r)
	if err != nil || len(found.Ours) != 2+2*50*2+2 {
		t.Fatalf("found %d things, %v", len(found.Ours), err)
	}
	if last := found.Ours[len(found.Ours)-1]; !strings.HasPrefix(last, "link ripstop") {
		t.Errorf("the last to go is %s", last)
	}
	if d := cmp.Diff(full, kerneltest.Tables(t, ns)); d != "" {
		t.Errorf("looking changed something:\n%s", d)
	}
	if err := Remove(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(before, kerneltest.Tables(t, ns)); d != "" {
		t.Errorf("before and after differ:\n%s", d)
	}
	if found, err := Find(t.Context(), r); err != nil || len(found.Ours) != 0 {
		t.Errorf("a second time: %v, %v", found, err)
	}
}

// stubborn is a kernel in which somebody puts things back.
type stubborn struct {
	Kernel
	back func()
}

func (s stubborn) Apply(ctx context.Context, ops []backend.Op) []error {
	defer s.back()
	return s.Kernel.Apply(ctx, ops)
}

func TestWhatIsPutBackIsNamed(t *testing.T) {
	k := openAt(t, kerneltest.Namespace(t))
	have, want := &backend.State{}, ours(t, 2)
	put := func() {
		have := &backend.State{}
		_ = backend.Execute(context.Background(), k, have, backend.Diff(have, want))
	}
	if failures := backend.Execute(t.Context(), k, have, backend.Diff(have, want)); len(failures) > 0 {
		t.Fatal(failures[0])
	}
	r := &Forwarding{Kernel: stubborn{k, put}}
	if _, err := Find(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if err := Remove(t.Context(), r); err == nil || !strings.Contains(err.Error(), "another --run-dir") {
		t.Errorf("got %v", err)
	}
}
