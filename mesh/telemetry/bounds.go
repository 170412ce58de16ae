package telemetry

import "github.com/prometheus/client_golang/prometheus"

// Bounds counts what was refused or ended because of a bound. A nil Bounds counts nothing.
type Bounds struct {
	refused    *prometheus.CounterVec
	ended      *prometheus.CounterVec
	accepts    *prometheus.CounterVec
	violations *prometheus.CounterVec
}

// NewBounds makes Bounds and registers them. It panics if they are registered already.
func NewBounds(reg prometheus.Registerer) *Bounds {
	counter := func(name, help, label string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
		reg.MustRegister(c)
		return c
	}
	return &Bounds{
		refused: counter("ambit_connections_refused_total", "Connections that were refused because a pod had reached a bound.", "bound"),
		ended:   counter("ambit_connections_timed_out_total", "Connections that were ended because nothing moved on them.", "timeout"),
		accepts: counter("ambit_accept_errors_total", "Failures to accept connections for lack of descriptors or memory.", "error"),
		violations: counter("ambit_http2_violations_total",
			"Tunnel connections that peers lost because they broke or abused HTTP/2, by cause.", "cause"),
	}
}

// Refused counts a connection beyond a bound: "connections", "descriptors" or "tunnels".
func (b *Bounds) Refused(bound string) {
	if b != nil {
		b.refused.WithLabelValues(bound).Inc()
	}
}

// TimedOut counts a connection that was ended by a time-out: "idle" or "half_close".
func (b *Bounds) TimedOut(timeout string) {
	if b != nil {
		b.ended.WithLabelValues(timeout).Inc()
	}
}

// AcceptFailed counts a failure to accept, by the name of the error.
func (b *Bounds) AcceptFailed(name string) {
	if b != nil {
		b.accepts.WithLabelValues(name).Inc()
	}
}

// Violated counts a connection that a peer lost.
func (b *Bounds) Violated(cause string) {
	if b != nil {
		b.violations.WithLabelValues(cause).Inc()
	}
}
