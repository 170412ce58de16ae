package agent

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the agent's, under the names of Istio's agent where it has the same.
type Metrics struct {
	installs  *prometheus.CounterVec
	requests  *prometheus.CounterVec
	failures  prometheus.Counter
	connected prometheus.Gauge
	pods      *prometheus.GaugeVec
}

// NewMetrics registers the metrics.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		installs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_cni_installs_total",
			Help: "Times that the CNI plugin or its configuration entry had to be put in place."}, []string{"result"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "istio_cni_plugin_requests_total",
			Help: "Answers to the CNI plugin, by HTTP status."}, []string{"response_code"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "nodeagent_reconcile_failures_total",
			Help: "Attempts to bring a pod to what it is to be that failed and are made again."}),
		connected: prometheus.NewGauge(prometheus.GaugeOpts{Name: "ztunnel_connected",
			Help: "Node proxies that are connected."}),
		pods: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "nodeagent_pods",
			Help: "Pods of this node, by state: captured, or draining after un-enrolment."}, []string{"state"}),
	}
	r.MustRegister(m.installs, m.requests, m.failures, m.connected, m.pods)
	return m
}

// Installed counts an installation or repair.
func (m *Metrics) Installed() { m.installs.WithLabelValues("SUCCESS").Inc() }

// PluginRequest counts an answer to the plugin.
func (m *Metrics) PluginRequest(status int) { m.requests.WithLabelValues(strconv.Itoa(status)).Inc() }

// JobFailed counts an attempt on a pod that failed.
func (m *Metrics) JobFailed() { m.failures.Inc() }

// Connected sets the number of node proxies.
func (m *Metrics) Connected(n int) { m.connected.Set(float64(n)) }

// Pods sets the number of pods by state.
func (m *Metrics) Pods(captured, draining int) {
	m.pods.WithLabelValues("captured").Set(float64(captured))
	m.pods.WithLabelValues("draining").Set(float64(draining))
}
