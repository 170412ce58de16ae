package ca

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the CA's, under Istio's names where Istio has them.
type Metrics struct {
	requests        prometheus.Counter
	unauthenticated prometheus.Counter
	issued          prometheus.Counter
	failures        *prometheus.CounterVec
	rootExpiry      prometheus.Gauge
}

// NewMetrics makes the metrics and registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		requests:        prometheus.NewCounter(prometheus.CounterOpts{Name: "citadel_server_csr_count", Help: "Certificate requests."}),
		unauthenticated: prometheus.NewCounter(prometheus.CounterOpts{Name: "citadel_server_authentication_failure_count", Help: "Certificate requests from nobody that is known."}),
		issued:          prometheus.NewCounter(prometheus.CounterOpts{Name: "citadel_server_success_cert_issuance_count", Help: "Certificates issued."}),
		failures:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ambit_ca_refused_total", Help: "Certificate requests of known callers that failed, by gRPC code."}, []string{"code"}),
		rootExpiry:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "citadel_server_root_cert_expiry_timestamp", Help: "When the signing certificate ends, in seconds since 1970."}),
	}
	r.MustRegister(m.requests, m.unauthenticated, m.issued, m.failures, m.rootExpiry)
	return m
}

// Observe takes the authority that is in force from now on.
func (m *Metrics) Observe(a *Authority) { m.rootExpiry.Set(float64(a.NotAfter().Unix())) }
