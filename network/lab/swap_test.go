package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend/vxlan"
	"github.com/ripstop-net/ripstop/subnet"
)

// TestSubnetsThatAreSwapped: two hosts take each other's subnet over, and are of
// another MTU by then. A third reaches the addresses of both all the while, at the
// old holders and then at the new, and has a way at every moment.
func TestSubnetsThatAreSwapped(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	first, store := l.Hosts[0], openStore(t, l)
	var keys, values [2]string
	for i, h := range l.Hosts[1:] {
		env, err := h.Env()
		if err != nil {
			t.Fatal(err)
		}
		key := Prefix + "/subnets/" + env.Subnets.Key()
		got, err := store.Get(t.Context(), key)
		if err != nil || len(got.Kvs) != 1 {
			t.Fatalf("record: %v, %v", got, err)
		}
		// A daemon that finds another in its subnet is no part of this.
		if _, _, err := h.StopDaemon(t.Context(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		lease, err := subnet.ParseRecord(env.Subnets.Key(), got.Kvs[0].Value)
		if err != nil {
			t.Fatal(err)
		}
		lease.MTU -= 50
		keys[i], values[i] = key, string(lease.Record())
		// The other's pod answers here, too.
		other := l.Hosts[2-i].Pods[0]
		if err := answersAs(h.Pods[0], other.Addresses); err != nil {
			t.Fatal(err)
		}
	}
	ear := listen(t, first)
	flows := startFlows(t, l)
	time.Sleep(calm)
	for i, values := range [][2]string{{values[1], values[0]}, values} { // There and back.
		if _, err := store.Txn(t.Context()).Then(clientv3.OpPut(keys[0], values[0]), clientv3.OpPut(keys[1], values[1])).Commit(); err != nil {
			t.Fatal(err)
		}
		eventually(t, talkLimit, "the subnets are swapped", func() bool { return swapped(t, first, l.Hosts[1:], i == 0) })
		time.Sleep(calm)
	}
	heard := ear.heard(t)
	if len(heard) == 0 {
		t.Error("the kernel announced nothing")
	}
	for _, a := range heard {
		if a.kind == unix.RTM_DELROUTE || a.kind == unix.RTM_DELNEXTHOP || a.kind == unix.RTM_DELNEIGH {
			t.Errorf("for a moment there was no way: %s", a)
		}
	}
	for _, f := range flows { // Those to the first host end where they began.
		if r := f.pinger.Stop(); r.Lost != 0 && !strings.Contains(f.name, "to "+first.Pods[0].Name) {
			t.Errorf("%s: %s", f.name, r)
		}
	}
}

// answersAs gives a pod another's addresses besides its own, and its host the way to
// them.
func answersAs(p *Pod, addresses subnet.PerFamily[netip.Addr]) error {
	for _, a := range addresses {
		if !a.IsValid() {
			continue
		}
		whole := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
		err := p.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(podInterface)
			if err != nil {
				return err
			}
			return n.AddrAdd(link, &netlink.Addr{IPNet: whole, Flags: unix.IFA_F_NODAD})
		})
		if err != nil {
			return fmt.Errorf("give %s %s: %w", p.Name, a, err)
		}
		err = p.Host.Namespace.netlink(func(n *netlink.Handle) error {
			link, err := n.LinkByName(podBridge)
			if err != nil {
				return err
			}
			return n.RouteAdd(&netlink.Route{Dst: whole, LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK})
		})
		if err != nil {
			return fmt.Errorf("lead %s to %s: %w", a, p.Name, err)
		}
	}
	return nil
}

// swapped tells whether a host sends to each of two others what is the other's, or
// each its own.
func swapped(t *testing.T, h *Host, others []*Host, crossed bool) bool {
	t.Helper()
	have, err := picture(h)
	if err != nil {
		return false
	}
	for i, o := range others {
		holder := o
		if crossed {
			holder = others[1-i]
		}
		env, err := o.Env()
		if err != nil {
			t.Fatal(err)
		}
		macs := vtepMACs(t, holder)
		for _, f := range subnet.Families {
			devices, err := h.Devices()
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(have, fmt.Sprintf("neighbour %s %s dev %s", vxlan.Gateway(env.Subnets[f].Masked()), macs[devices[f]], devices[f])) {
				return false
			}
		}
	}
	return true
}
