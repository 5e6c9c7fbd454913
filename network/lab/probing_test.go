package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	probing "github.com/ripstop-net/ripstop/network/probe"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

// openAsker opens an asker on a host until the test ends.
func openAsker(t *testing.T, ns *Namespace) *probing.Asker {
	t.Helper()
	var a *probing.Asker
	err := ns.Do(func() (err error) {
		a, err = probing.OpenAsker(t.Context(), subnet.Families[:]...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// askFor asks once.
func askFor(t *testing.T, a *probing.Asker, patience time.Duration, q probing.Question) (probing.Answer, error) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return a.Ask(ctx, q)
}

// base is the first address of a host's subnet.
func base(t *testing.T, h *Host, f subnet.Family) netip.Addr {
	t.Helper()
	env, err := h.Env()
	if err != nil {
		t.Fatal(err)
	}
	return env.Subnets[f].Addr()
}

// TestDaemonsAnswerEachOther over both layers, each with the answer by either, and a pod
// and a stranger on the link are not answered, with the guard and without.
func TestDaemonsAnswerEachOther(t *testing.T) {
	t.Parallel()
	for _, guard := range []string{"on", "off"} {
		t.Run("guard "+guard, func(t *testing.T) {
			t.Parallel()
			l := startLab(t, Options{Nodes: 2, Mode: Dual, DaemonArgs: []string{"--guard=" + guard}})
			everyPairTalks(t, l, talkLimit)
			a, b := l.Hosts[0], l.Hosts[1]
			asker, pod, stranger := openAsker(t, a.Namespace), openAsker(t, a.Pods[0].Namespace), openAsker(t, l.EtcdNamespace())
			for _, f := range subnet.Families {
				eventually(t, talkLimit, "the echo has its port", func() bool { // The node is ready without it.
					_, err := askFor(t, asker, time.Second, probing.Question{To: b.Address(f), Port: probing.DefaultPort, Layer: probing.Underlay})
					return err == nil
				})
				address := func(h *Host, layer probing.Layer) netip.Addr {
					if layer == probing.Underlay {
						return h.Address(f)
					}
					return base(t, h, f)
				}
				for _, layer := range probing.Layers {
					q := probing.Question{From: address(a, layer), To: address(b, layer), Port: probing.DefaultPort, Layer: layer}
					for _, other := range []bool{false, true} {
						q.Other, q.Size, q.AnswerSize, q.DontFragment = other, 1400, 1400, true
						got, err := askFor(t, asker, 10*time.Second, q)
						if err != nil || got.Arrived != 1400 || got.Size != 1400 || (got.Layer != layer) != other || got.Trouble != 0 {
							t.Errorf("%s over the %s, other way %t: %+v, %v", f, layer, other, got, err)
						}
					}
					q.From, q.Other = netip.Addr{}, false
					if got, err := askFor(t, stranger, 300*time.Millisecond, q); err == nil {
						t.Errorf("%s over the %s: a stranger is answered: %+v", f, layer, got)
					}
				}
				q := probing.Question{To: address(b, probing.Overlay), Port: probing.DefaultPort, Layer: probing.Overlay}
				if got, err := askFor(t, pod, 300*time.Millisecond, q); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: a pod is answered: %+v, %v", f, got, err)
				}
			}
		})
	}
}

// series reads those metrics of a host's daemon whose names begin so.
func series(t *testing.T, p probe, prefix string) map[string]float64 {
	t.Helper()
	_, body, err := p.client.Get(t.Context(), status.PathMetrics)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for line := range strings.Lines(body) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasPrefix(name, prefix) {
			out[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	return out
}

// blockEcho drops what goes to the echo's port of a host by a device.
func blockEcho(t *testing.T, h *Host, device string) (unblock func()) {
	t.Helper()
	c := nft(t, h.Namespace)
	accept := nftables.ChainPolicyAccept
	table := c.AddTable(&nftables.Table{Name: "blocks", Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{
		Table: table, Name: "in", Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &accept,
	})
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, device)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, probing.DefaultPort)},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	return func() {
		c.DelTable(table)
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDaemonsProbeEachOther: every metric of it moves, a daemon that is started again
// is not named, and a peer to which a layer is blocked is named in the status and once
// in the log, and cleared again.
func TestDaemonsProbeEachOther(t *testing.T) {
	t.Parallel()
	l := startLab(t, Options{Nodes: 2, Mode: IPv4, DaemonArgs: []string{"--probe-interval=1s"}})
	everyPairTalks(t, l, talkLimit)
	a, b := l.Hosts[0], l.Hosts[1]
	p := probeOf(t, a)
	now := func() status.Status {
		s, err := p.client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	const prefix = "ripstop_"
	moved := []string{
		`probes_total{layer="underlay"}`, `probes_total{layer="overlay"}`, `probe_round_trip_seconds_count{layer="underlay"}`,
		`probe_round_trip_seconds_count{layer="overlay"}`, `probe_round_trip_seconds_sum{layer="overlay"}`, "echoes_answered_total",
	}
	eventually(t, 20*time.Second, "peers are asked and answered", func() bool {
		s := series(t, p, prefix)
		return !slices.ContainsFunc(moved, func(name string) bool { return s[prefix+name] == 0 })
	})
	for range 3 {
		if err := b.RestartDaemon(t.Context(), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if s := now().Probing; len(s.Silent) != 0 || strings.Contains(a.DaemonLog(), "does not answer") {
		t.Errorf("after restarts of the peer's daemon %+v", s.Silent)
	}
	unblock := blockEcho(t, b, "ripstop.1")
	eventually(t, 30*time.Second, "the peer is named", func() bool { return len(now().Probing.Silent) == 1 })
	s := series(t, p, prefix)
	if q := now().Probing.Silent[0]; q.Node != b.Name || q.Layer != "overlay" || s[prefix+"silent_peers"] != 1 || s[prefix+`probes_lost_total{layer="overlay"}`] == 0 {
		t.Errorf("named is %+v, metrics are %v", q, s)
	}
	if ready := now().Ready; !ready {
		t.Error("a peer that does not answer makes the node not ready")
	}
	unblock()
	eventually(t, 60*time.Second, "the peer answers again", func() bool { return len(now().Probing.Silent) == 0 })
	for _, text := range []string{"peer does not answer", "peer answers again"} {
		if n := strings.Count(a.DaemonLog(), text); n != 1 {
			t.Errorf("%q is in the log %d times", text, n)
		}
	}
	before := now().Probing.Ignored
	if _, err := askFor(t, openAsker(t, a.Pods[0].Namespace), 300*time.Millisecond, probing.Question{To: base(t, a, subnet.V4), Port: probing.DefaultPort, Layer: probing.Overlay}); err == nil {
		t.Error("the node's own pod is answered")
	}
	eventually(t, 30*time.Second, "what is ignored is counted", func() bool {
		return now().Probing.Ignored > before && series(t, p, prefix)[prefix+"echoes_ignored_total"] > 0
	})
}

// TestEchoStandsAFlood: 100,000 requests, from a peer, a stranger, and of junk, cost the
// daemon under a tenth of a core for as long as they come, with the guard and without.
// What the kernel does to drop them is not the daemon's.
func TestEchoStandsAFlood(t *testing.T) {
	for _, guard := range []string{"on", "off"} {
		t.Run("guard "+guard, func(t *testing.T) { floodEcho(t, guard) })
	}
}

func floodEcho(t *testing.T, guard string) {
	l := startLab(t, Options{Nodes: 2, Mode: IPv4, DaemonArgs: []string{"--guard=" + guard}})
	everyPairTalks(t, l, talkLimit)
	b := l.Hosts[1]
	to := netip.AddrPortFrom(b.Address(subnet.V4), probing.DefaultPort)
	request := make([]byte, probing.MinPayload)
	copy(request, []byte{0x52, 0x70, 0xec, 0x40, 1, 1, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, probing.MinPayload})
	asker := openAsker(t, l.Hosts[0].Namespace)
	client := status.NewClient(filepath.Join(b.Dir, "run"))
	defer client.Close()
	counted := func() status.Probing {
		t.Helper()
		s, err := client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Probing
	}
	answers := func(when string) {
		t.Helper()
		eventually(t, 30*time.Second, when+" the echo answers a peer", func() bool {
			_, err := askFor(t, asker, time.Second, probing.Question{To: to.Addr(), Port: to.Port(), Layer: probing.Underlay})
			return err == nil
		})
	}
	for name, c := range map[string]struct {
		from    *Namespace
		message []byte
	}{
		"a peer": {l.Hosts[0].Namespace, request}, "a stranger": {l.EtcdNamespace(), request}, "junk": {l.Hosts[0].Namespace, make([]byte, probing.MinPayload)},
	} {
		answers("before the flood of " + name)
		used, err := ProcessorTime(b.DaemonPID())
		if err != nil {
			t.Fatal(err)
		}
		before := counted()
		began := time.Now()
		err = c.from.Do(func() error {
			conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			for range 100_000 {
				if _, err := conn.Write(c.message); err != nil && !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOBUFS) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		after, err := ProcessorTime(b.DaemonPID())
		if err != nil {
			t.Fatal(err)
		}
		share := float64(after-used) / float64(took)
		t.Logf("guard %s, 100,000 from %s in %s: %.2f %% of a core", guard, name, took.Round(time.Millisecond), 100*share)
		// A dead echo costs nothing. The kernel drops all but a peer's.
		if now := counted(); name == "a peer" && now.Answered == before.Answered {
			t.Errorf("guard %s: of the flood from %s nothing was answered", guard, name)
		}
		answers("after the flood of " + name)
		if share >= 0.1 {
			t.Errorf("guard %s: a flood from %s takes %.1f %% of a core", guard, name, 100*share)
		}
	}
}
