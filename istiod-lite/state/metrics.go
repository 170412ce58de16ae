package state

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// maxFaulty bounds the objects that ambit_object_faults names; the rest is in /debug/problemz.
const maxFaulty = 500

// metrics are the loop's, under Istio's names where Istio has them.
type metrics struct {
	objects  *prometheus.GaugeVec
	services prometheus.Gauge
	problems prometheus.Gauge
	faults   *prometheus.GaugeVec
	registry *prometheus.CounterVec
	config   *prometheus.CounterVec
	queued   prometheus.GaugeFunc
	flushes  prometheus.Histogram

	// The loop's own: faults of all objects, by object, and which of them are named or would be if there were room.
	total          int
	counts         map[object]int
	named, unnamed set[object]
}

// newMetrics makes and registers metrics; queued is how many events wait.
func newMetrics(r prometheus.Registerer, queued func() int) *metrics {
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	events := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"type", "event"})
	}
	m := &metrics{
		objects:  gauges("ambit_state_objects", "Objects known, by kind.", "kind"),
		services: prometheus.NewGauge(prometheus.GaugeOpts{Name: "pilot_services", Help: "Services known."}),
		problems: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ambit_state_problems", Help: "Faults found in objects."}),
		faults:   gauges("ambit_object_faults", "Faults found in an object, for up to 500 objects that have some.", "kind", "namespace", "name"),
		registry: events("pilot_k8s_reg_events", "Changes of Services, EndpointSlices, Pods, Nodes, Namespaces and ConfigMaps."),
		config:   events("pilot_k8s_cfg_events", "Changes of the mesh's own kinds, such as policies."),
		queued: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ambit_state_queued_events", Help: "Changes that wait to be translated."},
			func() float64 { return float64(queued()) }),
		flushes: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "ambit_state_flush_seconds", Help: "Time to translate what a batch of events changed.",
			Buckets: []float64{.0001, .001, .01, .1, 1, 10}}),
		counts: map[object]int{}, named: set[object]{}, unnamed: set[object]{},
	}
	r.MustRegister(m.objects, m.services, m.problems, m.faults, m.registry, m.config, m.queued, m.flushes)
	return m
}

// eventNames are as Istio's dashboards know them.
var eventNames = map[cluster.Op]string{cluster.Upsert: "update", cluster.Delete: "delete"}

// event counts a change. Lists are not counted.
func (m *metrics) event(e cluster.Event) {
	name := eventNames[e.Op]
	if name == "" {
		return
	}
	counter := m.config
	switch e.Kind {
	case cluster.KindService, cluster.KindEndpointSlice, cluster.KindPod, cluster.KindNode, cluster.KindNamespace, cluster.KindConfigMap:
		counter = m.registry
	}
	counter.WithLabelValues(string(e.Kind), name).Inc()
}

// sizes shows how many objects there are.
func (m *metrics) sizes(all map[cluster.Kind]int) {
	for kind, n := range all {
		m.objects.WithLabelValues(string(kind)).Set(float64(n))
	}
	m.services.Set(float64(all[cluster.KindService]))
}

// fault shows how many faults an object has now.
func (m *metrics) fault(o object, n int) {
	m.total += n - m.counts[o]
	m.problems.Set(float64(m.total))
	if n > 0 {
		m.counts[o] = n
		if _, named := m.named[o]; !named && len(m.named) == maxFaulty {
			m.unnamed[o] = struct{}{}
			return
		}
		m.name(o)
		return
	}
	delete(m.counts, o)
	delete(m.unnamed, o)
	if _, named := m.named[o]; !named {
		return
	}
	delete(m.named, o)
	m.faults.DeleteLabelValues(o.labels()...)
	for next := range m.unnamed { // there is room for one of them
		delete(m.unnamed, next)
		m.name(next)
		break
	}
}

func (m *metrics) name(o object) {
	m.named[o] = struct{}{}
	m.faults.WithLabelValues(o.labels()...).Set(float64(m.counts[o]))
}

func (o object) labels() []string { return []string{string(o.kind), o.key.Namespace, o.key.Name} }
