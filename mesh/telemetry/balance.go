package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/directory"
)

// Balance counts what balancing does about endpoints that fail. It is safe for concurrent use; a nil one counts nothing.
type Balance struct {
	ejections *prometheus.CounterVec
	retries   *prometheus.CounterVec
}

// NewBalance makes Balance and registers its metrics. d tells how many endpoints are ejected. It panics if they are
// registered already.
func NewBalance(reg prometheus.Registerer, d *directory.Directory) *Balance {
	b := &Balance{
		ejections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_endpoint_ejections_total",
			Help: "Endpoints that were left out of balancing because connections to them failed one after the other.",
		}, []string{"destination_service", "destination_service_namespace"}),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ambit_connect_retries_total",
			Help: "Connections for which another endpoint was tried, by whether one was opened in the end.",
		}, []string{"result"}),
	}
	for _, result := range []string{retryOpened, retryFailed} {
		b.retries.WithLabelValues(result)
	}
	reg.MustRegister(b.ejections, b.retries, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "ambit_endpoints_ejected", Help: "Endpoints that are left out of balancing now.",
	}, func() float64 { return float64(d.Ejected()) }))
	return b
}

// Values of the result label.
const (
	retryOpened = "opened"
	retryFailed = "failed"
)

// Ejected counts an ejection of an endpoint of a service.
func (b *Balance) Ejected(s directory.ServiceKey) {
	if b != nil {
		b.ejections.WithLabelValues(s.Hostname, s.Namespace).Inc()
	}
}

// Forget drops the series of a service that is gone.
func (b *Balance) Forget(s directory.ServiceKey) {
	if b != nil {
		b.ejections.DeleteLabelValues(s.Hostname, s.Namespace)
	}
}

// Retried counts a connection for which other endpoints were tried so often; never is no matter.
func (b *Balance) Retried(times int, opened bool) {
	switch {
	case b == nil || times == 0:
	case opened:
		b.retries.WithLabelValues(retryOpened).Inc()
	default:
		b.retries.WithLabelValues(retryFailed).Inc()
	}
}
