package telemetry

import (
	"encoding/hex"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/identity"
)

// fingerprintBytes of a root's fingerprint tell roots of one name apart.
const fingerprintBytes = 4

// Trust shows what peers are verified by, and counts the connections that revocation lists have ended. It implements
// prometheus.Collector, and is safe for concurrent use.
type Trust struct {
	trust    *identity.Trust
	requests func() (issued, failed uint64)
	rejected [reporters]atomic.Uint64

	rejections, untracked, nextUpdate, revoked, root, issued *prometheus.Desc
}

// NewTrust makes a Trust. requests returns how many certificates were issued, and how many requests have failed; it may be nil.
func NewTrust(t *identity.Trust, requests func() (issued, failed uint64)) *Trust {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &Trust{
		trust: t, requests: requests,
		rejections: desc("istio_crl_policy_rejections_total", "Connections that were refused or ended since a certificate of the peer is revoked.", "reporter"),
		untracked:  desc("istio_crl_untracked_connections_total", "Tunnels that new revocation lists would not end. Here that is none.", "reporter"),
		nextUpdate: desc("ambit_crl_next_update_timestamp_seconds", "When a newer revocation list is due, in seconds since 1970.", "issuer"),
		revoked:    desc("ambit_crl_entries", "Certificates that revocation lists revoke.", "issuer"),
		root:       desc("ambit_root_expiry_timestamp_seconds", "When a trusted root ends, in seconds since 1970.", "root", "fingerprint"),
		issued:     desc("ambit_certificate_requests_total", "Requests for certificates of workloads.", "result"),
	}
}

// Rejected counts a connection that was refused or ended for a revoked certificate.
func (t *Trust) Rejected(r Reporter) { t.rejected[r].Add(1) }

// Describe implements prometheus.Collector.
func (t *Trust) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range [...]*prometheus.Desc{t.rejections, t.untracked, t.nextUpdate, t.revoked, t.root, t.issued} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (t *Trust) Collect(ch chan<- prometheus.Metric) {
	for r := range Reporter(reporters) {
		ch <- prometheus.MustNewConstMetric(t.rejections, prometheus.CounterValue, float64(t.rejected[r].Load()), r.String())
		ch <- prometheus.MustNewConstMetric(t.untracked, prometheus.CounterValue, 0, r.String())
	}
	type list struct{ next, entries float64 }
	lists := map[string]list{} // an issuer may have several
	for _, l := range t.trust.CRL().Lists() {
		sum := lists[l.Issuer]
		if next := float64(l.NextUpdate.Unix()); !l.NextUpdate.IsZero() && (sum.next == 0 || next < sum.next) {
			sum.next = next
		}
		sum.entries += float64(l.Revoked)
		lists[l.Issuer] = sum
	}
	for issuer, l := range lists {
		if l.next != 0 {
			ch <- prometheus.MustNewConstMetric(t.nextUpdate, prometheus.GaugeValue, l.next, issuer)
		}
		ch <- prometheus.MustNewConstMetric(t.revoked, prometheus.GaugeValue, l.entries, issuer)
	}
	for _, c := range t.trust.RootList() {
		ch <- prometheus.MustNewConstMetric(t.root, prometheus.GaugeValue, float64(c.NotAfter.Unix()),
			c.Name, hex.EncodeToString(c.Fingerprint[:fingerprintBytes]))
	}
	if t.requests != nil {
		issued, failed := t.requests()
		ch <- prometheus.MustNewConstMetric(t.issued, prometheus.CounterValue, float64(issued), "issued")
		ch <- prometheus.MustNewConstMetric(t.issued, prometheus.CounterValue, float64(failed), "failed")
	}
}
