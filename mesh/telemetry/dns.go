package telemetry

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// DNS counts queries that pods ask their proxies, by Istio's names and labels. It is safe for concurrent use.
type DNS struct {
	requests, upstream, failures, cached *prometheus.CounterVec
	duration                             *prometheus.HistogramVec

	mu      sync.Mutex // guards sources
	sources map[dnsLabels]int
}

// dnsLabels are the labels that tell who asks.
type dnsLabels struct{ service, revision string }

// NewDNS makes a DNS and registers its metrics. It panics if they are registered already.
func NewDNS(reg prometheus.Registerer) *DNS {
	labels := []string{"request_query_type", "request_protocol", "source_canonical_service", "source_canonical_revision"}
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	d := &DNS{
		requests: counter("istio_dns_requests_total", "Queries of pods."),
		upstream: counter("istio_dns_upstream_requests_total", "Queries of pods that were sent on to their resolvers."),
		failures: counter("istio_dns_upstream_failures_total", "Queries of pods that were sent on and not answered."),
		cached:   counter("ambit_dns_cache_hits_total", "Queries of pods that were answered from what their resolvers had answered before."),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "istio_dns_upstream_request_duration_seconds",
			Help: "Time until a resolver's answer came.", Buckets: []float64{.0005, .001, .01, .1, 1, 5}}, labels),
		sources: map[dnsLabels]int{},
	}
	reg.MustRegister(d.requests, d.upstream, d.failures, d.cached, d.duration)
	return d
}

// Source returns the counters of a pod, by its canonical service and revision. Call Close when the pod is gone.
func (d *DNS) Source(service, revision string) *DNSSource {
	l := dnsLabels{orUnknown(service), orUnknown(revision)}
	d.mu.Lock()
	d.sources[l]++
	d.mu.Unlock()
	return &DNSSource{dns: d, labels: l}
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

// DNSSource counts for one pod. Query types are given in lower case, protocols as udp or tcp.
type DNSSource struct {
	dns    *DNS
	labels dnsLabels
}

// Same tells whether the counters are those of this canonical service and revision.
func (s *DNSSource) Same(service, revision string) bool {
	return s.labels == dnsLabels{orUnknown(service), orUnknown(revision)}
}

// Request counts a query.
func (s *DNSSource) Request(qtype, protocol string) {
	s.dns.requests.WithLabelValues(qtype, protocol, s.labels.service, s.labels.revision).Inc()
}

// Cached counts a query that was answered by what was remembered.
func (s *DNSSource) Cached(qtype, protocol string) {
	s.dns.cached.WithLabelValues(qtype, protocol, s.labels.service, s.labels.revision).Inc()
}

// Upstream counts a query that was sent on, how long that took, and whether it failed.
func (s *DNSSource) Upstream(qtype, protocol string, took time.Duration, failed bool) {
	s.dns.upstream.WithLabelValues(qtype, protocol, s.labels.service, s.labels.revision).Inc()
	if failed {
		s.dns.failures.WithLabelValues(qtype, protocol, s.labels.service, s.labels.revision).Inc()
		return
	}
	s.dns.duration.WithLabelValues(qtype, protocol, s.labels.service, s.labels.revision).Observe(took.Seconds())
}

// Close drops the series, if no other pod counts to them.
func (s *DNSSource) Close() {
	d := s.dns
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sources[s.labels]--; d.sources[s.labels] > 0 {
		return
	}
	delete(d.sources, s.labels)
	labels := prometheus.Labels{"source_canonical_service": s.labels.service, "source_canonical_revision": s.labels.revision}
	for _, v := range []*prometheus.CounterVec{d.requests, d.upstream, d.failures, d.cached} {
		v.DeletePartialMatch(labels)
	}
	d.duration.DeletePartialMatch(labels)
}
