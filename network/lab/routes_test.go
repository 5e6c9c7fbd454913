package lab

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ripstop-net/ripstop/subnet"
)

// configWith is the usual config of a mode with another Backend object.
func configWith(m Mode, backend string) string {
	return strings.Replace(UsualConfig(m), `{"Type": "vxlan"}`, backend, 1)
}

const (
	tunnels      = `{"Type": "vxlan"}`
	directRoutes = `{"Type": "vxlan", "DirectRouting": true}`
	hostGateway  = `{"Type": "host-gw"}`
)

// TestDirectRoutes: of three hosts two are on one link and send one another
// their pods' packets as they are; to the one behind a router they go by VXLAN.
// What a node itself sends to a pod has the address of the way that it goes.
func TestDirectRoutes(t *testing.T) {
	for _, mode := range Modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			l := startLab(t, Options{Nodes: 3, Far: 1, Mode: mode, Config: configWith(mode, directRoutes)})
			everyPairTalks(t, l, talkLimit)
			first, beside, behind := l.Hosts[0].Pods[0], l.Hosts[1].Pods[0], l.Hosts[2].Pods[0]
			c := startCapture(t, l.Underlay(), l.Hosts[0].Name)
			for _, f := range l.Families() {
				for _, other := range []*Pod{beside, behind} {
					exchangeTCP(t, first, other, f)
					exchangeTCP(t, other, first, f)
					exchangeUDP(t, first, other, f)
				}
			}
			plain, tunnelled := ways(c.end())
			env, err := l.Hosts[0].Env()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range l.Families() {
				for to, want := range map[*Pod]netip.Addr{beside: l.Hosts[0].Address(f), behind: env.Subnets[f].Masked().Addr()} {
					in := openInbox(t, to.Namespace, netip.AddrPortFrom(to.Addresses[f], 0))
					send(t, l.Hosts[0].Namespace, in.addr, "node")
					if from := in.get(t, "node", talkLimit); from.Addr() != want {
						t.Errorf("from the node to %s: the receiver sees %s, want %s", to.Name, from, want)
					}
				}
			}
			for _, f := range l.Families() {
				for _, to := range []struct {
					pod          *Pod
					want, forbid map[way]int
				}{{beside, plain, tunnelled}, {behind, tunnelled, plain}} {
					for _, w := range []way{{first.Addresses[f], to.pod.Addresses[f]}, {to.pod.Addresses[f], first.Addresses[f]}} {
						if to.want[w] == 0 || to.forbid[w] != 0 {
							t.Errorf("from %s to %s: %d packets as wanted, %d otherwise", w.from, w.to, to.want[w], to.forbid[w])
						}
					}
				}
			}
		})
	}
}

type way struct{ from, to netip.Addr }

// ways counts packets by their ends: those that are on the underlay as they are,
// and those in VXLAN.
func ways(packets []ipPacket) (plain, tunnelled map[way]int) {
	plain, tunnelled = map[way]int{}, map[way]int{}
	for _, p := range packets {
		plain[way{p.src, p.dst}]++
		if _, inner, ok := p.vxlan(vxlanPort); ok {
			tunnelled[way{inner.src, inner.dst}]++
		}
	}
	return plain, tunnelled
}

// routesOf lists the overlay's routes of a host by where they leave.
func routesOf(t *testing.T, h *Host) (direct, tunnel int) {
	t.Helper()
	for _, line := range mustPicture(t, h) {
		switch {
		case !strings.HasPrefix(line, "route "):
		case strings.Contains(line, " dev "+hostInterface+" "):
			direct++
		default:
			tunnel++
		}
	}
	return direct, tunnel
}

