package kernel

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/backend/kernel/kerneltest"
)

// benchPeers is the size of the overlay in the benchmarks. A peer has an FDB
// entry, a neighbour, a nexthop and a route.
const benchPeers = 10_000

func BenchmarkApply(b *testing.B) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		b.Run(name, func(b *testing.B) {
			k := openAt(b, kerneltest.Namespace(b))
			want := peers(benchPeers, v6)
			ops := backend.Diff(&backend.State{}, want)
			back := backend.Diff(want, &backend.State{})
			var in, out time.Duration
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				in += execute(b, k, ops)
				out += execute(b, k, back)
			}
			report(b, in, "µs/peer-added")
			report(b, out, "µs/peer-removed")
		})
	}
}

// BenchmarkBatch shows by what batchOps was chosen.
func BenchmarkBatch(b *testing.B) {
	want := peers(benchPeers, false)
	ops, back := backend.Diff(&backend.State{}, want), backend.Diff(want, &backend.State{})
	for _, n := range []int{1, 8, 32, 64, 128, batchOps, 1024} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			k := openAt(b, kerneltest.Namespace(b))
			k.batchOps = n
			var in, out time.Duration
			for b.Loop() {
				in += execute(b, k, ops)
				out += execute(b, k, back)
			}
			report(b, in, "µs/peer-added")
			report(b, out, "µs/peer-removed")
		})
	}
}

func BenchmarkDump(b *testing.B) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		b.Run(name, func(b *testing.B) {
			k := openAt(b, kerneltest.Namespace(b))
			reach(b, k, peers(benchPeers, v6))
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if _, err := k.Dump(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			report(b, b.Elapsed(), "µs/peer")
			b.StopTimer()
			reach(b, k, &backend.State{})
		})
	}
}

// execute sends ops phase by phase without the bookkeeping of backend.Execute.
func execute(b *testing.B, k *Kernel, ops []backend.Op) time.Duration {
	start := time.Now()
	for len(ops) > 0 {
		n := 1
		for n < len(ops) && ops[n].Entry.Kind() == ops[0].Entry.Kind() {
			n++
		}
		for i, err := range k.Apply(b.Context(), ops[:n]) {
			if err != nil {
				b.Fatalf("%s: %v", ops[i], err)
			}
		}
		ops = ops[n:]
	}
	return time.Since(start)
}

func report(b *testing.B, d time.Duration, unit string) {
	b.ReportMetric(float64(d.Microseconds())/float64(b.N)/benchPeers, unit)
}

// BenchmarkApplyDirect is of plain routes over one link. IPv4 ones share a hash
// chain in the kernel (fib_create_info hashes the device), so that each costs as
// much as there are.
func BenchmarkApplyDirect(b *testing.B) {
	for _, v6 := range []bool{false, true} {
		for _, n := range []int{1000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", map[bool]string{false: "IPv4", true: "IPv6"}[v6], n), func(b *testing.B) {
				ns := kerneltest.Namespace(b)
				kerneltest.Do(b, ns, func() error { return makeLink("eth0") })
				k := openAt(b, ns)
				want := &backend.State{}
				for e := range peers(n, v6).OfKind(backend.KindRoute) {
					r := e.(backend.Route)
					host := 2 + want.Len()%1000
					r.Plain, r.Via = true, backend.Nexthop{Dev: "eth0", Gateway: netip.AddrFrom4([4]byte{192, 0, 4 + byte(host>>8), byte(host)})}
					if v6 {
						r.Via.Gateway = netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 14: byte(host >> 8), 15: byte(host)})
					}
					want.Put(r)
				}
				ops, back := backend.Diff(&backend.State{}, want), backend.Diff(want, &backend.State{})
				var in, out time.Duration
				for b.Loop() {
					in += execute(b, k, ops)
					out += execute(b, k, back)
				}
				b.ReportMetric(float64(in.Milliseconds())/float64(b.N), "ms/added")
				b.ReportMetric(float64(out.Milliseconds())/float64(b.N), "ms/removed")
			})
		}
	}
}
