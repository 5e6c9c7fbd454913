package lab

import (
	"slices"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/subnet"
)

// The daemons are built with the race detector where the tests are, and share
// the processors with tests of other packages: three seconds hold on a machine
// that does nothing else, as under ripstop-lab.
const talkLimit = 20 * time.Second

// What the usual config says of VXLAN.
const (
	vxlanPort = 8472
	vxlanVNI  = 1
)

// overhead is what outer IP, UDP, VXLAN and inner Ethernet headers take of the
// underlay's MTU, in bytes.
var overhead = subnet.PerFamily[int]{subnet.V4: 50, subnet.V6: 70}

// Pods on different hosts talk by their own addresses in every family mode, by
// ICMP, TCP and UDP up to the full MTU, in VXLAN over the underlay.
func TestPodsTalk(t *testing.T) {
	for _, mode := range Modes {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			l := startLab(t, Options{Nodes: 3, Mode: mode})
			everyPairTalks(t, l, talkLimit)
			t.Logf("every pair of pods talks %s after the start of the daemons", time.Since(l.DaemonsStarted).Round(time.Millisecond))

			a, b := l.Hosts[0], l.Hosts[1]
			wantMTU := underlayMTU
			for _, f := range l.Families() {
				wantMTU = min(wantMTU, underlayMTU-overhead[f])
			}
			if got := a.Pods[0].MTU; got != wantMTU {
				t.Errorf("the pods' MTU is %d, want %d", got, wantMTU)
			}
			c := startCapture(t, l.Underlay(), a.Name)
			for _, f := range l.Families() {
				for _, ends := range [][2]*Pod{{a.Pods[0], b.Pods[0]}, {b.Pods[0], a.Pods[0]}} {
					exchangeTCP(t, ends[0], ends[1], f)
					exchangeUDP(t, ends[0], ends[1], f)
				}
			}
			checkUnderlay(t, l, c.end(), a, b)
		})
	}
}

// checkUnderlay looks at the packets on the first host's port, which is where
// all that its pod sends and gets must pass.
func checkUnderlay(t *testing.T, l *Lab, packets []ipPacket, a, b *Host) {
	t.Helper()
	tunnelled := map[way]int{} // Largest outer packet that carries UDP, by inner addresses.
	for _, p := range packets {
		for _, pod := range l.Pods() {
			if slices.Contains(pod.Addresses[:], p.src) || slices.Contains(pod.Addresses[:], p.dst) {
				t.Fatalf("a packet from %s to %s is on the underlay without a tunnel", p.src, p.dst)
			}
		}
		vni, inner, ok := p.vxlan(vxlanPort)
		if !ok {
			continue
		}
		f := subnet.FamilyOf(inner.src)
		ends := map[way]way{
			{a.Pods[0].Addresses[f], b.Pods[0].Addresses[f]}: {a.Address(f), b.Address(f)},
			{b.Pods[0].Addresses[f], a.Pods[0].Addresses[f]}: {b.Address(f), a.Address(f)},
		}
		outer, ours := ends[way{inner.src, inner.dst}]
		if !ours {
			continue // Such as an answer to the matrix that came late.
		}
		if vni != vxlanVNI {
			t.Fatalf("VNI %d, want %d", vni, vxlanVNI)
		}
		if outer != (way{p.src, p.dst}) {
			t.Fatalf("from %s to %s goes from host %s to %s, want %s to %s", inner.src, inner.dst, p.src, p.dst, outer.from, outer.to)
		}
		largest := tunnelled[way{inner.src, inner.dst}]
		if inner.proto == protoUDP { // TCP is captured before it is segmented.
			largest = max(largest, p.length)
		}
		tunnelled[way{inner.src, inner.dst}] = largest
	}
	for _, f := range l.Families() {
		for _, w := range []way{{a.Pods[0].Addresses[f], b.Pods[0].Addresses[f]}, {b.Pods[0].Addresses[f], a.Pods[0].Addresses[f]}} {
			// The outer Ethernet header is not counted by any MTU.
			want := a.Pods[0].MTU + overhead[f]
			if got := tunnelled[w]; got != want {
				t.Errorf("the largest outer packet for UDP from %s to %s has %d bytes, want %d", w.from, w.to, got, want)
			}
		}
	}
}
