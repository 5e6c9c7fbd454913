package serve

import (
	"errors"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ripstop-net/ripstop/network/status"
)

// A metric is read from a status. None has a label of which there is one value
// for each peer: ten thousand peers must not mean ten thousand series.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(s *status.Status, emit func(value float64, labels ...string))
	// times, where set, makes it a histogram instead.
	times func(s *status.Status, emit func(t status.Times, labels ...string))
}

func define(kind prometheus.ValueType, name, help string, read func(*status.Status, func(float64, ...string)), labels ...string) metric {
	return metric{desc: prometheus.NewDesc("ripstop_"+name, help, labels, nil), kind: kind, read: read}
}

func gauge(name, help string, of func(*status.Status) float64) metric {
	return define(prometheus.GaugeValue, name, help, func(s *status.Status, emit func(float64, ...string)) { emit(of(s)) })
}

func counter(name, help string, of func(*status.Status) uint64) metric {
	return define(prometheus.CounterValue, name, help, func(s *status.Status, emit func(float64, ...string)) { emit(float64(of(s))) })
}

// stamp leaves out a time that is not known.
func stamp(name, help string, of func(*status.Status) time.Time) metric {
	return define(prometheus.GaugeValue, name, help, func(s *status.Status, emit func(float64, ...string)) {
		if t := of(s); !t.IsZero() {
			emit(float64(t.UnixNano()) / 1e9)
		}
	})
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// metrics are all of ours. Documentation/metrics.md has the same.
var metrics = []metric{
	define(prometheus.GaugeValue, "build_info", "Which build this is; the value is always 1.",
		func(s *status.Status, emit func(float64, ...string)) { emit(1, s.Daemon.Version, runtime.Version()) }, "version", "goversion"),
	gauge("ready", "Whether every condition of readiness holds (1) or not (0).", func(s *status.Status) float64 { return truth(s.Ready) }),
	define(prometheus.GaugeValue, "condition_met", "Whether a condition of readiness holds (1) or not (0).",
		func(s *status.Status, emit func(float64, ...string)) {
			for _, c := range s.Conditions {
				emit(truth(c.OK), c.Name)
			}
		}, "condition"),

	gauge("lease_held", "Whether the store keeps this node's subnets for it (1) or not (0).", func(s *status.Status) float64 { return truth(s.Lease.Held) }),
	stamp("lease_expiry_timestamp_seconds", "Until when the store keeps the lease if it is not renewed again; absent for a reservation.", func(s *status.Status) time.Time { return s.Lease.Expires }),
	counter("lease_renewals_total", "Renewals of the lease.", func(s *status.Status) uint64 { return s.Lease.Renewals }),
	counter("lease_losses_total", "Times that the lease was lost and had to be claimed again.", func(s *status.Status) uint64 { return s.Lease.Losses }),
	counter("underlay_moves_total", "Times that the underlay's interface, address, MTU or link became another while the daemon ran.", func(s *status.Status) uint64 { return s.UnderlayMoves }),

	gauge("store_up", "Whether the store answers (1) or is away (0).", func(s *status.Status) float64 { return truth(s.Store.State == status.Current) }),
	stamp("store_heard_timestamp_seconds", "When the store last said something.", func(s *status.Status) time.Time { return s.Store.Heard }),
	gauge("store_revision", "The store's revision that the node's copy of it shows.", func(s *status.Status) float64 { return float64(s.Store.Revision) }),
	counter("store_listings_total", "Whole readings of the store.", func(s *status.Status) uint64 { return s.Store.Listings }),
	counter("store_changes_total", "Changes that the store told of after a listing.", func(s *status.Status) uint64 { return s.Store.Changes }),
	counter("store_outages_total", "Times that the store went away.", func(s *status.Status) uint64 { return s.Store.Outages }),

	gauge("peers", "Other nodes that this one reaches.", func(s *status.Status) float64 { return float64(s.Peers.Count) }),
	gauge("held_peers", "Peers that have no record any more and are kept for a time of grace.", func(s *status.Status) float64 { return float64(s.Peers.Held) }),
	define(prometheus.CounterValue, "holds_ended_total", "Holds of peers without a record that ended, by how.",
		func(s *status.Status, emit func(float64, ...string)) {
			emit(float64(s.Peers.Returned), "returned")
			emit(float64(s.Peers.Displaced), "displaced")
			emit(float64(s.Peers.Expired), "expired")
		}, "outcome"),
	gauge("records_passed_over", "Records in the store that cannot be read or used.", func(s *status.Status) float64 { return float64(s.Peers.PassedOver) }),

	define(prometheus.GaugeValue, "device_right", "Whether the kernel has a device of ours and its addresses as they are wanted (1) or not (0).",
		func(s *status.Status, emit func(float64, ...string)) {
			for _, d := range s.Devices {
				emit(truth(d.Right), d.Name)
			}
		}, "device"),
	define(prometheus.GaugeValue, "device_mtu_bytes", "The MTU of a device of ours, as it is wanted.",
		func(s *status.Status, emit func(float64, ...string)) {
			for _, d := range s.Devices {
				emit(float64(d.MTU), d.Name)
			}
		}, "device"),
	gauge("wanted_entries", "Entries that the kernel is to have: devices, addresses, FDB, neighbours, nexthops and routes.", func(s *status.Status) float64 { return float64(s.Loop.Wanted) }),
	gauge("failing_entries", "Entries that the kernel did not take, and those that wait for them.", func(s *status.Status) float64 { return float64(s.Loop.Failing) }),
	gauge("fought_entries", "Entries that an outside hand undoes again and again.", func(s *status.Status) float64 { return float64(s.Loop.Fought) }),
	{
		desc:  prometheus.NewDesc("ripstop_pass_duration_seconds", "What passes of the loop took.", nil, nil),
		times: func(s *status.Status, emit func(status.Times, ...string)) { emit(s.Loop.PassTimes) },
	},
	stamp("last_pass_timestamp_seconds", "When the last pass of the loop ended.", func(s *status.Status) time.Time { return s.Loop.LastPass }),
	stamp("loop_beat_timestamp_seconds", "When the loop last answered that it lives.", func(s *status.Status) time.Time { return s.Daemon.Beat }),
	counter("ops_total", "Changes that were made to the kernel's state.", func(s *status.Status) uint64 { return s.Loop.Ops }),
	counter("op_failures_total", "Changes that the kernel did not take, or that were left out because of such.", func(s *status.Status) uint64 { return s.Loop.Failures }),
	counter("drift_entries_total", "Entries that an outside hand changed and that were mended.", func(s *status.Status) uint64 { return s.Loop.Drift }),
	counter("audit_findings_total", "Entries in which an audit found changes that nobody had announced. There should be none.", func(s *status.Status) uint64 { return s.Loop.Findings }),
	define(prometheus.CounterValue, "kernel_dumps_total", "Readings of the kernel's state, by reason.",
		func(s *status.Status, emit func(float64, ...string)) {
			d := s.Loop.Dumps
			emit(float64(d.Start), "start")
			emit(float64(d.Doubt), "doubt")
			emit(float64(d.Surprise), "surprise")
			emit(float64(d.Audit), "audit")
		}, "reason"),
	counter("kernel_dump_failures_total", "Readings of the kernel's state that failed.", func(s *status.Status) uint64 { return s.Loop.Dumps.Failed }),
	counter("subnet_file_restored_total", "Times that the subnet file was put back after another hand had changed or deleted it.", func(s *status.Status) uint64 { return s.SubnetFile.Restored }),

	gauge("host_settings_wrong", "Settings of the host's that are not as pods need them.", func(s *status.Status) float64 { return float64(s.Host.Wrong()) }),
	counter("host_settings_restored_total", "Times that a setting of the host's was put back after another hand had changed it.", func(s *status.Status) uint64 { return s.Host.Restored }),

	define(prometheus.GaugeValue, "firewall_right", "Whether the firewall rules are as wanted (1) or not (0); absent where none are kept.",
		func(s *status.Status, emit func(float64, ...string)) {
			if s.Firewall.Kept {
				emit(truth(s.Firewall.Problem == ""))
			}
		}),
	define(prometheus.GaugeValue, "firewall_findings", "Firewall rules of others that drop pods' traffic, for certain or maybe.",
		func(s *status.Status, emit func(float64, ...string)) {
			certain := 0
			for _, r := range s.Firewall.Findings {
				if r.Certain {
					certain++
				}
			}
			emit(float64(certain), "true")
			emit(float64(len(s.Firewall.Findings)-certain), "false")
		}, "certain"),
	counter("firewall_writes_total", "Transactions that changed firewall rules.", func(s *status.Status) uint64 { return s.Firewall.Writes }),
	counter("firewall_heals_total", "Transactions that put firewall rules back which another hand had changed.", func(s *status.Status) uint64 { return s.Firewall.Heals }),
	gauge("guard_peers", "Addresses from which the guard lets the tunnel's packets in.", func(s *status.Status) float64 { return float64(s.Firewall.Peers) }),
	counter("guard_dropped_packets_total", "Packets of the tunnel from no peer that the guard dropped. It goes on where the daemon before left off.", func(s *status.Status) uint64 { return s.Firewall.Dropped }),

	define(prometheus.CounterValue, "probes_total", "Questions to peers whether they can be reached, by layer.",
		func(s *status.Status, emit func(float64, ...string)) {
			for _, l := range s.Probing.Layers {
				emit(float64(l.Asked), l.Layer)
			}
		}, "layer"),
	define(prometheus.CounterValue, "probes_lost_total", "Such questions that were not answered within a second.",
		func(s *status.Status, emit func(float64, ...string)) {
			for _, l := range s.Probing.Layers {
				emit(float64(l.Lost), l.Layer)
			}
		}, "layer"),
	{
		desc: prometheus.NewDesc("ripstop_probe_round_trip_seconds", "The time from a question to a peer to its answer, by layer.", []string{"layer"}, nil),
		times: func(s *status.Status, emit func(status.Times, ...string)) {
			for _, l := range s.Probing.Layers {
				emit(l.RoundTrips, l.Layer)
			}
		},
	},
	gauge("silent_peers", "Peers that do not answer on a layer, counted once for each, up to 64.", func(s *status.Status) float64 { return float64(len(s.Probing.Silent)) }),
	counter("echoes_answered_total", "Questions of peers that were answered.", func(s *status.Status) uint64 { return s.Probing.Answered }),
	counter("echoes_ignored_total", "Questions to the echo's port from no peer.", func(s *status.Status) uint64 { return s.Probing.Ignored }),
}

// collector gives the metrics of one status at a time.
type collector struct{ status func() status.Status }

// Describe implements prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, m := range metrics {
		to <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s := c.status()
	for _, m := range metrics {
		if m.times != nil {
			m.times(&s, func(t status.Times, labels ...string) {
				buckets := map[float64]uint64{}
				for _, b := range t.Buckets {
					buckets[b.Within] = b.Count
				}
				to <- prometheus.MustNewConstHistogram(m.desc, t.Count, t.Sum, buckets, labels...)
			})
			continue
		}
		m.read(&s, func(value float64, labels ...string) {
			to <- prometheus.MustNewConstMetric(m.desc, m.kind, value, labels...)
		})
	}
}

// NewRegistry returns a registry of our metrics and those of the Go runtime and
// the process, fewer than 200 series in all.
func NewRegistry(status func() status.Status) (*prometheus.Registry, error) {
	r := prometheus.NewPedanticRegistry()
	return r, errors.Join(r.Register(&collector{status}), r.Register(collectors.NewGoCollector()),
		r.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})))
}

// maxScrapes bounds those that are answered at once; one more is refused.
const maxScrapes = 4

func metricsHandler(r *prometheus.Registry) http.Handler {
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes, DisableCompression: true, ErrorHandling: promhttp.HTTPErrorOnError})
}