// TestSwitchBetweenTunnelAndDirectRoutes: each host for itself goes over from one
// to the other and back, and no packet is lost, not in between either, when one
// way is direct and the other is not.
func TestSwitchBetweenTunnelAndDirectRoutes(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Mode: Dual})
	everyPairTalks(t, l, talkLimit)
	flows := startFlows(t, l)
	for _, backend := range []string{directRoutes, tunnels, directRoutes} {
		if err := l.SetConfig(t.Context(), configWith(Dual, backend)); err != nil {
			t.Fatal(err)
		}
		for _, h := range l.Hosts {
			if err := h.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			want := [2]int{0, 4}
			if backend == directRoutes {
				want = [2]int{4, 0}
			}
			got := func() [2]int { direct, tunnel := routesOf(t, h); return [2]int{direct, tunnel} }
			if _, ok := timeUntil(talkLimit, func() bool { return got() == want }); !ok {
				t.Fatalf("%s with %s has %v direct and tunnelled routes, want %v", h.Name, backend, got(), want)
			}
			time.Sleep(calm)
		}
	}
	row := stopFlows(t, l, flows, nobody)
	t.Logf("nine switches, longest gap %s, %d lost", row.gap.Round(time.Millisecond), row.elsewhere)
}

// TestHostGateway: hosts on one link reach each other without any device; one
// behind a router is named, and nothing is sent to it.
func TestHostGateway(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 3, Far: 1, Mode: Dual, Config: configWith(Dual, hostGateway)})
	first, second, third := l.Hosts[0], l.Hosts[1], l.Hosts[2]
	for _, h := range l.Hosts {
		probeOf(t, h).ready(http.StatusOK)
	}
	c := startCapture(t, l.Underlay(), first.Name)
	for _, f := range l.Families() {
		for _, ends := range [][2]*Host{{first, second}, {second, first}} {
			from, to := ends[0].Pods[0], ends[1].Pods[0]
			talks := func() bool {
				_, err := Ping(t.Context(), from.Namespace, from.Addresses[f], to.Addresses[f], PingOptions{Timeout: 100 * time.Millisecond})
				return err == nil
			}
			if _, ok := timeUntil(talkLimit, talks); !ok {
				t.Fatalf("%s: %s does not reach %s", f, from.Name, to.Name)
			}
			exchangeTCP(t, from, to, f)
			exchangeUDP(t, from, to, f)
		}
		if first.Pods[0].MTU != underlayMTU {
			t.Errorf("the pods' MTU is %d, want the underlay's %d", first.Pods[0].MTU, underlayMTU)
		}
		_, err := Ping(t.Context(), first.Pods[0].Namespace, netip.Addr{}, third.Pods[0].Addresses[f], PingOptions{Timeout: 200 * time.Millisecond})
		if err == nil {
			t.Errorf("%s: a pod behind the router answers", f)
		}
	}
	for _, p := range c.end() {
		if _, _, ok := p.vxlan(vxlanPort); ok {
			t.Fatalf("a tunnelled packet from %s to %s", p.src, p.dst)
		}
	}
	for _, h := range l.Hosts {
		want := [2]int{2, 0} // One peer, two families.
		off := []*Host{third}
		if h == third {
			want, off = [2]int{0, 0}, []*Host{first, second}
		}
		if direct, tunnel := routesOf(t, h); [2]int{direct, tunnel} != want {
			t.Errorf("%s has %d direct and %d other routes, want %v", h.Name, direct, tunnel, want)
		}
		for _, o := range off {
			env, err := o.Env()
			if err != nil {
				t.Fatal(err)
			}
			var s subnet.Subnets
			for f, p := range env.Subnets {
				s[f] = p.Masked()
			}
			says := fmt.Sprintf("public address %s is not on the link of %s", o.Address(subnet.V4), hostInterface)
			_, ok := timeUntil(talkLimit, func() bool {
				return slices.ContainsFunc(strings.Split(h.DaemonLog(), "\n"), func(line string) bool {
					return strings.Contains(line, says) && strings.Contains(line, s[subnet.V4].Addr().String())
				})
			})
			if !ok {
				t.Errorf("%s does not say: %s", h.Name, says)
			}
		}
	}
}
