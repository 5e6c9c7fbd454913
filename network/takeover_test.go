package network

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/backend"
)

// TestRulesOfATakenHostGatewayGo: the firewall is told that the node was flannel's in
// the life that takes its routes and in every later one of the same boot, which finds no
// route of flannel's any more; never on a node that was not. What may be in the way is
// said once, though the host is looked at twice.
func TestRulesOfATakenHostGatewayGo(t *testing.T) {
	for name, flannels := range map[string]bool{"flannel's": true, "nobody's": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.onLink()
			r.store.SetConfig([]byte(`{"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}}`))
			near := r.beside("host-gw", 2, "10.99.0.2")
			settings := r.settings()
			settings.notes = []string{"a rule of somebody's"}
			f := &fakeFirewall{rig: r, try: make(chan struct{}), let: map[netip.Addr]int{}}
			close(f.try)
			r.firewall = f
			if flannels {
				r.host.has(backend.Survey{Routes: []backend.HostRoute{
					{Dst: near.Subnets[0], Gateway: near.Endpoints[0].PublicIP, Dev: "eth0", Protocol: unix.RTPROT_BOOT},
				}})
			}
			for range 2 {
				r.start()
				r.ready()
				said := 0
				for _, e := range r.logs.All() {
					if strings.Contains(e.Message, "may be in the way") {
						said++
					}
				}
				if said != 1 {
					t.Errorf("a note was said %d times", said)
				}
				r.stop()
				r.host.has(backend.Survey{})
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if want := []bool{flannels, flannels}; !slices.Equal(f.flannels, want) {
				t.Errorf("the firewall was told %v, want %v", f.flannels, want)
			}
		})
	}
}
