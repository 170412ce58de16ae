package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/directory"
)

// Lookups counts connections for which a host name had to be known, by Istio's name. It is safe for concurrent use; a nil one
// counts nothing.
type Lookups struct{ total *prometheus.CounterVec }

// NewLookups makes Lookups and registers its metric. It panics if that is registered already.
func NewLookups(reg prometheus.Registerer) *Lookups {
	l := &Lookups{prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "istio_on_demand_dns_total", Help: "Connections to workloads that are known by a host name only.",
	}, []string{"source_canonical_service", "source_canonical_revision", "source_workload_namespace"})}
	reg.MustRegister(l.total)
	return l
}

// Count counts one connection of a workload.
func (l *Lookups) Count(source *directory.Workload) {
	if l != nil {
		l.total.WithLabelValues(source.CanonicalName, source.CanonicalRevision, source.Namespace).Inc()
	}
}
