package telemetry

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/puzpuzpuz/xsync/v4"

	"github.com/ambit-mesh/ambit/mesh/directory"
)

// Lookups counts connections for which a host name had to be known, by Istio's name. Its series end with the workloads that
// they are about. It is safe for concurrent use; a nil one counts nothing.
type Lookups struct {
	total  *prometheus.CounterVec
	counts *xsync.Map[lookupKey, lookupCount] // changed under mu only

	mu sync.Mutex // guards sharers
	// sharers is how many keys have a series.
	sharers map[lookupLabels]int
}

// lookupKey is who asked for whom, by uid.
type lookupKey struct{ source, destination string }

type lookupCount struct {
	prometheus.Counter
	labels lookupLabels
}

// lookupNames are the labels, and lookupLabels their values.
var lookupNames = [...]string{
	"source_workload", "source_workload_namespace", "source_canonical_service", "source_canonical_revision", "source_principal",
	"source_app", "source_version", "source_cluster", "hostname",
}

type lookupLabels [len(lookupNames)]string

// NewLookups makes Lookups and registers its metric. It panics if that is registered already.
func NewLookups(reg prometheus.Registerer) *Lookups {
	l := &Lookups{
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "istio_on_demand_dns_total", Help: "Connections to workloads that are known by a host name only.",
		}, lookupNames[:]),
		counts:  xsync.NewMap[lookupKey, lookupCount](),
		sharers: map[lookupLabels]int{},
	}
	reg.MustRegister(l.total)
	return l
}

// Count counts one connection of a workload to one that has a host name instead of an address.
func (l *Lookups) Count(source, destination *directory.Workload) {
	if l == nil {
		return
	}
	key := lookupKey{source.UID, destination.UID}
	count, known := l.counts.Load(key)
	if !known {
		count = l.add(key, source, destination)
	}
	count.Inc()
}

// add makes the counter of a key, or returns the one that was made meanwhile.
func (l *Lookups) add(key lookupKey, source, destination *directory.Workload) lookupCount {
	s := sideOf(source, source.Identity)
	labels := lookupLabels{s.workload, s.namespace, s.app, s.revision, s.principal, s.app, s.revision, s.cluster, destination.Hostname}
	for i, value := range labels {
		labels[i] = orUnknown(value)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if count, known := l.counts.Load(key); known {
		return count
	}
	count := lookupCount{l.total.WithLabelValues(labels[:]...), labels}
	l.sharers[labels]++
	l.counts.Store(key, count)
	return count
}

// Forget drops the series of a workload that is gone, whether it asked or was asked for, unless others share them.
func (l *Lookups) Forget(uid string) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for key, count := range l.counts.All() {
		if key.source != uid && key.destination != uid {
			continue
		}
		l.counts.Delete(key)
		if l.sharers[count.labels]--; l.sharers[count.labels] == 0 {
			delete(l.sharers, count.labels)
			l.total.DeleteLabelValues(count.labels[:]...)
		}
	}
}
