package network

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// TestStartFollowsItsUnderlay: a start that waits, to be known or for a subnet, makes
// itself known where it is by then, and its record names no address of before.
func TestStartFollowsItsUnderlay(t *testing.T) {
	for name, tc := range map[string]struct {
		until string
		hold  func(*rig)
		free  func(*rig)
	}{
		"to be known": {
			waitForName,
			func(r *rig) {
				if _, err := r.store.Appear(r.t.Context(), subnet.Living{Token: "old", Node: "node1"}); err != nil {
					r.t.Fatal(err)
				}
			},
			func(r *rig) { r.store.Vanish("node1") },
		},
		"for a subnet": {
			"lease",
			func(r *rig) {
				r.store.SetConfig([]byte(`{"Network": "10.5.0.0/22", "SubnetMin": "10.5.2.0", "SubnetMax": "10.5.2.0"}`))
				r.join(2)
			},
			func(r *rig) { r.store.Delete("10.5.2.0-24") },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			tc.hold(r)
			r.start()
			r.eventually("it waits", func() bool { w := r.node.Status().Waiting; return w != nil && w.For == tc.until })
			r.renumber("10.99.0.7")
			time.Sleep(lookLasts) // No try goes by a look of before then.
			tc.free(r)
			r.eventually("it is ready", func() bool { return r.node.NotReady() == nil })
			r.eventually("it is where the host is", func() bool { return r.isAt("10.99.0.7", 1500) })
			if _, own := r.own(); own.Created != own.Modified {
				t.Errorf("its record was written more than once: %+v", own)
			}
			if n := r.count("underlay changed"); n != 1 {
				t.Errorf("said %d times", n)
			}
		})
	}
}

// TestWaitForAnUnderlayIsSaidOnce: pods' interfaces that come while a first start waits
// for an underlay make no lines; another reason does, with what there is by then.
func TestWaitForAnUnderlayIsSaidOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.host.host[0].DefaultV4 = false
	r.start()
	r.eventually("it waits", func() bool {
		return r.said("there is no IPv4 default route: name an interface with --iface: there are eth0 (10.99.0.1)")
	})
	looks := r.host.looks.Load()
	for i := 0; r.host.looks.Load() < looks+3; i++ {
		r.host.become(func() {
			r.host.host = append(r.host.host, backend.Interface{
				Name: fmt.Sprint("veth", i), Up: true, MTU: 1500, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{169, 254, 1, byte(i)})},
			})
		})
		time.Sleep(20 * time.Millisecond)
	}
	if n := r.count("waiting"); n != 1 {
		t.Errorf("said %d times", n)
	}
	r.host.become(func() { r.host.host[0].DefaultV4, r.host.host[0].Addresses = true, nil })
	r.eventually("it says another reason", func() bool { return r.count("waiting") == 2 })
	if w := r.node.Status().Waiting; w == nil || !strings.Contains(w.Reason, "eth0 has the default route and no global IPv4 address") || !strings.Contains(w.Reason, "veth0 (169.254.1.0)") {
		t.Errorf("it waits for %+v", w)
	}
	r.host.become(func() { r.host.host[0].Addresses = []netip.Addr{netip.MustParseAddr("10.99.0.1")} })
	r.eventually("it is ready", func() bool { return r.node.NotReady() == nil })
}
