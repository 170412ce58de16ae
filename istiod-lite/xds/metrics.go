package xds

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are those of all hubs together, under Istio's names where Istio has them.
type Metrics struct {
	connections prometheus.Gauge
	resources   *prometheus.GaugeVec
	pushes      *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	rejects     *prometheus.CounterVec
	staleNonces prometheus.Counter
	refused     prometheus.Counter
	convergence prometheus.Histogram

	nextConn atomic.Uint64 // numbers connections, so that no two hubs have the same
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		connections: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_xds", Help: "Streams that are open."}),
		resources:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "ambit_xds_resources", Help: "Resources, by type."}, []string{"type"}),
		pushes:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_xds_pushes", Help: "Responses sent, by type."}, []string{"type"}),
		bytes:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ambit_xds_pushed_bytes_total", Help: "Bytes of resources sent, by type."}, []string{"type"}),
		rejects:     prometheus.NewCounterVec(prometheus.CounterOpts{Name: "pilot_total_xds_rejects", Help: "Responses that a client rejected, by type."}, []string{"type"}),
		staleNonces: prometheus.NewCounter(prometheus.CounterOpts{Name: "pilot_xds_expired_nonce", Help: "Answers to no response that is in flight."}),
		refused:     prometheus.NewCounter(prometheus.CounterOpts{Name: "ambit_xds_refused_total", Help: "Streams refused for who called or what they said of themselves."}),
		convergence: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "pilot_proxy_convergence_time",
			Help:    "Seconds from a change in the state to its acknowledgement by a proxy.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}),
	}
	r.MustRegister(m.connections, m.resources, m.pushes, m.bytes, m.rejects, m.staleNonces, m.refused, m.convergence)
	return m
}
