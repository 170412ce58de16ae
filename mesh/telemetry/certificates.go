package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// Certificates shows when certificates end. It implements prometheus.Collector.
type Certificates struct {
	snapshot              func() []identity.Status
	leaf, state, failures *prometheus.Desc
}

// NewCertificates makes a Certificates of what snapshot returns at each scrape.
func NewCertificates(snapshot func() []identity.Status) *Certificates {
	return &Certificates{
		snapshot: snapshot,
		leaf: prometheus.NewDesc("ambit_certificate_expiry_timestamp_seconds",
			"When the certificate of an identity ends, in seconds since 1970.", []string{"identity"}, nil),
		state: prometheus.NewDesc("ambit_certificates", "Identities of the node's pods, by whether their certificate is good now.",
			[]string{"state"}, nil),
		failures: prometheus.NewDesc("ambit_certificate_request_failures",
			"Requests for an identity's certificate that have failed in a row; 0 is not shown.", []string{"identity"}, nil),
	}
}

// Describe implements prometheus.Collector.
func (c *Certificates) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.leaf
	ch <- c.state
	ch <- c.failures
}

// Collect implements prometheus.Collector.
func (c *Certificates) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	states := map[string]int{"valid": 0, "expired": 0, "missing": 0}
	for _, s := range c.snapshot() {
		state := "missing"
		if s.SVID != nil {
			if state = "valid"; !now.Before(s.SVID.NotAfter) {
				state = "expired"
			}
			ch <- prometheus.MustNewConstMetric(c.leaf, prometheus.GaugeValue, float64(s.SVID.NotAfter.Unix()), s.Identity.String())
		}
		states[state]++
		if s.Failures > 0 {
			ch <- prometheus.MustNewConstMetric(c.failures, prometheus.GaugeValue, float64(s.Failures), s.Identity.String())
		}
	}
	for state, n := range states {
		ch <- prometheus.MustNewConstMetric(c.state, prometheus.GaugeValue, float64(n), state)
	}
}
